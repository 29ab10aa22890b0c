"""Prints how a program in a workdir is doing, or how it ended, from its files alone.

python launch/status.py --workdir=runs/pong
"""

import argparse
import sys

try:
  from r2d2_acme.system import doctor, stopping
except ModuleNotFoundError:
  sys.exit('r2d2_acme is not in this Python: run `make install`, then .venv/bin/python')
if __name__ == '__main__':
  stopping.end_at_once()
doctor.check_installation()

from rich import console  # noqa: E402

from r2d2_acme.running import progress, status  # noqa: E402
from r2d2_acme.system import runtime  # noqa: E402
from r2d2_acme.workdir import paths  # noqa: E402


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
