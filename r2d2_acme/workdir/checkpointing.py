"""Checkpoints: saves the learner, finds checkpoints and restores them.

A checkpoint holds both networks, the optimizer, the program's counts and the
evaluator's last returns, so that all of them resume from the same moment. Its files are
`<workdir>/checkpoints/learner/ckpt-<number>.*`. Beside them, `best.json` names the
checkpoint with the best evaluator returns.
"""

import collections
import contextlib
import errno
import json
import math
import os
import re
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import sonnet as snt
import tensorflow as tf

from r2d2_acme.config import R2D2Config
from r2d2_acme.learning.learner import R2D2Learner
from r2d2_acme.workdir import paths

BEST = 'best'  # the name that stands for the best checkpoint

_BEST_FILE = 'best.json'
_UNFINISHED = 'unfinished'  # the folder of the checkpoint that is being written
_INDEX = re.compile(r'ckpt-(0|[1-9][0-9]*)\.index')
_READ_ATTEMPTS = 3
_READ_PAUSE = 0.5  # seconds
_SECONDS_PER_HOUR = 3600
_OTHER_VERSION = (
  'it was written by another version of r2d2_acme; continue with that one, or start in '
  'another --workdir'
)
_OTHER_CONFIG = (
  'it was written with another config or environment, or by another version of '
  'r2d2_acme; continue with those, or start in another --workdir'
)
# Errors of the system for which an intact file cannot be read or written.
_SYSTEM_ERRORS = (
  *(errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR),
  *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE),
  *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
)


class CheckpointError(ValueError):
  """A checkpoint cannot be read, restored or saved; one line that names the cure."""


class _Damaged(CheckpointError):
  """The bytes of a checkpoint are not those that were written."""


class _Best(NamedTuple):
  """The content of `best.json`.

  Attributes:
    checkpoint: the name of the best checkpoint, such as `ckpt-3`.
    mean_return: the mean return of the evaluator's last episodes when it was saved.
    episodes: the number of these episodes.
    learner_steps: of the checkpoint.
  """

  checkpoint: str
  mean_return: float
  episodes: int
  learner_steps: int


class _Moment(NamedTuple):
  """The content of a checkpoint besides the learner's variables.

  Attributes:
    counts: the program's counts, with `learner_steps` and `wall_time` in seconds.
    returns: the returns of the evaluator's last episodes, oldest first.
  """

  counts: dict[str, float]
  returns: list[float]

  @property
  def learner_steps(self) -> float:
    return self.counts.get('learner_steps', 0)

  def has_progress(self, before: '_Moment') -> bool:
    """Returns whether anything but the wall time has changed since `before`."""
    this, other = ({**m.counts, 'wall_time': 0} for m in (self, before))
    return this != other or self.returns != before.returns


