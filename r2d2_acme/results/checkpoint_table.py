"""What checkpoints a workdir has, as rows of a table."""

import contextlib
import os
from collections.abc import Sequence
from typing import NamedTuple

from r2d2_acme.workdir import (
  checkpoint_files,
  checkpointing,
  manifests,
  replay_checkpoints,
)

HEADER = ('name', 'steps', 'frames', 'mean return', 'MB', 'replay', 'state')


class Row(NamedTuple):
  """A line of the table, of one checkpoint of learner or replay, or a manifest."""

  name: str
  steps: str = '-'
  frames: str = '-'
  mean_return: str = '-'
  size: str = '-'
  replay: str = '-'
  state: str = 'sound'


def read(workdir: str, thorough: bool) -> list[Row]:
  """Returns rows of the learner's and the replay's checkpoints and damaged manifests.

  Args:
    workdir: of a run.
    thorough: whether to read every byte, rather than sizes and headers.

  Raises:
    CheckpointError: the folder of the checkpoints cannot be read.
  """
  return [
    *_learner_rows(workdir, thorough),
    *_replay_rows(workdir, thorough),
    *_manifest_rows(workdir),
  ]


def aligned(rows: Sequence[Row]) -> list[str]:
  """Returns the lines of the table, each column as wide as its widest cell."""
  table = [HEADER, *rows]
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  return [
    '  '.join(
      cell.ljust(width) for cell, width in zip(row, widths, strict=True)
    ).rstrip()
    for row in table
  ]


def _learner_rows(workdir: str, thorough: bool) -> list[Row]:
  by_name = {x.learner: x for x in manifests.read_sound(workdir).values()}
  best = checkpointing.read_best(workdir)
  rows = []
  for prefix in checkpointing.find_all(workdir):
    name = os.path.basename(prefix)
    manifest = by_name.get(name)
    row = Row(name, size=_megabytes(checkpointing.files(prefix)))
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


def _replay_rows(workdir: str, thorough: bool) -> list[Row]:
  known = {x.name: x for x in replay_checkpoints.find_known(workdir)}
  rows = []
  for path in replay_checkpoints.find(workdir):
    name = os.path.basename(path)
    files = [os.path.join(path, file) for file in manifests.listed(path)]
    row = Row(name, size=_megabytes(files))
    if name not in known:
      rows.append(row._replace(state='in no manifest'))
      continue
    try:
      replay_checkpoints.verify(workdir, known[name], thorough=thorough)
      rows.append(row)
    except checkpoint_files.Damaged:
      rows.append(row._replace(state='damaged'))
  return rows


def _manifest_rows(workdir: str) -> list[Row]:
  sound = manifests.read_sound(workdir)
  return [
    Row(os.path.basename(path), state='damaged')
    for path in manifests.find(workdir)
    if path not in sound
  ]


def _megabytes(files: list[str]) -> str:
  size = 0
  for file in files:
    with contextlib.suppress(FileNotFoundError):  # a running program deleted it
      size += os.path.getsize(file)
  return f'{size / 1e6:.1f}'
