"""Saves the learner from time to time, and says what belongs together in manifests."""

import collections
import contextlib
import json
import math
import os
import shutil
import statistics
import threading
import time
from collections.abc import Mapping, Sequence

import tensorflow as tf

from r2d2_acme.config import R2D2Config
from r2d2_acme.learning.learner import R2D2Learner
from r2d2_acme.workdir import (
  checkpoint_files,
  checkpointing,
  manifests,
  paths,
  replay_checkpoints,
)
from r2d2_acme.workdir.checkpoint_files import CheckpointError

_UNFINISHED = 'unfinished'  # the folder of the checkpoint that is being written
_SECONDS_PER_HOUR = 3600


class Checkpointer:
  """Restores the newest sound checkpoint of a learner when it is made, then saves it.

  Each checkpoint gets a manifest, which also names the newest checkpoints of the
  replay. After a save that failed, the next one is due a period later.

  Any number of threads may call `save`. `observe_return` does not wait for them.
  """

  def __init__(
    self,
    workdir: str,
    learner: R2D2Learner,
    counts: Mapping[str, float],
    config: R2D2Config,
  ):
    """Restores the newest sound checkpoint of the workdir, if there is one.

    Args:
      workdir: of the run.
      learner: the learner to restore and to save.
      counts: the counts that the program starts with.
      config: of the run.

    Raises:
      CheckpointError: none of the checkpoints is sound, or the newest sound one is of a
        learner with other variables, or the folder cannot be written.
    """
    self._workdir = paths.resolve(workdir)
    self._directory = checkpointing.directory(workdir)
    self._learner = learner
    self._config = config
    self._saving = threading.Lock()
    self._observing = threading.Lock()
    # JSON in variables, because a save of TensorFlow's Python states traces a graph.
    with tf.device('CPU:0'):
      self._json = {name: tf.Variable('') for name in checkpointing.Moment._fields}
    self._checkpoint = tf.train.Checkpoint(**learner.state, **self._json)
    with checkpoint_files.writing(self._directory):
      os.makedirs(self._directory, exist_ok=True)
    self._newest: str | None = None
    self._saved = checkpointing.Moment({}, [])  # the newest checkpoint's
    newest = checkpointing.find_sound(workdir)
    if newest is not None:
      self._newest, self._saved = newest, self._restore(newest)
    self._restored_counts = self._saved.counts
    self._counts = {**self._saved.counts, **counts}
    self._started = time.monotonic() - self._counts.get('wall_time', 0.0)
    self._replays: Sequence[manifests.Replay] = replay_checkpoints.find_known(workdir)
    last = [*manifests.read_sound(workdir).values()][-1:]
    self._noted = [(x.learner, [*x.replays]) for x in last]  # in the newest manifest
    best = checkpointing.read_best(workdir)
    # Means over different numbers of episodes cannot be compared.
    is_measure = best is not None and best.episodes == config.num_best_episodes
    self._best_mean = best.mean_return if best and is_measure else -math.inf
    self._new_best: float | None = None  # a best mean that is not saved yet
    self._returns = collections.deque(self._saved.returns, config.num_best_episodes)
    self._retention = _Retention(self._workdir, config)
    self._next_time = time.monotonic() + config.checkpoint_period
    self._retry_time = 0.0  # until then nothing is due after a save that failed

  @property
  def counts(self) -> Mapping[str, float]:
    """The counts that were restored; empty if there was no checkpoint."""
    return self._restored_counts

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
      now = time.monotonic()
      is_due = now >= self._next_time or new_best is not None
      if not force and (not is_due or now < self._retry_time):
        return
      self._next_time = self._retry_time = now + self._config.checkpoint_period
      with checkpoint_files.writing(self._directory):
        before, before_steps = self._newest, self._saved.learner_steps
        newest = self._write()
        if new_best is not None:
          self._pin(newest, new_best)
          with self._observing:
            if self._new_best == new_best:  # not replaced by a better one meanwhile
              self._new_best = None
        self._write_manifest()
        if before and before != newest and before_steps == self._saved.learner_steps:
          self._replace(before, newest)
        self._retention.prune()
      self._retry_time = 0.0

  def note_replay(self, replay: manifests.Replay):
    """Writes a manifest with a new checkpoint of the replay; deletes the oldest one.

    Raises:
      CheckpointError: the manifest cannot be written.
    """
    with self._saving, checkpoint_files.writing(self._directory):
      self._replays = [replay, *self._replays]
      if self._newest is None:
        self._write()
      self._write_manifest()
      replay_checkpoints.prune(self._workdir, self._choose_replays())

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

  def _restore(self, prefix: str) -> checkpointing.Moment:
    """Restores the learner from a checkpoint; returns its other content."""
    with checkpointing.reading(prefix) as path:
      moment = checkpointing.read_moment(prefix, path)
      with self._learner.locked:
        status = checkpointing.read_variables(self._checkpoint, prefix, path)
        status.expect_partial()
    return moment

  def _write(self) -> str:
    """Writes the next checkpoint if anything has changed; returns the newest."""
    numbers = map(checkpointing.number, checkpointing.find_all(self._workdir))
    name = f'ckpt-{max(numbers, default=0) + 1}'
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
      for file in reversed(checkpointing.files(os.path.join(unfinished, name))):
        os.replace(file, os.path.join(self._directory, os.path.basename(file)))
    finally:
      shutil.rmtree(unfinished, ignore_errors=True)
    self._newest, self._saved = os.path.join(self._directory, name), moment
    return self._newest

  def _write_manifest(self):
    """Writes which checkpoints belong together, if that has changed."""
    assert self._newest is not None
    name, replays = os.path.basename(self._newest), self._choose_replays()
    if self._noted != [(name, replays)]:
      returns = self._saved.returns
      manifests.write(
        self._workdir,
        manifests.Manifest(
          learner=name,
          files=checkpoint_files.sum_files(checkpointing.files(self._newest)),
          counts=self._saved.counts,
          mean_return=statistics.fmean(returns) if returns else None,
          replays=replays,
        ),
      )
      self._noted = [(name, replays)]

  def _choose_replays(self) -> list[manifests.Replay]:
    """Returns the checkpoints of the replay to keep, newest first."""
    return replay_checkpoints.choose(self._workdir, self._replays)

  def _moment(self) -> checkpointing.Moment:
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
    return checkpointing.Moment(numbers, returns)

  def _pin(self, newest: str, mean_return: float):
    """Makes the newest checkpoint the best."""
    best = checkpointing.Best(
      os.path.basename(newest),
      mean_return,
      self._config.num_best_episodes,
      int(self._saved.learner_steps),
    )
    checkpointing.write_best(self._workdir, best)

  def _replace(self, before: str, newest: str):
    """Deletes the checkpoint before the newest, both being of one learner step."""
    best = checkpointing.read_best(self._workdir)
    if best and best.checkpoint == os.path.basename(before):
      moved = best._replace(checkpoint=os.path.basename(newest))
      checkpointing.write_best(self._workdir, moved)
    for path, manifest in manifests.read_sound(self._workdir).items():
      if manifest.learner == os.path.basename(before):
        os.unlink(path)
    checkpointing.delete(before)