class Checkpointer:
  """Restores the learner from the newest checkpoint when it is made, then saves it.

  Any number of threads may call `save`. `observe_return` does not wait for them.
  """

  def __init__(
    self,
    workdir: str,
    learner: R2D2Learner,
    counts: Mapping[str, float],
    config: R2D2Config,
  ):
    """Restores the newest checkpoint of the workdir, if there is one.

    Args:
      workdir: of the run.
      learner: the learner to restore and to save.
      counts: the counts that the program starts with.
      config: of the run.

    Raises:
      CheckpointError: the newest checkpoint is of a learner with other variables, or
        cannot be read, or the folder cannot be written.
    """
    self._workdir = paths.resolve(workdir)
    self._directory = directory(workdir)
    self._learner = learner
    self._config = config
    self._counts = dict(counts)
    self._started = time.monotonic() - counts.get('wall_time', 0.0)
    self._saving = threading.Lock()
    self._observing = threading.Lock()
    # JSON in variables, because a save of TensorFlow's Python states traces a graph.
    with tf.device('CPU:0'):
      self._json = {name: tf.Variable('') for name in _Moment._fields}
    self._checkpoint = tf.train.Checkpoint(**learner.state, **self._json)
    with _writing(self._directory):
      os.makedirs(self._directory, exist_ok=True)
    self._newest: str | None = None
    self._saved = _Moment({}, [])  # the newest checkpoint's
    for prefix in find(workdir)[-1:]:
      self._newest = prefix
      self._saved = self._restore(prefix)
    best = _read_best(workdir)
    # Means over different numbers of episodes cannot be compared.
    is_measure = best is not None and best.episodes == config.num_best_episodes
    self._best_mean = best.mean_return if best and is_measure else -math.inf
    self._new_best: float | None = None  # a best mean that is not saved yet
    self._returns = collections.deque(self._saved.returns, config.num_best_episodes)
    self._wall_times: dict[str, float] = {}  # seconds; keys are prefixes
    self._for_good: set[str] = set()
    if not config.checkpoint_keep_period:
      self._for_good = set(self._read_wall_times()) - self._choose_kept()
    self._next_time = time.monotonic() + config.checkpoint_period

  @property
  def counts(self) -> Mapping[str, float]:
    """The counts of the newest checkpoint; empty without one."""
    return self._saved.counts

  def observe_return(self, episode_return: float):
    """Records the return of a finished evaluator episode, without waiting.

    When the mean of the last `num_best_episodes` returns is higher than ever before,
    the next `save` is due and its checkpoint becomes the best. Returns that are not
    finite are ignored.
    """
    if not math.isfinite(episode_return):
      return
    with self._observing:
      self._returns.append(float(episode_return))
      mean = statistics.fmean(self._returns)
      if len(self._returns) == self._returns.maxlen and mean > self._best_mean:
        self._best_mean = self._new_best = mean

  def save(self, counts: Mapping[str, float] | None = None, *, force: bool = False):
    """Saves a checkpoint if one is due and anything has changed since the last.

    One is due after `checkpoint_period`, for a new best mean return, or if `force`.
    There is only one checkpoint for each learner step: if only counts have changed, the
    new checkpoint replaces the one before it.

    Args:
      counts: the program's counts; by default those of the last call.
      force: whether a checkpoint is due in any case.

    Raises:
      CheckpointError: the checkpoint cannot be written.
    """
    with self._saving:
      if counts is not None:
        self._counts = dict(counts)
      with self._observing:
        new_best = self._new_best
      is_due = time.monotonic() >= self._next_time
      if not (is_due or force or new_best is not None):
        return
      with _writing(self._directory):
        before, before_steps = self._newest, self._saved.learner_steps
        newest = self._write()
        if new_best is not None:
          self._pin(newest, new_best)
          with self._observing:
            if self._new_best == new_best:  # not replaced by a better one meanwhile
              self._new_best = None
        if before and before != newest and before_steps == self._saved.learner_steps:
          self._replace(before, newest)
        self._prune()
      self._next_time = time.monotonic() + self._config.checkpoint_period

  def restore_newest(self) -> bool:
    """Restores networks and optimizer, and no counts, from the newest checkpoint.

    The number of learner steps stays as it is, because counts never run backwards
    within a sitting. The learner's own thread may call it, but not inside a step.

    Returns:
      Whether there is a checkpoint.

    Raises:
      CheckpointError: the checkpoint cannot be read.
    """
    with self._saving:
      if self._newest is None:
        return False
      with self._learner.locked:
        num_steps = self._learner.num_steps
        self._restore(self._newest)
        self._learner.state['num_steps'].assign(num_steps)
    return True

  def _restore(self, prefix: str) -> _Moment:
    """Restores the learner from a checkpoint; returns its other content."""
    with _reading(prefix) as path:
      moment = _read_moment(prefix, path)
      with self._learner.locked:
        status = _read_variables(self._checkpoint, prefix, path)
        status.expect_partial()
    return moment

  def _write(self) -> str:
    """Writes the next checkpoint if anything has changed; returns the newest."""
    number = _number(self._newest) + 1 if self._newest else 1
    name = f'ckpt-{number}'
    unfinished = os.path.join(self._directory, _UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)
    os.mkdir(unfinished)
    try:
      with paths.opened(unfinished) as path, self._learner.locked:
        moment = self._moment()
        if self._newest and not moment.has_progress(self._saved):
          return self._newest
        for field, value in moment._asdict().items():
          self._json[field].assign(json.dumps(value))
        self._checkpoint.write(os.path.join(path, name))
      # The index comes last: without it, the other files do not count as a checkpoint.
      for file in reversed(_files(os.path.join(unfinished, name))):
        os.replace(file, os.path.join(self._directory, os.path.basename(file)))
    finally:
      shutil.rmtree(unfinished, ignore_errors=True)
    self._newest, self._saved = os.path.join(self._directory, name), moment
    return self._newest

  def _moment(self) -> _Moment:
    """Returns the counts and returns to save now."""
    counts = dict(self._counts)
    # The program's counter may have no wall time, or one that does not advance.
    seconds = time.monotonic() - self._started
    counts['wall_time'] = max(seconds, counts.get('wall_time', 0.0))
    # The program's counts may be up to a second behind the learner's own.
    counts['learner_steps'] = self._learner.num_steps
    with self._observing:
      returns = list(self._returns)
    # JSON cannot hold NumPy's numbers.
    numbers = {k: v.item() if hasattr(v, 'item') else v for k, v in counts.items()}
    return _Moment(numbers, returns)

  def _pin(self, newest: str, mean_return: float):
    """Makes the newest checkpoint the best."""
    best = _Best(
      os.path.basename(newest),
      mean_return,
      self._config.num_best_episodes,
      int(self._saved.learner_steps),
    )
    _write_best(self._directory, best)

  def _replace(self, before: str, newest: str):
    """Deletes the checkpoint before the newest, both being of one learner step."""
    best = _read_best(self._workdir)
    if best and best.checkpoint == os.path.basename(before):
      moved = best._replace(checkpoint=os.path.basename(newest))
      _write_best(self._directory, moved)
    _delete(before)

  def _prune(self):
    """Deletes the checkpoints that the config's fields do not keep."""
    kept = self._choose_kept() | self._for_good
    for prefix in self._read_wall_times():
      if prefix not in kept:
        _delete(prefix)

  def _choose_kept(self) -> set[str]:
    """Returns the checkpoints to keep: the recent, the spaced out ones and the best."""
    wall_times = self._read_wall_times()
    newest = next(reversed(wall_times), '')
    spaced = _space(wall_times, self._config.checkpoint_period, since=-math.inf)
    recent = [prefix for prefix in spaced if prefix != newest] + [newest]
    kept = set(recent[-self._config.num_checkpoints :])
    if self._config.checkpoint_keep_period:
      period = self._config.checkpoint_keep_period * _SECONDS_PER_HOUR
      kept.update(_space(wall_times, period, since=0.0))
    best = _read_best(self._workdir)
    if best is not None:
      kept.add(os.path.join(self._directory, best.checkpoint))
    return kept

  def _read_wall_times(self) -> dict[str, float]:
    """Returns the wall times of all readable checkpoints in seconds, oldest first."""
    prefixes = find(self._workdir)
    for prefix in prefixes:
      if prefix not in self._wall_times:
        # Unreadable checkpoints are neither counted nor deleted.
        with contextlib.suppress(CheckpointError):
          self._wall_times[prefix] = read_counts(prefix).get('wall_time', 0.0)
    return {p: self._wall_times[p] for p in prefixes if p in self._wall_times}


