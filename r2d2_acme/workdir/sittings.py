"""Sittings, that is starts of a run in its workdir, and which log rows still count.

A program that starts again in a workdir resumes from a checkpoint. Rows that were
logged after that checkpoint do not count any more: their steps are not in the weights
and will be taken again. `<workdir>/logs/sittings.csv` has a line for each start with
the counts of its checkpoint. A start moves rows of earlier sittings beyond these counts
to `abandoned.csv`. Readers of the logs leave such rows out, too: an older version may
have left them where they were, or a disk was full.
"""

import contextlib
import fcntl
import functools
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from r2d2_acme.workdir import csv_files

_COUNTS = ('wall_time', 'actor_steps', 'actor_frames', 'learner_steps')
_HEADER = ','.join(('sitting', 'started_at', *_COUNTS))
_UNNUMBERED = -1  # the sitting of rows of older versions, which had no such column
_MAX_DIGITS = 9  # a longer number of a sitting is damage
# How far back in a log rows that do not count are looked for, beyond one that counts.
_MAX_SEARCH = 64 << 20  # bytes
_ABANDONED = 'abandoned.csv'


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
  for line in csv_files.read_lines(_path(workdir)):
    try:
      _, _, *texts = line.split(b',')
      counts = dict(zip(_COUNTS, map(float, texts), strict=True))
    except ValueError:
      continue  # the header
    number = _number(line)
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
  with contextlib.suppress(FileNotFoundError):
    os.replace(folder / _ABANDONED, folder / f'abandoned.{number}.csv')
  os.replace(folder / 'logs.csv', folder / f'logs.{number}.csv')


def abandon_rows(workdir: str, label: str):
  """Moves rows that do not count from a node's `logs.csv` to its `abandoned.csv`.

  Lines that are no rows are moved with them. After an error all rows are still in
  `logs.csv`.

  Raises:
    OSError: a file cannot be written.
  """
  folder = _logs(workdir) / label
  path, abandoned = folder / 'logs.csv', folder / _ABANDONED
  new = folder / 'logs.csv.new'
  csv_files.mend(path)
  names = _read_names(path)
  counts = _make_filter(workdir, label)

  def is_kept(line: bytes) -> bool:
    row = _parse(names, line)
    return row is not None and counts(row)

  first = _find_first(path, lambda line: not is_kept(line))
  if first is None:
    return
  try:
    csv_files.mend(abandoned)
    with (
      open(path, 'rb') as old,
      open(new, 'wb') as kept,
      open(abandoned, 'ab') as rest,
    ):
      header = old.readline()
      kept.write(header)
      rest.write(b'' if rest.tell() else header)
      position = len(header)
      for line in old:
        (kept if position < first or is_kept(line) else rest).write(line)
        position += len(line)
      for file in (kept, rest):
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
  except OSError as error:
    with contextlib.suppress(OSError):
      os.remove(new)
    raise OSError(error.errno, error.strerror, str(abandoned)) from error


def _find_first(path: pathlib.Path, is_wanted: Callable[[bytes], bool]) -> int | None:
  """Returns the position of the first wanted line after the header; None without one.

  What is wanted is expected at the end of the file. So the search ends at a line that
  is not wanted, once it has gone back by `_MAX_SEARCH`.
  """
  end = position = path.stat().st_size if path.exists() else 0
  first = None
  for line in csv_files.read_lines_backwards(path):
    position -= len(line)
    if not position:  # the header
      break
    if is_wanted(line):
      first = position
    elif end - position > _MAX_SEARCH:
      break
  return first


def _kept_rows(
  workdir: str, label: str, paths: Iterable[pathlib.Path], backwards: bool = False
) -> Iterator[dict[str, float]]:
  """Yields the rows of these files that count; see `read_rows`."""
  read_lines = csv_files.read_lines_backwards if backwards else csv_files.read_lines
  counts = _make_filter(workdir, label)
  for path in paths:
    names = _read_names(path)
    rows = (_parse(names, line) for line in read_lines(path))
    yield from (row for row in rows if row is not None and counts(row))


def _make_filter(workdir: str, label: str) -> Callable[[Mapping[str, float]], bool]:
  """Returns a function that says whether a row of a node counts; see `read_rows`."""
  sittings = read(workdir)
  steps = steps_key(label)
  # A checkpoint's learner steps are exactly those in its weights, but its other counts
  # may be up to a second older.
  axes = (steps,) if steps == 'learner_steps' else (steps, 'wall_time')

  @functools.cache
  def limits(number: float) -> dict[str, float]:
    later = [sitting.counts for sitting in sittings if sitting.number > number]
    return {axis: min(counts[axis] for counts in later) for axis in axes if later}

  def counts(row: Mapping[str, float]) -> bool:
    row_limits = limits(row.get('sitting', _UNNUMBERED))
    return all(row.get(axis, 0) <= limit for axis, limit in row_limits.items())

  return counts


def _read_names(path: pathlib.Path) -> list[str]:
  """Returns the names of a file's columns."""
  header = next(csv_files.read_lines(path), b'')
  return header.decode(errors='replace').strip().split(',')


def _parse(names: Sequence[str], line: bytes) -> dict[str, float] | None:
  """Returns a row by column; None for the header, or a row of another version."""
  try:
    return dict(zip(names, map(float, line.split(b',')), strict=True))
  except ValueError:
    return None


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


def _number(line: bytes) -> int:
  """Returns the number of the sitting in a line, or `_UNNUMBERED`."""
  first = line.partition(b',')[0]
  is_number = first.isdigit() and len(first) <= _MAX_DIGITS
  return int(first) if is_number else _UNNUMBERED


def _path(workdir: str) -> pathlib.Path:
  return _logs(workdir) / 'sittings.csv'


def _logs(workdir: str) -> pathlib.Path:
  return pathlib.Path(workdir, 'logs')
