"""Loggers that write to the terminal, to CSV and to TensorBoard, in one workdir."""

import math
import operator
import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from acme.utils import counting, loggers

from r2d2_acme.workdir import csv_files, event_files, paths, sittings
from r2d2_acme.workdir.write_errors import WriteErrors

_TERMINAL_PERIOD = 10.0  # seconds between rows
_COUNTS = ('actor_steps', 'actor_frames', 'learner_steps', 'wall_time', 'sitting')

# Columns that a node counts from 0 at its start, and the log from the run's start.
_TALLIES = ('environment_failures', 'bad_batches')
# The columns are fixed, so that a resumed run appends to the same ones.
COLUMNS = {
  'learner': (
    'loss',
    'gradient_norm',
    'mean_abs_td',
    'max_abs_td',
    'mean_priority',
    'mean_q',
    'max_q',
    'parameter_age',
    'delta_q_initial',
    'delta_q_final',
    'replay_size',
    'sampled_to_inserted',
    'bad_batches',
    'failed_saves',
    'steps_per_second',
    *_COUNTS,
  ),
  'actor': (
    'episode_return',
    'episode_length',
    'epsilon',
    'steps_per_second',
    'environment_failures',
    'actor_episodes',
    *_COUNTS,
  ),
  'evaluator': (
    'episode_return',
    'episode_length',
    'is_cut',
    'environment_failures',
    'evaluator_episodes',
    *_COUNTS,
  ),
  # The launcher's: how often nodes were started again in this sitting.
  'supervisor': (
    'replay_restarts',
    'learner_restarts',
    'cacher_restarts',
    'actor_restarts',
    'evaluator_restarts',
    *_COUNTS,
  ),
}


def begin_sitting(workdir: str | None, counts: Mapping[str, float]) -> int:
  """Begins a sitting, see `sittings.begin`, in the CSV logs and in TensorBoard.

  Rows that do not count any more move to `abandoned.csv`, and TensorBoard no longer
  shows them. Where that cannot be written, a line on stderr says so.

  Returns:
    The sitting's number, for `make_logger`.

  Raises:
    OSError: the list of sittings cannot be written.
  """
  workdir = workdir and paths.resolve(workdir)
  sitting = sittings.begin(workdir, counts)
  if workdir is not None:
    errors = WriteErrors('rows that do not count any more stay in the logs')
    for label in sittings.read_labels(workdir):
      with errors.reported():
        sittings.abandon_rows(workdir, label)
      with errors.reported():
        event_files.go_back(
          os.path.join(workdir, 'tb', label),
          label,
          sittings.steps_key(label),
          sittings.read_last_row(workdir, label),
        )
  return sitting.number


def label(role: str, index: int = 0) -> str:
  """Returns the name of a node's logs: `actor` for index 0, `actor_1` for index 1."""
  return f'{role}_{index}' if index else role


def make_logger(
  workdir: str | None, role: str, index: int = 0, *, sitting: int | None = None
) -> loggers.Logger:
  """Makes the logger of a node.

  All rows go to `<workdir>/logs/<label>/logs.csv` and `<workdir>/tb/<label>`, and those
  of the evaluator to the terminal, too; of the others the terminal gets one every ten
  seconds. Without a workdir there is the terminal only.

  A row that cannot be written, for example on a full disk, is lost, and a line on
  stderr says so. Rows that repeat steps are dropped, see `_InOrder`.

  Args:
    workdir: of the run.
    role: 'learner', 'actor' or 'evaluator'; it decides the columns.
    index: of the node among those of its role.
    sitting: the number that each row gets; by default that of the newest sitting.
  """
  name = label(role, index)
  terminal: loggers.Logger = loggers.TerminalLogger(name, print_fn=print)
  if role != 'evaluator':
    terminal = loggers.TimeFilter(terminal, time_delta=_TERMINAL_PERIOD)
  to = [terminal]
  last_row = None
  if workdir is not None:
    workdir = paths.resolve(workdir)
    if sitting is None:
      sitting = max((begun.number for begun in sittings.read(workdir)), default=0)
    errors = WriteErrors('training goes on, rows are lost until it can be written')
    with errors.reported():
      _prepare_files(workdir, name, COLUMNS[role])
    last_row = sittings.read_last_row(workdir, name)
    path = os.path.join(workdir, 'logs', name, 'logs.csv')
    folder = os.path.join(workdir, 'tb', name)
    to += [
      _Tolerant(csv_files.CsvLogger(path, COLUMNS[role]), errors),
      _Tolerant(
        event_files.EventLogger(folder, name, sittings.steps_key(name)), errors
      ),
    ]
  to_all = loggers.Dispatcher(to, loggers.to_numpy)
  last_row = last_row or {}
  in_order = _InOrder(to_all, name, last_row)
  earlier = {name: int(np.nan_to_num(last_row.get(name, 0))) for name in _TALLIES}
  return _FixedColumns(in_order, COLUMNS[role], {'sitting': sitting or 0}, earlier)