def _space(
  wall_times: Mapping[str, float], period: float, *, since: float
) -> list[str]:
  """Returns checkpoints that are at least a period apart from each other.

  Args:
    wall_times: seconds by prefix, oldest first.
    period: seconds.
    since: the first one is at least a period after this time.
  """
  chosen = []
  for prefix, wall_time in wall_times.items():
    if wall_time - since >= period:
      chosen.append(prefix)
      since = wall_time
  return chosen


def directory(workdir: str) -> str:
  """Returns the path of the folder with a workdir's checkpoints."""
  return os.path.join(paths.resolve(workdir), 'checkpoints', 'learner')


def find(workdir: str) -> list[str]:
  """Returns the checkpoints of a workdir, newest last: prefixes such as `.../ckpt-3`.

  Raises:
    CheckpointError: the folder cannot be read.
  """
  folder = directory(workdir)
  try:
    names = os.listdir(folder)
  except FileNotFoundError:
    return []
  except OSError as error:
    raise CheckpointError(
      f'cannot read {paths.shown(folder)}: {error.strerror}'
    ) from error
  matches = filter(None, map(_INDEX.fullmatch, names))
  numbers = sorted(int(match[1]) for match in matches)
  return [os.path.join(folder, f'ckpt-{number}') for number in numbers]


def verify(workdir: str) -> dict[str, float]:
  """Reads every byte of the checkpoint that a start in `workdir` resumes from.

  Returns:
    The counts of the checkpoint; empty if there is none.

  Raises:
    CheckpointError: the newest checkpoint is corrupt, cannot be read, or is of another
      version.
  """
  _read_best(workdir)
  *earlier, newest = [None, *find(workdir)]
  if newest is None:
    return {}
  try:
    with _reading(newest) as path:
      reader = tf.train.load_checkpoint(path)
      for name in reader.get_variable_to_shape_map():
        reader.get_tensor(name)  # verifies the checksum
      return _read_moment(newest, path).counts
  except _Damaged as error:
    cure = (
      f'resume from the previous one with --checkpoint={os.path.basename(earlier[-1])}'
      if earlier[-1]
      else 'there is no earlier one: start in another --workdir'
    )
    raise CheckpointError(f'{error} and was left as it is; {cure}') from error