class _Retention:
  """Decides which checkpoints of a learner are kept."""

  def __init__(self, workdir: str, config: R2D2Config):
    """Reads which checkpoints earlier starts have kept."""
    self._workdir = workdir
    self._config = config
    self._wall_times: dict[str, float] = {}  # seconds; keys are prefixes
    self._for_good: set[str] = set()
    if not config.checkpoint_keep_period:
      self._for_good = set(self._read_wall_times()) - self._choose_kept()

  def prune(self):
    """Deletes checkpoints that the config's fields do not keep, and manifests.

    Raises:
      CheckpointError: a folder cannot be read.
      OSError: a file cannot be deleted.
    """
    kept = self._choose_kept() | self._for_good
    unkept = [prefix for prefix in self._read_wall_times() if prefix not in kept]
    named = {os.path.basename(prefix) for prefix in unkept}
    for path, manifest in reversed(manifests.read_sound(self._workdir).items()):
      if manifest.learner in named:  # it is not kept, or has a newer manifest
        os.unlink(path)
      named.add(manifest.learner)
    for prefix in unkept:
      checkpointing.delete(prefix)

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
    best = checkpointing.read_best(self._workdir)
    if best is not None:
      kept.add(os.path.join(checkpointing.directory(self._workdir), best.checkpoint))
    return kept

  def _read_wall_times(self) -> dict[str, float]:
    """Returns the wall times of all readable checkpoints in seconds, oldest first."""
    prefixes = [
      prefix
      for prefix in checkpointing.find(self._workdir)
      if not checkpoint_files.is_marked(prefix)
    ]
    for prefix in prefixes:
      if prefix not in self._wall_times:
        # Unreadable checkpoints are neither counted nor deleted.
        with contextlib.suppress(CheckpointError):
          self._wall_times[prefix] = checkpointing.read_counts(prefix).get(
            'wall_time', 0.0
          )
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
