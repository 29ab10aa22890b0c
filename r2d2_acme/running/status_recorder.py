"""Writes `status.json` while a program runs, from what its nodes add to their logs."""

import collections
import contextlib
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence

from r2d2_acme.running.workers import Worker, is_failed
from r2d2_acme.workdir import checkpointing, description, locking, loggers, sittings
from r2d2_acme.workdir import status as status_lib
from r2d2_acme.workdir.write_errors import WriteErrors

_PERIOD = 1.0  # seconds
_RATE_PERIOD = 60.0  # seconds
_MAX_RATE_ROWS = 1000  # of a node in that time
_MIN_RATE_SECONDS = 2.0
_MAX_ROW_SIZE = 64 << 10  # bytes
_NUM_RETURNS = 10  # of the evaluator
_COUNTS = (
  *('actor_steps', 'actor_frames', 'actor_episodes'),
  *('learner_steps', 'evaluator_episodes', 'wall_time'),
)
_RATES = ('actor_steps', 'learner_steps')
_REPLAY = {'replay_size': 'size', 'sampled_to_inserted': 'sampled_to_inserted'}


class Recorder:
  """Keeps the status of a program, and its file, up to date.

  Attributes:
    workdir: of the program.
    status: how the program is doing. Each update replaces it: any thread may read it.
  """

  def __init__(
    self,
    workdir: str,
    output_dir: str,
    launch_type: str,
    limits: Mapping[str, int | None],
    workers: Sequence[Worker],
  ):
    """Writes the first status, and keeps other programs out of the workdir.

    Args:
      workdir: where the nodes keep their logs.
      output_dir: where they print to, if they do: a file for each.
      launch_type: as the status has it.
      limits: of counts such as 'actor_steps'; None where there is none.
      workers: all nodes, started or not.

    Raises:
      WorkdirInUse: another program runs there.
      OSError: there can be no such folder.
    """
    locking.hold_program(workdir)
    status_lib.remove(workdir)  # even if no other can be written
    self.workdir = workdir
    self._workers = workers
    self._next_time = 0.0
    self._errors = WriteErrors('training goes on, the file is no longer up to date')
    self._logs = {
      worker.name: _Log(_log_path(workdir, worker.name)) for worker in workers
    }
    self._outputs = {worker.name: f'{output_dir}/{worker.name}' for worker in workers}
    self._launch_type = launch_type
    self._restarts: collections.Counter[str] = collections.Counter()
    self._limits = {name: int(x) for name, x in limits.items() if x is not None}
    self._started_at = time.time()
    self._counts = _counts_at_start(workdir)
    self._replay = _replay_of_config(workdir)
    before = sittings.read_rows(workdir, 'evaluator', ('episode_return',))
    self._returns = collections.deque(before[:, 0].tolist(), maxlen=_NUM_RETURNS)
    self.update()

  def update(self):
    """Brings the status and its file up to date, if they are a second old.

    A file that cannot be written, for example on a full disk, stays as it is, and a
    line on stderr says so.
    """
    if time.monotonic() >= self._next_time:
      self._next_time = time.monotonic() + _PERIOD
      self._update()

  def record_restart(self, worker: Worker):
    """Logs that a worker was started again: the number of restarts, by role."""
    self._restarts[f'{worker.name.split("/")[0]}_restarts'] += 1
    logger = loggers.make_logger(self.workdir, 'supervisor')
    logger.write({**self._restarts, **self._counts})
    logger.close()

  @property
  def write_error(self) -> str:
    """The line that says why the file could not be written last; '' if it could."""
    return self._errors.last

  def close(self, exit_code: int, message: str):
    """Records how the program has ended."""
    if exit_code == 0:  # the last rows are some seconds older than the last save
      with contextlib.suppress(checkpointing.CheckpointError, OSError):
        for prefix in checkpointing.find(self.workdir)[-1:]:
          self._count(checkpointing.read_counts(prefix))
    self._update(exit_code, message)

  def _update(self, exit_code: int | None = None, message: str = ''):
    for name, log in self._logs.items():
      for row in log.new_rows():
        self._count(row)
        self._replay |= {key: row[x] for x, key in _REPLAY.items() if x in row}
        if name.startswith('evaluator/') and 'episode_return' in row:
          self._returns.append(row['episode_return'])
    self.status = status_lib.Status(
      launch_type=self._launch_type,
      started_at=self._started_at,
      written_at=time.time(),
      exit_code=exit_code,
      message=message,
      limits=self._limits,
      counts=dict(self._counts),
      rates=self._rates(),
      replay=dict(self._replay),
      evaluator_returns=list(self._returns),
      nodes=self._nodes(exit_code is not None),
    )
    with self._errors.reported():
      status_lib.write(self.workdir, self.status)

  def _count(self, row: Mapping[str, float]):
    for name in _COUNTS:
      if name in row:
        count = float(row[name])
        count = int(count) if count.is_integer() else count
        # Rows of different nodes are not in order.
        self._counts[name] = max(count, self._counts.get(name, 0))

  def _rates(self) -> dict[str, float]:
    """Returns steps per second, from the learner's rows once there are some."""
    logs = sorted(self._logs.items(), key=lambda item: item[0] != 'learner/0')
    rates = (log.rates() for _, log in logs)
    return next(filter(None, rates), {})

  def _nodes(self, has_ended: bool) -> dict[str, status_lib.Node]:
    logged_at = {name: log.grown_at for name, log in self._logs.items()}
    nodes = {}
    for worker in self._workers:
      if worker.name.split('/')[0] in loggers.COLUMNS:
        first_at = logged_at[worker.name]
      else:  # such as the replay: it serves the others
        first_at = max(logged_at.values())
      grown_at = _grown_at(self._outputs[worker.name])
      seconds = time.time() - max(first_at, grown_at, self._started_at)
      has_progressed = bool(first_at)
      if worker.heartbeat is not None and worker.heartbeat.is_announced:
        has_progressed = worker.heartbeat.has_beaten
        seconds = worker.heartbeat.seconds_since
      state = _state(worker, has_ended)
      nodes[worker.name] = status_lib.Node(
        pid=worker.pid,
        state='starting' if state == 'running' and not has_progressed else state,
        restarts=max(0, worker.num_starts - 1),
        seconds_since_progress=max(0.0, seconds),
        host=worker.host,
      )
    return nodes


