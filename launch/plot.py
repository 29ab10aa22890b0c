"""Draws learning curves of runs: return against frames and against wall time.

python launch/plot.py runs/pong 'runs/breakout_*' --out=curves.png
"""

import preamble  # noqa: F401

import argparse
import sys

from r2d2_acme.results import plotting
from r2d2_acme.system import runtime
from r2d2_acme.workdir import paths
from r2d2_acme.workdir.paths import shown


def main() -> int:
  args = _parse()
  try:
    runs = plotting.read_runs(args.workdirs)
    empty = [run.workdir for run in runs if run.is_empty]
    if len(empty) == len(runs):
      runtime.exit_with_error(
        f'{shown(empty[0])} has no finished episode yet: try again in a few minutes'
      )
    if empty:
      names = ', '.join(map(shown, empty))
      print(f'left out, no finished episode yet: {names}', file=sys.stderr)
    runs = [run for run in runs if not run.is_empty]
    groups = plotting.group(runs, args.separate)
    path = plotting.draw(groups, paths.resolve(args.out))
  except (plotting.NoRun, OSError, ValueError) as error:
    runtime.exit_with_error(str(error))
  for label, members in groups.items():
    print(f'{label}: {", ".join(shown(run.workdir) for run in members)}')
  print(shown(path))
  return 0


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    'plot.py', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.error = runtime.exit_with_error  # type: ignore[method-assign]
  parser.add_argument(
    'workdirs',
    nargs='+',
    metavar='WORKDIR',
    help='workdirs of runs, or patterns; runs that differ only in the seed\n'
    'become one curve: their interquartile mean in its 95 %% interval',
  )
  parser.add_argument(
    '--out',
    metavar='FILE.png',
    default='curves.png',
    help='the picture to write; by default curves.png',
  )
  parser.add_argument(
    '--separate', action='store_true', help='draw one curve per run, not per group'
  )
  return parser.parse_args()


if __name__ == '__main__':
  sys.exit(main())
