"""Lets faults befall a running program at random, and checks that it survives them.

python launch/chaos.py --minutes=3 --seed=1

It trains Pong with a small network in a workdir of its own, prints a table of the
faults and what came of them, and ends with code 1 if anything did not hold.
"""

import preamble  # noqa: F401

import argparse
import collections
import contextlib
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from faults import checks, hosts, kinds
from faults.program import Program

from r2d2_acme import running
from r2d2_acme.system import runtime

_DISK_SIZE = '300m'  # of the file system that is filled
_MAX_PAUSE = 10.0  # seconds between faults


def main() -> int:
  args = _parse()
  rng = random.Random(args.seed)
  known = kinds.ON_RAY if args.ray else kinds.KINDS
  names = args.faults.split(',') if args.faults else list(known)
  if unknown := set(names) - known.keys():
    runtime.exit_with_error(
      f'there is no fault {sorted(unknown)[0]}: give some of {", ".join(known)}'
    )
  violations: list[str] = []
  seconds: dict[str, list[float]] = collections.defaultdict(list)
  with tempfile.TemporaryDirectory() as folder, _small_disk(folder) as workdir:
    if workdir is None:
      names = [name for name in names if name != kinds.fill_disk.__name__]
      workdir = pathlib.Path(folder, 'run')
    with (
      _hosts(args.ray, folder) as ray_hosts,
      Program(pathlib.Path(folder), workdir, args.network, ray_hosts) as program,
    ):
      program.start()
      _let(violations, lambda: checks.wait_for_progress(program))
      num_samples = len(program.samples)
      end = time.monotonic() + 60 * args.minutes
      while time.monotonic() < end:
        if program.poll() is not None:  # a violation, which the table has
          program.start()
          _let(violations, lambda: checks.wait_for_progress(program))
          num_samples = len(program.samples)
        names = names[1:] + names[:1] if args.in_turn else names
        name = names[-1] if args.in_turn else rng.choice(names)
        _befall(program, name, rng, violations, seconds, num_samples)
        num_samples = len(program.samples)
        time.sleep(rng.uniform(0, _MAX_PAUSE))
      _let(violations, lambda: checks.check_end(program))
      _let(violations, lambda: checks.check_rows(program))
      _let(violations, lambda: checks.check_replay(program.workdir))
      _let(violations, lambda: checks.check_memory(program.samples))
      recovered = program.recovered()
      if violations or args.output:
        pathlib.Path(args.output or 'chaos.txt').write_text('\n'.join(program.lines))
  _print_seconds('from a fault until all act and learn', seconds)
  _print_seconds('from the death of a node until it makes progress', recovered)
  print(f'\n{len(violations)} violations', *violations, sep='\n')
  return int(bool(violations))


def _befall(
  program: Program,
  name: str,
  rng: random.Random,
  violations: list[str],
  seconds: Mapping[str, list[float]],
  num_samples: int,
):
  """Lets a fault happen, waits until the program has recovered, and prints a row.

  Args:
    program: that runs.
    name: of the fault.
    rng: decides what else is left to chance.
    violations: what is violated is added to these.
    seconds: the time of the recovery is added to these, by fault.
    num_samples: of the program when it had recovered from the fault before. What that
      one has cost is no loss of this one.
  """
  start, rows = time.monotonic(), program.rows('learner')
  before = program.samples[num_samples:]
  outcome = what = ''
  try:
    what = (kinds.KINDS | kinds.ON_RAY)[name](program, rng)
    recovery = checks.wait_for_progress(program)
    seconds[name].append(recovery)
    outcome = f'progress after {recovery:.1f} s'
    known = set(map(str, rows))  # as text, in which NaN equals NaN
    new = [row for row in program.rows('learner') if str(row) not in known]
    if new and rows:
      steps = rows[-1]['learner_steps'], new[0]['learner_steps']
      checks.check_steps(before, start, steps[1])
      outcome += f', learner steps {steps[0]:.0f} -> {steps[1]:.0f}'
  except (checks.Violation, AssertionError) as error:
    violations.append(f'{name} ({what}): {error}')
    outcome = f'VIOLATION: {error}'
  now = time.strftime('%H:%M:%S')
  print(f'{now}  {name:<28} {what:<50} {outcome}', flush=True)


def _let(violations: list[str], check: Callable[[], object]):
  """Adds what a check finds violated."""
  try:
    check()
  except checks.Violation as error:
    violations.append(str(error))
    print(f'VIOLATION: {error}', flush=True)


def _print_seconds(what: str, seconds: Mapping[str, Sequence[float]]):
  print(f'\n{"seconds " + what:<52} {"number":>6} {"median":>8} {"worst":>8}')
  for name, values in sorted(seconds.items()):
    print(
      f'{name:<52} {len(values):>6} {statistics.median(values):>8.1f} '
      f'{max(values):>8.1f}'
    )


@contextlib.contextmanager
def _small_disk(folder: str) -> Iterator[pathlib.Path | None]:
  """Yields a workdir on a small file system of its own; None if it is not permitted."""
  path = pathlib.Path(folder, 'disk')
  path.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', f'size={_DISK_SIZE}', 'chaos', str(path)]
  if subprocess.run(mount, stderr=subprocess.DEVNULL, check=False).returncode:
    print('No file system may be mounted here, so none is filled.', flush=True)
    yield None
    return
  try:
    yield path / 'run'
  finally:
    subprocess.run(['umount', '-l', str(path)], check=True)


@contextlib.contextmanager
def _hosts(on_ray: bool, folder: str) -> Iterator[Sequence[hosts.Host]]:
  """Yields three hosts for Ray, if it is wanted."""
  if not on_ray:
    yield []
    return
  try:
    with hosts.made(pathlib.Path(folder)) as made:
      yield made
  except hosts.NotPermitted as error:
    runtime.exit_with_error(f'{error}: run as root, or without --ray')


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    'chaos.py', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.error = runtime.exit_with_error  # type: ignore[method-assign]
  parser.add_argument('--minutes', type=float, default=3.0)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument(
    '--faults',
    help=f'comma-separated; by default all: {", ".join(kinds.KINDS)};\n'
    f'with --ray: {", ".join(kinds.ON_RAY)}',
  )
  parser.add_argument(
    '--ray', action='store_true', help='on three hosts made of network namespaces'
  )
  parser.add_argument(
    '--in_turn', action='store_true', help='one fault after the other, not at random'
  )
  parser.add_argument('--network', choices=running.NETWORKS, default=running.PRIVATE)
  parser.add_argument('--output', help='a file for all that the program printed')
  return parser.parse_args()


if __name__ == '__main__':
  sys.exit(main())