class _Log:
  """The rows that a node adds to its `logs.csv` from now on.

  Attributes:
    grown_at: when the last one was added, in seconds since 1970; 0 if none was.
  """

  def __init__(self, path: str):
    self.grown_at = 0.0
    self._path = path
    self._position = _end_of_rows(path)
    self._recent: collections.deque[tuple[float, dict[str, float]]] = collections.deque(
      maxlen=_MAX_RATE_ROWS
    )

  def new_rows(self) -> Iterator[dict[str, float]]:
    """Yields the whole rows that were added since the last call.

    What is not a finite number is left out of a row.
    """
    # A node that starts may begin a new file, with other columns.
    self._position = min(self._position, _size(self._path))
    try:
      with open(self._path, 'rb') as file:
        names = file.readline().decode(errors='replace').strip().split(',')
        file.seek(self._position)
        data = file.read()
    except OSError:
      return
    whole, newline, _ = data.rpartition(b'\n')
    self._position += len(whole) + len(newline)
    for line in whole.decode(errors='replace').splitlines():
      try:
        values = map(float, line.split(','))
        row = dict(zip(names, values, strict=True))
      except ValueError:
        continue  # the header
      self.grown_at = time.time()
      self._recent.append((self.grown_at, row))
      yield {name: x for name, x in row.items() if math.isfinite(x)}

  def rates(self) -> dict[str, float]:
    """Returns steps per second of the whole program; empty if too few rows are new."""
    while self._recent and self._recent[0][0] < time.time() - _RATE_PERIOD:
      self._recent.popleft()
    if not self._recent:
      return {}
    (_, first), (_, last) = self._recent[0], self._recent[-1]
    seconds = last.get('wall_time', 0.0) - first.get('wall_time', 0.0)
    if seconds < _MIN_RATE_SECONDS:
      return {}
    return {x: (last.get(x, 0) - first.get(x, 0)) / seconds for x in _RATES}


def _state(worker: Worker, has_ended: bool) -> str:
  if not worker.num_starts:  # it may never be, if the program is stopped before
    return 'ended' if has_ended else 'starting'
  if worker.poll() is None:
    return 'stopping' if worker.is_asked else 'running'
  return 'failed' if is_failed(worker) else 'ended'


def _log_path(workdir: str, node: str) -> str:
  role, _, index = node.rpartition('/')
  return os.path.join(workdir, 'logs', loggers.label(role, int(index)), 'logs.csv')


def _end_of_rows(path: str) -> int:
  """Returns where the last whole line ends: the next node cuts off what comes after."""
  try:
    with open(path, 'rb') as file:
      start = max(0, file.seek(0, os.SEEK_END) - _MAX_ROW_SIZE)
      file.seek(start)
      return start + file.read().rfind(b'\n') + 1
  except OSError:
    return 0


def _size(path: str) -> int:
  try:
    return os.path.getsize(path)
  except OSError:
    return 0


def _grown_at(path: str) -> float:
  """Returns when an output that is made anew at each start last grew; 0 if never."""
  try:
    return os.path.getmtime(path) if os.path.getsize(path) else 0.0
  except OSError:
    return 0.0


def _counts_at_start(workdir: str) -> dict[str, float]:
  """Returns the counts of the checkpoint that the program goes on from."""
  begun = sittings.read(workdir)[-1:]
  counts = begun[0].counts if begun else {}
  return {name: x for name, x in counts.items() if math.isfinite(x)}


def _replay_of_config(workdir: str) -> dict[str, float]:
  with contextlib.suppress(description.BadDescription):
    config = description.read(workdir).get('config', {})
    names = {'max_replay_size': 'max_size', 'min_replay_size': 'min_size'}
    return {key: config[name] for name, key in names.items() if name in config}
  return {}
