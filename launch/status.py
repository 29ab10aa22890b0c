"""Prints how a program in a workdir is doing, or how it ended, from its files alone.

python launch/status.py --workdir=runs/pong
"""

import preamble  # noqa: F401

import argparse
import sys

from rich import console

from r2d2_acme.running import progress
from r2d2_acme.system import runtime
from r2d2_acme.workdir import paths, status


def main() -> int:
  workdir = _parse().workdir
  try:
    found = status.read(workdir)
  except status.NoStatus as error:
    runtime.exit_with_error(str(error))
  is_running = status.is_running(workdir, found)
  console.Console(highlight=False).print(progress.draw(workdir, found, is_running))
  if found.message:
    print(found.message)
  return 0


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    'status.py', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.error = runtime.exit_with_error  # type: ignore[method-assign]
  parser.add_argument(
    '--workdir',
    required=True,
    type=paths.argument,
    help='of a program that launch/atari_distributed.py has started',
  )
  return parser.parse_args()


if __name__ == '__main__':
  sys.exit(main())
