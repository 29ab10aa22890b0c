"""What a run has added to its workdir since a tracker has seen it.

The process that looks stays small, so nothing here imports TensorFlow.
"""

import dataclasses
import glob
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from r2d2_acme.workdir import json_files

_MAX_BYTES = 1 << 20  # of a log that are read at once
_MAX_ROWS = 100  # of those that are read at once; others between them are left out
_VIDEO = re.compile(r'evaluator_(\d+)\.gif')


@dataclasses.dataclass(frozen=True)
class Seen:
  """What a tracker has got of a run, kept in the workdir's `tracking.json`.

  Attributes:
    run: the tracker's own name of the run; '' before there is one.
    positions: bytes of each node's log.
    videos: names of files.
    best: the content of `best.json`.
  """

  run: str = ''
  positions: Mapping[str, int] = dataclasses.field(default_factory=dict)
  videos: Sequence[str] = ()
  best: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @classmethod
  def read(cls, workdir: str, kind: str) -> 'Seen':
    """Reads what a tracker has seen; nothing if the file is missing or damaged."""
    try:
      seen = cls(**_read(workdir)[kind])
      positions = {str(label): int(x) for label, x in dict(seen.positions).items()}
      return dataclasses.replace(
        seen,
        run=str(seen.run),
        positions=positions,
        videos=[str(name) for name in seen.videos],
        best=dict(seen.best),
      )
    except (OSError, *json_files.NOT_OURS):
      return cls()

  def write(self, workdir: str, kind: str):
    """Writes this beside what other trackers have seen.

    Raises:
      OSError: the file cannot be written.
    """
    try:
      others = dict(_read(workdir))
    except (OSError, *json_files.NOT_OURS):
      others = {}
    content = {**others, kind: dataclasses.asdict(self)}
    json_files.write(_path(workdir), content, durable=False)

  def clipped(self, workdir: str) -> 'Seen':
    """Returns this without positions beyond the ends of logs, which get shorter when
    their run goes back to a checkpoint.
    """
    positions = {
      label: min(position, _size(_log(workdir, label)))
      for label, position in self.positions.items()
    }
    return dataclasses.replace(self, positions=positions)


def new_rows(
  workdir: str, seen: Seen
) -> Iterator[tuple[str, list[dict[str, float]], int]]:
  """Yields the label of each log that has grown, new rows, and the position after them.

  If there are more than `_MAX_ROWS`, they are a part of the rows, evenly spaced.
  """
  for path in sorted(glob.glob(_log(glob.escape(workdir), '*'))):
    label = os.path.basename(os.path.dirname(path))
    position = min(seen.positions.get(label, 0), _size(path))
    with open(path, 'rb') as file:
      names = file.readline().decode(errors='replace').strip().split(',')
      file.seek(max(position, file.tell()))
      start = file.tell()
      data = file.read(_MAX_BYTES)
    whole = data[: data.rfind(b'\n') + 1]
    if whole:
      lines = whole.decode(errors='replace').splitlines()
      lines = lines[:: -(-len(lines) // _MAX_ROWS)]
      yield label, [*_parse(names, lines)], start + len(whole)


def axis(label: str) -> str:
  """Returns the column that is the x-axis of a node's rows."""
  return 'learner_steps' if label.startswith('learner') else 'actor_steps'


def new_videos(workdir: str, seen: Seen) -> Iterator[tuple[str, int]]:
  """Yields the paths of the evaluator's new videos, and their actor steps."""
  folder = os.path.join(workdir, 'videos')
  names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
  for name in names:
    match = _VIDEO.fullmatch(name)
    if match and name not in seen.videos:
      yield os.path.join(folder, name), int(match[1])


def new_best(workdir: str, seen: Seen) -> tuple[Mapping[str, Any], list[str]] | None:
  """Returns what `best.json` says and the checkpoint's files, if they are new."""
  folder = os.path.join(workdir, 'checkpoints', 'learner')
  path = os.path.join(folder, 'best.json')
  try:
    with open(path) as file:
      best = dict(json_files.parse(file.read()))
    prefix = os.path.join(glob.escape(folder), glob.escape(best['checkpoint']))
  except (OSError, *json_files.NOT_OURS):
    return None
  files = sorted(glob.glob(f'{prefix}.index') + glob.glob(f'{prefix}.data-*'))
  return (best, [path, *files]) if files and best != seen.best else None


def _parse(names: Sequence[str], lines: Sequence[str]) -> Iterator[dict[str, float]]:
  for line in lines:
    try:
      yield dict(zip(names, map(float, line.split(',')), strict=True))
    except ValueError:
      continue  # damaged


def _read(workdir: str) -> Any:
  with open(_path(workdir)) as file:
    return json.load(file)


def _path(workdir: str) -> str:
  return os.path.join(workdir, 'tracking.json')


def _log(workdir: str, label: str) -> str:
  return os.path.join(workdir, 'logs', label, 'logs.csv')


def _size(path: str) -> int:
  return os.path.getsize(path) if os.path.exists(path) else 0
