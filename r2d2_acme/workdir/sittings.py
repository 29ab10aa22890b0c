"""Sittings, that is starts of a run in its workdir, and which log rows still count.

A program that starts again in a workdir resumes from a checkpoint. Rows that were
logged after that checkpoint do not count any more: their steps are not in the weights
and will be taken again. `<workdir>/logs/sittings.csv` has a line for each start with
the counts of its checkpoint. Readers of the logs leave out the rows of earlier sittings
beyond these counts.
"""

import fcntl
import functools
import math
import os
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

_COUNTS = ('wall_time', 'actor_steps', 'actor_frames', 'learner_steps')
_HEADER = ','.join(('sitting', 'started_at', *_COUNTS))
_UNNUMBERED = -1  # the sitting of rows of older versions, which had no such column
_MAX_DIGITS = 9  # a longer number of a sitting is damage


class Sitting(NamedTuple):
  """One start of a run.

  Attributes:
    number: from 0 on, unique in a workdir.
    counts: the counts of the checkpoint that it resumed from. They are zeros without a
      checkpoint, and infinity for a count that the checkpoint lacks.
  """

  number: int
  counts: Mapping[str, float]


def begin(workdir: str | None, counts: Mapping[str, float]) -> Sitting:
  """Gives a start its number and appends it to `<workdir>/logs/sittings.csv`.

  Args:
    workdir: of the run. If it is None, nothing is written and the number is 0.
    counts: of the checkpoint that the run resumes from; empty without one.

  Raises:
    OSError: the file cannot be written.
  """
  uncounted = math.inf if counts else 0
  counts = {name: counts.get(name, uncounted) for name in _COUNTS}
  if workdir is None:
    return Sitting(0, counts)
  path = _path(workdir)
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, 'a+b') as file:
    fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
    file.seek(0)
    *lines, half = file.read().split(b'\n')
    # A line without its end could be read as one with smaller counts.
    file.truncate(file.tell() - len(half))
    numbers = map(_number, [*lines, half])
    sitting = Sitting(max(numbers, default=_UNNUMBERED) + 1, counts)
    now = time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())
    line = ','.join(map(str, (sitting.number, now, *counts.values())))
    file.write('\n'.join([*([] if lines else [_HEADER]), line, '']).encode())
    file.flush()
    os.fsync(file.fileno())
  return sitting


def read(workdir: str) -> list[Sitting]:
  """Returns the sittings of a workdir, oldest first; none if it has no such file."""
  sittings = []
  for line in _whole_lines(_path(workdir)):
    try:
      _, _, *texts = line.split(',')
      counts = dict(zip(_COUNTS, map(float, texts), strict=True))
    except ValueError:
      continue  # the header
    number = _number(line.encode())
    if number != _UNNUMBERED and not any(map(math.isnan, counts.values())):
      sittings.append(Sitting(number, counts))
  return sorted(sittings, key=lambda sitting: sitting.number)


def steps_key(label: str) -> str:
  """Returns the column that is the x-axis of a node's rows."""
  return 'learner_steps' if label.startswith('learner') else 'actor_steps'


def read_labels(workdir: str) -> list[str]:
  """Returns the names of the nodes that have logs in a workdir."""
  return sorted({path.parent.name for path in _logs(workdir).glob('*/logs*.csv')})


def read_rows(workdir: str, label: str, columns: Sequence[str]) -> np.ndarray:
  """Reads the rows of a node's log that count, in the order of writing.

  A row does not count if it was logged after the checkpoint that a later sitting
  resumed from. This is so if its `learner_steps` are larger than that sitting's; for
  nodes other than the learner, if its `actor_steps` or `wall_time` are. Rows of older
  versions have no `sitting`. There, a row with fewer `actor_frames` than the rows
  before it shows that the program went back.

  Args:
    workdir: of the run, which may be running. A line without its end is left out.
    label: the name of the node's log, such as `actor_1`.
    columns: the columns to read. Rows that lack one of them are left out.

  Returns:
    Float64 [N, len(columns)].
  """
  rows: list[tuple[float, ...]] = []
  frames: list[float] = []
  for row in _kept_rows(workdir, label, _files(workdir, label)):
    if not row.keys() >= set(columns):
      continue
    now = row.get('actor_frames', 0.0)
    while 'sitting' not in row and frames and frames[-1] > now:
      frames.pop()
      rows.pop()
    frames.append(now)
    rows.append(tuple(row[column] for column in columns))
  return np.array(rows, np.float64).reshape(-1, len(columns))


def read_last_row(workdir: str, label: str) -> dict[str, float] | None:
  """Returns the last row of a node's log that counts, by column; None if none does."""
  files = reversed(_files(workdir, label))
  rows = _kept_rows(workdir, label, files, backwards=True)
  return next((row for row in rows if steps_key(label) in row), None)


def set_log_aside(workdir: str, label: str):
  """Renames a node's `logs.csv` to `logs.<i>.csv`, which is read before a new one."""
  number = max(_set_aside(workdir, label), default=-1) + 1
  folder = _logs(workdir) / label
  os.replace(folder / 'logs.csv', folder / f'logs.{number}.csv')


def _kept_rows(
  workdir: str, label: str, paths: Iterable[pathlib.Path], backwards: bool = False
) -> Iterator[dict[str, float]]:
  """Yields the rows of these files that count; see `read_rows`."""
  sittings = read(workdir)
  steps = steps_key(label)
  # A checkpoint's learner steps are exactly those in its weights, but its other counts
  # may be up to a second older.
  axes = (steps,) if steps == 'learner_steps' else (steps, 'wall_time')

  @functools.cache
  def limits(number: float) -> dict[str, float]:
    later = [sitting.counts for sitting in sittings if sitting.number > number]
    return {axis: min(counts[axis] for counts in later) for axis in axes if later}

  for path in paths:
    header, *lines = _whole_lines(path) or ['']
    names = header.split(',')
    for line in reversed(lines) if backwards else lines:
      try:
        row = dict(zip(names, map(float, line.split(',')), strict=True))
      except ValueError:
        continue  # a row of a killed process or of another version
      row_limits = limits(row.get('sitting', _UNNUMBERED))
      if all(row.get(axis, 0) <= limit for axis, limit in row_limits.items()):
        yield row


def _files(workdir: str, label: str) -> list[pathlib.Path]:
  """Returns the files of a node's log, oldest first."""
  folder = _logs(workdir) / label
  numbers = sorted(_set_aside(workdir, label))
  return [*(folder / f'logs.{i}.csv' for i in numbers), folder / 'logs.csv']


def _set_aside(workdir: str, label: str) -> list[int]:
  """Returns the numbers of the files that `set_log_aside` made."""
  files = (_logs(workdir) / label).glob('logs.*.csv')
  names = [path.name.split('.')[1] for path in files]
  return [int(name) for name in names if name.isdecimal()]


def _whole_lines(path: pathlib.Path) -> list[str]:
  """Returns the lines of a file that have an end; none if there is no file."""
  try:
    *lines, _ = path.read_bytes().split(b'\n')
  except FileNotFoundError:
    return []
  return [line.decode(errors='replace').rstrip('\r') for line in lines]


def _number(line: bytes) -> int:
  """Returns the number of the sitting in a line, or `_UNNUMBERED`."""
  first = line.partition(b',')[0]
  is_number = first.isdigit() and len(first) <= _MAX_DIGITS
  return int(first) if is_number else _UNNUMBERED


def _path(workdir: str) -> pathlib.Path:
  return _logs(workdir) / 'sittings.csv'


def _logs(workdir: str) -> pathlib.Path:
  return pathlib.Path(workdir, 'logs')