def read_counts(prefix: str) -> dict[str, float]:
  """Returns the program's counts in a checkpoint.

  Args:
    prefix: of the checkpoint, as `find` returns it.

  Raises:
    CheckpointError: it is corrupt, cannot be read, or is of another version.
  """
  with _reading(prefix) as path:
    return _read_moment(prefix, path).counts


def restore_network(
  network: snt.Module, workdir: str, name: str | None = None
) -> tuple[str, dict[str, float]]:
  """Sets the variables of `network` to those of a checkpoint's online network.

  It writes nothing. The program may be running in `workdir` and saving checkpoints.

  Args:
    network: a network whose variables exist.
    workdir: of the run.
    name: of the checkpoint, see `choose`.

  Returns:
    The checkpoint's prefix and its counts.

  Raises:
    CheckpointError: there is no such checkpoint, it is corrupt, cannot be read, or is
      of another version.
  """
  for attempt in range(_READ_ATTEMPTS):
    if attempt:
      time.sleep(_READ_PAUSE)
    prefix = choose(workdir, name)
    try:
      with _reading(prefix) as path:
        counts = _read_moment(prefix, path).counts
        checkpoint = tf.train.Checkpoint(network=network)
        _read_variables(checkpoint, prefix, path).expect_partial()
        return prefix, counts
    except _Damaged as error:
      failure = error  # or the program has just deleted it as the oldest
  raise CheckpointError(
    f'{failure}; name another with --checkpoint, there are: {_list(find(workdir))}'
  ) from failure


def choose(workdir: str, name: str | None) -> str:
  """Finds a checkpoint by its name or path.

  Args:
    workdir: of the run.
    name: a name such as `ckpt-3`, or its path, or `best`, or None for the newest.

  Returns:
    The checkpoint's prefix, as in `find`.

  Raises:
    CheckpointError: there is no such checkpoint, or `best.json` is corrupt.
  """
  prefixes = find(workdir)
  where = paths.shown(workdir)
  if name is None:
    if not prefixes:
      raise CheckpointError(f'there is no checkpoint in {where} yet')
    return prefixes[-1]
  if name == BEST:
    best = _read_best(workdir)
    if best is None:
      raise CheckpointError(
        f'there is no best checkpoint in {where} yet: its evaluator played too few '
        f'episodes; there are: {_list(prefixes)}'
      )
    name = best.checkpoint
  path = os.path.realpath(os.path.expanduser(name))
  for prefix in prefixes:
    if name == os.path.basename(prefix) or path == os.path.realpath(prefix):
      return prefix
  raise CheckpointError(
    f'no checkpoint {paths.shown(name)} in {where}; there are: {_list(prefixes)}'
  )


def go_back(workdir: str, name: str):
  """Makes a checkpoint the newest by moving the later ones to a folder `set_aside_*`.

  If `best.json` names one of the later ones, it moves, too.

  Args:
    workdir: of the run.
    name: of the checkpoint, see `choose`.

  Raises:
    CheckpointError: there is no such checkpoint.
    OSError: the folder cannot be written.
  """
  prefix, prefixes = choose(workdir, name), find(workdir)
  later = prefixes[prefixes.index(prefix) + 1 :]
  best = _read_best(workdir)
  folder = directory(workdir)
  files = [file for prefix in reversed(later) for file in _files(prefix)]
  if best and os.path.join(folder, best.checkpoint) in later:
    files.insert(0, os.path.join(folder, _BEST_FILE))
  if not files:
    return
  # A new folder each time, because later checkpoints get the same numbers again.
  aside = tempfile.mkdtemp(prefix='set_aside_', dir=folder)
  for file in files:
    os.replace(file, os.path.join(aside, os.path.basename(file)))


def _number(prefix: str) -> int:
  return int(prefix.rpartition('-')[2])


def _list(prefixes: list[str]) -> str:
  return ', '.join(os.path.basename(prefix) for prefix in prefixes) or 'none'


def _files(prefix: str) -> list[str]:
  """Returns the files of a checkpoint, the index first."""
  folder, name = os.path.split(prefix)
  pattern = re.compile(rf'{re.escape(name)}\.(index|data-\d+-of-\d+)')
  names = [file for file in os.listdir(folder) if pattern.fullmatch(file)]
  names.sort(key=lambda file: (not file.endswith('.index'), file))
  return [os.path.join(folder, file) for file in names]


def _delete(prefix: str):
  for file in _files(prefix):
    os.unlink(file)


