"""Prints a table of all checkpoints in a workdir; --verify reads every byte of them.

python launch/checkpoints.py --workdir=runs/pong
"""

import preamble  # noqa: F401

import argparse
import contextlib
import os
import sys
from typing import NamedTuple

from r2d2_acme.system import runtime
from r2d2_acme.workdir import (
  checkpoint_files,
  checkpointing,
  manifests,
  paths,
  replay_checkpoints,
)

_HEADER = ('name', 'steps', 'frames', 'mean return', 'MB', 'replay', 'state')


class _Row(NamedTuple):
  """A line of the table."""

  name: str
  steps: str = '-'
  frames: str = '-'
  mean_return: str = '-'
  size: str = '-'
  replay: str = '-'
  state: str = 'sound'


def main() -> int:
  args = _parse()
  try:
    rows = [
      *_learner_rows(args.workdir, args.verify),
      *_replay_rows(args.workdir, args.verify),
      *_manifest_rows(args.workdir),
    ]
  except checkpoint_files.CheckpointError as error:
    runtime.exit_with_error(str(error))
  if not rows:
    runtime.exit_with_error(
      f'there is no checkpoint in {paths.shown(args.workdir)}: give the --workdir of a '
      'run'
    )
  table = [_HEADER, *rows]
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  for row in table:
    cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
    print('  '.join(cells).rstrip())
  is_damaged = any(row.state.startswith('damaged') for row in rows)
  return int(args.verify and is_damaged)


def _learner_rows(workdir: str, thorough: bool) -> list[_Row]:
  by_name = {x.learner: x for x in manifests.read_sound(workdir).values()}
  best = checkpointing.read_best(workdir)
  rows = []
  for prefix in checkpointing.find_all(workdir):
    name = os.path.basename(prefix)
    manifest = by_name.get(name)
    row = _Row(name, size=_megabytes(checkpointing.files(prefix)))
    try:
      sums = manifest.files if manifest else {}
      checkpointing.check(prefix, sums, thorough=thorough)
      counts = manifest.counts if manifest else checkpointing.read_counts(prefix)
    except checkpoint_files.Damaged:
      rows.append(row._replace(state='damaged'))
      continue
    is_best = best is not None and best.checkpoint == name
    rows.append(
      row._replace(
        steps=f'{counts.get("learner_steps", 0):.0f}',
        frames=f'{counts.get("actor_frames", 0):.0f}',
        mean_return=_mean(manifest),
        replay=_newest_replays(manifest),
        state='sound, best' if is_best else 'sound',
      )
    )
  return rows


def _newest_replays(manifest: manifests.Manifest | None) -> str:
  """Returns the names of the newest checkpoint of each shard of the replay."""
  newest = {x.shard: x.name for x in reversed(manifest.replays)} if manifest else {}
  return ','.join(name for _, name in sorted(newest.items())) or '-'


def _mean(manifest: manifests.Manifest | None) -> str:
  if manifest is None or manifest.mean_return is None:
    return '-'
  return f'{manifest.mean_return:.1f}'


def _replay_rows(workdir: str, thorough: bool) -> list[_Row]:
  known = {x.name: x for x in replay_checkpoints.find_known(workdir)}
  rows = []
  for path in replay_checkpoints.find(workdir):
    name = os.path.basename(path)
    files = [os.path.join(path, file) for file in manifests.listed(path)]
    row = _Row(name, size=_megabytes(files))
    if name not in known:
      rows.append(row._replace(state='in no manifest'))
      continue
    try:
      replay_checkpoints.verify(workdir, known[name], thorough=thorough)
      rows.append(row)
    except checkpoint_files.Damaged:
      rows.append(row._replace(state='damaged'))
  return rows


def _manifest_rows(workdir: str) -> list[_Row]:
  sound = manifests.read_sound(workdir)
  return [
    _Row(os.path.basename(path), state='damaged')
    for path in manifests.find(workdir)
    if path not in sound
  ]


def _megabytes(files: list[str]) -> str:
  size = 0
  for file in files:
    with contextlib.suppress(FileNotFoundError):  # a running program deleted it
      size += os.path.getsize(file)
  return f'{size / 1e6:.1f}'


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
