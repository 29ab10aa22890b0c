"""Loggers that write to the terminal, to CSV and to TensorBoard, in one workdir."""

import mmap
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from acme.utils import counting, loggers

from r2d2_acme.workdir import event_files, paths, sittings

_TERMINAL_PERIOD = 10.0  # seconds between rows
_COUNTS = ('actor_steps', 'actor_frames', 'learner_steps', 'wall_time', 'sitting')

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
    'failed_saves',
    'steps_per_second',
    *_COUNTS,
  ),
  'actor': (
    'episode_return',
    'episode_length',
    'epsilon',
    'steps_per_second',
    'actor_episodes',
    *_COUNTS,
  ),
  'evaluator': (
    'episode_return',
    'episode_length',
    'is_cut',
    'evaluator_episodes',
    *_COUNTS,
  ),
}


def begin_sitting(workdir: str | None, counts: Mapping[str, float]) -> int:
  """Begins a sitting, see `sittings.begin`, in the CSV logs and in TensorBoard.

  TensorBoard then no longer shows the rows that do not count any more.

  Returns:
    The sitting's number, for `make_logger`.

  Raises:
    OSError: the workdir cannot be written.
  """
  workdir = workdir and paths.resolve(workdir)
  sitting = sittings.begin(workdir, counts)
  if workdir is not None:
    for label in sittings.read_labels(workdir):
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
  if workdir is not None:
    workdir = paths.resolve(workdir)
    if sitting is None:
      sitting = max((begun.number for begun in sittings.read(workdir)), default=0)
    _mend_log(workdir, name, COLUMNS[role])
    to.append(loggers.CSVLogger(workdir, label=name, add_uid=False, flush_every=1))
    folder = os.path.join(workdir, 'tb', name)
    to.append(event_files.EventLogger(folder, name, sittings.steps_key(name)))
  to_all = loggers.Dispatcher(to, loggers.to_numpy)
  return _FixedColumns(to_all, COLUMNS[role], {'sitting': sitting or 0})


def _mend_log(workdir: str, label: str, columns: Sequence[str]):
  """Prepares a CSV log for more rows of these columns.

  Acme's logger appends rows without checking the file. A killed process may have left a
  last line without its end. It is removed, or the next row would continue it. A log
  with other columns, from another version, is set aside.
  """
  path = os.path.join(workdir, 'logs', label, 'logs.csv')
  if not os.path.exists(path) or not os.path.getsize(path):
    return
  with open(path, 'r+b') as file:
    header = file.readline()
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
      end = content.rfind(b'\n') + 1
    file.truncate(end)
  if end and header.rstrip(b'\r\n') != ','.join(sorted(columns)).encode():
    sittings.set_log_aside(workdir, label)


class _FixedColumns(loggers.Logger):
  """Passes on the same columns in every row; those without a value are 0."""

  def __init__(
    self, to: loggers.Logger, columns: Sequence[str], constants: Mapping[str, Any]
  ):
    """Passes rows on to `to`, with these `constants` in each of them."""
    self._to = to
    self._columns = columns
    self._constants = constants

  def write(self, values: Mapping[str, Any]):
    values = {**values, **self._constants}
    self._to.write({column: values.get(column, 0) for column in self._columns})

  def close(self):
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
