"""Lets faults befall a running program at random, and checks that it survives them.

python launch/chaos.py --minutes=3 --seed=1

It trains Pong with a small network in a workdir of its own, prints a table of the
faults and what came of them, and ends with code 1 if anything did not hold.
"""

import preamble  # noqa: F401

import argparse
import contextlib
import pathlib
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence

from faults import campaign, disks, hosts, kinds
from faults.program import Program

from r2d2_acme import running
from r2d2_acme.system import runtime


def main() -> int:
  args = _parse()
  known = kinds.ON_RAY if args.ray else kinds.KINDS
  names = args.faults.split(',') if args.faults else list(known)
  if unknown := set(names) - known.keys():
    runtime.exit_with_error(
      f'there is no fault {sorted(unknown)[0]}: give some of {", ".join(known)}'
    )
  with tempfile.TemporaryDirectory() as folder, disks.made(folder) as workdir:
    if workdir is None:
      names = [name for name in names if name != kinds.fill_disk.__name__]
      workdir = pathlib.Path(folder, 'run')
    with (
      _hosts(args.ray, folder) as ray_hosts,
      Program(pathlib.Path(folder), workdir, args.network, ray_hosts) as program,
    ):
      rng = random.Random(args.seed)
      found = campaign.Campaign(program, names, rng, args.in_turn)
      found.run(60 * args.minutes)
      if found.violations or args.output:
        pathlib.Path(args.output or 'chaos.txt').write_text('\n'.join(program.lines))
      found.report()
  return int(bool(found.violations))


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
