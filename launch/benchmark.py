"""Measures ours, Acme's parts and the machine's limit side by side.

python launch/benchmark.py [actor learner ...]
"""

import preamble  # noqa: F401

import argparse
import contextlib
import importlib.util
import io
import json
import pathlib
import sys
import time

from r2d2_acme.system import runtime

PARTS = (
  'actor',
  'learner',
  'fetching',
  'replay',
  'startup',
  'end_to_end',
  'scaling',
)
_ON_REQUEST = ('memory',)  # takes an hour and a half
_EXTRAS = ('jax', 'gym')  # what the parts need beyond the runtime


def main() -> int:
  args = _parse()
  missing = [name for name in _EXTRAS if importlib.util.find_spec(name) is None]
  if missing:
    runtime.exit_with_error(f'{", ".join(missing)} not installed; cure: make bench')
  with contextlib.redirect_stderr(io.StringIO()):
    import gym  # noqa: F401 (prints a notice, once)
  from benchmarks import measuring, report

  if args.json:
    pathlib.Path(args.json).parent.mkdir(parents=True, exist_ok=True)
  result = report.describe_run() | {'rounds': args.rounds, 'parts': {}, 'seconds': {}}
  scaling = []
  for part in args.parts or PARTS:
    start = time.monotonic()
    try:
      comparisons = importlib.import_module(f'benchmarks.{part}').run(args.rounds)
    except measuring.SideFailed as error:
      print(f'error: {part}: {error}', file=sys.stderr, flush=True)
      return 1
    report.print_tables(part, comparisons)
    result['parts'][part] = [comparison.to_json() for comparison in comparisons]
    result['seconds'][part] = round(time.monotonic() - start, 1)
    scaling += [comparison for comparison in comparisons if comparison.points]
    if args.json:  # after each part: a later one may fail
      with open(args.json, 'w') as file:
        json.dump(result, file, indent=2)
  if args.json and scaling:
    report.plot(scaling, str(pathlib.Path(args.json).with_suffix('.png')))
  return 0


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    'benchmark.py', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.error = runtime.exit_with_error  # type: ignore[method-assign]
  parser.add_argument(
    'parts',
    nargs='*',
    metavar='part',
    help=f'{", ".join(PARTS)}; by default all.\n'
    f'Only when named: {", ".join(_ON_REQUEST)}, which takes an hour and a half',
  )
  parser.add_argument(
    '--json', metavar='FILE', help="all samples go there, scaling's curves beside it"
  )
  parser.add_argument('--rounds', type=int, default=5, help='by default 5')
  args = parser.parse_args()
  for part in args.parts:
    if part not in PARTS + _ON_REQUEST:
      names = ', '.join(PARTS + _ON_REQUEST)
      runtime.exit_with_error(f'{part!r} is not a part: give one of {names}')
  if args.rounds < 1:
    runtime.exit_with_error('--rounds must be at least 1')
  return args


if __name__ == '__main__':
  code = main()
  runtime.exit_now(code)
