"""Prints a table of all checkpoints in a workdir; --verify reads every byte of them.

python launch/checkpoints.py --workdir=runs/pong
"""

import preamble  # noqa: F401

import argparse
import sys

from r2d2_acme.results import checkpoint_table
from r2d2_acme.system import runtime
from r2d2_acme.workdir import checkpoint_files, paths


def main() -> int:
  args = _parse()
  try:
    rows = checkpoint_table.read(args.workdir, args.verify)
  except checkpoint_files.CheckpointError as error:
    runtime.exit_with_error(str(error))
  if not rows:
    runtime.exit_with_error(
      f'there is no checkpoint in {paths.shown(args.workdir)}: give the --workdir of a '
      'run'
    )
  print(*checkpoint_table.aligned(rows), sep='\n')
  is_damaged = any(row.state.startswith('damaged') for row in rows)
  return int(args.verify and is_damaged)


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    'checkpoints.py', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.error = runtime.exit_with_error  # type: ignore[method-assign]
  parser.add_argument('--workdir', required=True, type=paths.argument, help='of a run')
  parser.add_argument(
    '--verify',
    action='store_true',
    help='read every byte; the exit code is 1 if a checkpoint is damaged',
  )
  return parser.parse_args()


if __name__ == '__main__':
  sys.exit(main())