def _prepare_files(workdir: str, label: str, columns: Sequence[str]):
  """Makes a node's folders, and sets aside a log of other columns.

  Such a log is from another version. The loggers make no folder later: one that has
  vanished may be the place of a disk that will come back.
  """
  for kind in ('logs', 'tb'):
    os.makedirs(os.path.join(workdir, kind, label), exist_ok=True)
  path = os.path.join(workdir, 'logs', label, 'logs.csv')
  csv_files.mend(path)
  header = next(csv_files.read_lines(path), b'').rstrip(b'\r\n')
  if header and header != ','.join(sorted(columns)).encode():
    sittings.set_log_aside(workdir, label)


class _Tolerant(loggers.Logger):
  """Passes rows on to a logger that writes files; its errors lose the row."""

  def __init__(self, to: loggers.Logger, errors: WriteErrors):
    """Passes rows on to `to`, and reports its errors to `errors`."""
    self._to = to
    self._errors = errors

  def write(self, values: Mapping[str, Any]):
    with self._errors.reported():
      self._to.write(values)

  def close(self):
    with self._errors.reported():
      self._to.close()


class _InOrder(loggers.Logger):
  """Passes rows on whose steps do not lie behind those of the last row.

  A learner that restarts goes back to its last checkpoint and repeats some steps. Its
  rows, and the evaluator's with parameters of these steps, are dropped until they go
  beyond what was logged. The learner logs no step twice.
  """

  def __init__(self, to: loggers.Logger, label: str, last_row: Mapping[str, float]):
    """Passes rows on to `to`.

    Args:
      to: a logger of rows that have all columns.
      label: of the node.
      last_row: the last one of the node's log that counts; empty without one.
    """
    self._to = to
    self._label = label
    names = {
      'learner': ('learner_steps',),
      'actor': ('learner_steps', 'actor_steps'),
      'evaluator': ('learner_steps', 'actor_steps'),
    }.get(label.partition('_')[0], ())
    self._last = {name: last_row.get(name, -math.inf) for name in names}
    self._is_behind = operator.le if label.startswith('learner') else operator.lt
    self._is_dropping = False

  def write(self, values: Mapping[str, Any]):
    steps = {name: values[name] for name in self._last}
    behind = [x for x, last in self._last.items() if self._is_behind(steps[x], last)]
    if not behind:
      self._last = steps
      self._to.write(values)
    elif not self._is_dropping:
      unit = behind[0].removesuffix('s').replace('_', ' ')
      print(
        f'{self._label} repeats steps after a restart; rows are logged again from '
        f'{unit} {self._last[behind[0]]:.0f} on',
        flush=True,
      )
    self._is_dropping = bool(behind)

  def close(self):
    self._to.close()


class _FixedColumns(loggers.Logger):
  """Passes on the same columns in every row; those without a value are 0.

  Any thread may call it. Rows that come after `close` are dropped: at a stop a thread
  of a node may still work while its main thread closes the log.
  """

  def __init__(
    self,
    to: loggers.Logger,
    columns: Sequence[str],
    constants: Mapping[str, Any],
    earlier: Mapping[str, int],
  ):
    """Passes rows on to `to`.

    Args:
      to: a logger of rows that have all columns.
      columns: of each row.
      constants: the values of some columns in each row.
      earlier: what is added to the values of some columns.
    """
    self._to = to
    self._columns = columns
    self._constants = constants
    self._earlier = earlier
    self._lock = threading.Lock()
    self._is_closed = False

  def write(self, values: Mapping[str, Any]):
    values = {**values, **self._constants}
    row = {column: values.get(column, 0) for column in self._columns}
    for column in row.keys() & self._earlier:
      row[column] += self._earlier[column]
    with self._lock:
      if not self._is_closed:
        self._to.write(row)

  def close(self):
    with self._lock:
      self._is_closed = True
      self._to.close()


def is_at_limit(
  counts: Mapping[str, float], limits: Mapping[str, float | None]
) -> bool:
  """Returns whether a count has reached its limit; None stands for no limit."""
  return any(
    limit is not None and counts.get(name, 0) >= limit for name, limit in limits.items()
  )


class WallTimeCounter(counting.Counter):
  """The root counter, which also counts `wall_time`: seconds over all sittings."""

  def __init__(self, counts: Mapping[str, float] | None = None):
    """Starts from `counts`, those of the checkpoint that the run resumes from."""
    super().__init__()
    self._started = time.monotonic()  # nobody can set this clock back
    self.increment(**(counts or {}))

  def get_counts(self):
    counts = super().get_counts()
    elapsed = time.monotonic() - self._started
    return {**counts, 'wall_time': counts.get('wall_time', 0.0) + elapsed}