@contextlib.contextmanager
def _reading(prefix: str) -> Iterator[str]:
  """Yields a path of the checkpoint that TensorFlow cannot mistake for a pattern.

  Raises:
    CheckpointError: reading it inside the context failed. Either the checkpoint is
      corrupt, or the system refused to read it.
  """
  folder, name = os.path.split(prefix)
  what = f'checkpoint {paths.shown(prefix)}'
  try:
    for file in _files(prefix):
      with open(file, 'rb'):
        pass  # raises an error with the reason, which TensorFlow's error lacks
    with paths.opened(folder) as path:
      yield os.path.join(path, name)
  except CheckpointError:
    raise
  except Exception as error:  # its type depends on the damage
    reason = _system_reason(error)
    if reason is not None:
      raise CheckpointError(f'{what} cannot be read: {reason}') from error
    raise _Damaged(f'{what} is corrupt') from error


@contextlib.contextmanager
def _writing(folder: str) -> Iterator[None]:
  """Turns errors of writing into a folder into a `CheckpointError`.

  Raises:
    CheckpointError: the system refused to write.
  """
  try:
    yield
  except (OSError, tf.errors.OpError) as error:
    reason = _system_reason(error) or str(error)
    raise CheckpointError(f'cannot write in {paths.shown(folder)}: {reason}') from error


def _system_reason(error: Exception) -> str | None:
  """Returns the system's reason for an error; None if the system is not its cause."""
  if isinstance(error, OSError):
    return None if error.errno == errno.ENOENT else error.strerror
  if isinstance(error, MemoryError):
    return os.strerror(errno.ENOMEM)
  # TensorFlow's errors quote the system's message.
  reasons = map(os.strerror, _SYSTEM_ERRORS)
  return next((reason for reason in reasons if reason in str(error)), None)


def _read_variables(checkpoint: tf.train.Checkpoint, prefix: str, path: str):
  """Reads all variables of `checkpoint`; returns TensorFlow's status of the restore.

  Raises:
    CheckpointError: the file lacks a variable or has it in another shape.
  """
  try:
    status = checkpoint.read(path)
    return status.assert_existing_objects_matched()
  except (AssertionError, ValueError) as error:
    raise CheckpointError(
      f'checkpoint {paths.shown(prefix)} is of a learner with other variables: '
      f'{_OTHER_CONFIG}'
    ) from error


def _read_moment(prefix: str, path: str) -> _Moment:
  """Reads the JSON in a checkpoint; never unpickles anything, which could run code.

  Raises:
    CheckpointError: it is of a version that pickled its counts.
  """
  reader = tf.train.load_checkpoint(path)
  try:
    counts, returns = (
      _parse_json(reader.get_tensor(f'{name}/.ATTRIBUTES/VARIABLE_VALUE'))
      for name in _Moment._fields
    )
    numbers = [*counts.values(), *returns]
    if not all(type(x) in (int, float) and math.isfinite(x) for x in numbers):
      raise ValueError('not finite numbers')
    return _Moment(counts, list(returns))
  except (*_NOT_OURS, tf.errors.NotFoundError) as error:
    raise CheckpointError(
      f'the counts of checkpoint {paths.shown(prefix)} are not numbers in JSON: '
      f'{_OTHER_VERSION}'
    ) from error


# The errors that reading JSON with other content than expected may raise.
_NOT_OURS = (ValueError, TypeError, AttributeError, OverflowError, RecursionError)


def _parse_json(text: bytes | str) -> Any:
  """Parses JSON like `json.loads`, but refuses NaN and infinity."""

  def refuse(constant: str):
    raise ValueError(f'{constant} is not a number')

  return json.loads(text, parse_constant=refuse)


def _read_best(workdir: str) -> _Best | None:
  """Returns the content of `best.json`; None if there is no such file or checkpoint.

  Raises:
    CheckpointError: the file is corrupt.
  """
  path = os.path.join(directory(workdir), _BEST_FILE)
  try:
    with open(path, 'rb') as file:
      best = _Best(**_parse_json(file.read()))
    _INDEX.fullmatch(f'{best.checkpoint}.index')[0]  # type: ignore[index]
    if not math.isfinite(best.mean_return):
      raise ValueError('not a finite number')
  except (FileNotFoundError, NotADirectoryError):
    return None
  except OSError as error:
    raise CheckpointError(
      f'cannot read {paths.shown(path)}: {error.strerror}'
    ) from error
  except _NOT_OURS as error:
    raise CheckpointError(
      f'{paths.shown(path)} is corrupt: delete it to go on without a best checkpoint'
    ) from error
  there = map(os.path.basename, find(workdir))
  return best if best.checkpoint in there else None


def _write_best(folder: str, best: _Best):
  path = os.path.join(folder, _BEST_FILE)
  with open(f'{path}.new', 'w') as file:
    json.dump(best._asdict(), file, indent=2)
  os.replace(f'{path}.new', path)
