"""The learner: from batches to parameters for the actors and priorities for replay.

It runs `update.Update` step after step, and lets other threads read the parameters and
save the state between two steps.
"""

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import acme
import numpy as np
import tensorflow as tf
import tree
from acme.utils import counting, loggers

from r2d2_acme import calls
from r2d2_acme.config import R2D2Config
from r2d2_acme.learning.bad_batches import BadBatches, find_bad_windows
from r2d2_acme.learning.networks import R2D2Network
from r2d2_acme.learning.update import Update
from r2d2_acme.types import Batch

_LOG_PERIOD = 5.0  # seconds between rows


class R2D2Learner(acme.Learner):
  """Learns from `Batch`es (Kapturowski et al. 2019, section 2.3).

  One thread calls `step`. Other threads may call `get_variables` and enter `locked`;
  they never see a half-done update.

  Steps run on copies of the variables, see `calls.Traced`. The variables themselves
  are up to date inside `locked` only.

  Attributes:
    last_metrics: of the newest step: scalars, and [B] where a metric is of single
      windows.
    always_diagnose: whether Delta-Q is computed in each step, as a study needs it.
      Otherwise it is NaN except in steps whose row is logged: it costs 3 % of a step.
    restore_newest: a function that sets the learner back to its newest sound checkpoint
      and returns whether there was one; by default there is none. It is called after
      `max_bad_batches` batches in a row with a gradient that is not finite.
  """

  def __init__(
    self,
    network: R2D2Network,
    target_network: R2D2Network,
    iterator: Iterator[Batch],
    config: R2D2Config,
    *,
    update_priorities: Callable[[np.ndarray, np.ndarray], object] | None = None,
    replay_ratio: Callable[[], Mapping[str, float]] = dict,
    counter: counting.Counter | None = None,
    logger: loggers.Logger | None = None,
  ):
    """Constructs the learner; the target's variables become the online network's.

    Args:
      network, target_network: with their variables.
      iterator: of batches.
      config: the hyperparameters.
      update_priorities: a function that is given the keys [B] and new priorities [B]
        of each batch, and must not block.
      replay_ratio: a function whose result is added to each row of the log.
      counter: of learner steps.
      logger: of a row every few seconds.
    """
    self._update = Update(network, target_network, config)
    self._iterator = iterator
    self._counter = counter or counting.Counter()
    self._log = _Log(logger, replay_ratio)
    self._update_priorities = update_priorities or (lambda keys, priorities: None)
    self._bad_batches = BadBatches(config.max_bad_batches)
    self._lock = threading.RLock()
    self._traced: calls.Traced | None = None  # from the first batch on
    self._is_held = False  # whether a thread is inside `locked`
    self._steps_done = 0  # the number of updates of the copies
    self._snapshot = _Snapshot()
    self.last_metrics: Mapping[str, np.ndarray] = {}
    self.always_diagnose = False
    self.restore_newest: Callable[[], bool] = lambda: False

  @property
  def state(self) -> Mapping[str, Any]:
    """The TensorFlow objects that a checkpoint holds.

    Read and write them inside `locked` only. Outside they may be those of an earlier
    step. `save` and `restore` need no `locked` around them.
    """
    return {
      'network': self._update.network,
      'target_network': self._update.target_network,
      'optimizer': self._update.optimizer,
      'num_steps': self._update.num_steps,
    }

  @property
  def locked(self) -> contextlib.AbstractContextManager:
    """Holds the learner between two steps, to read or write its state as a whole.

    Inside, the variables are as the newest step left them, and the next step continues
    from what they are at the end. Until then `get_variables` and `num_steps` return the
    values from before. The same thread may enter `locked` again, but not call `step`.
    """
    return self._hold()

  @contextlib.contextmanager
  def _hold(self):
    with self._lock:
      if self._is_held:  # by this thread, whose outer `locked` copies
        yield
        return
      self._publish()  # so that nobody who fetches waits for a slow disk
      if self._traced is not None:
        self._traced.store()
      self._is_held = True
      try:
        yield
      finally:
        self._is_held = False
        if self._traced is not None:
          self._traced.load()
        self._snapshot = _Snapshot()  # first: `_steps_done` would make it the newest
        self._steps_done = int(self._update.num_steps.numpy())

  def save(self) -> Mapping[str, Sequence[np.ndarray]]:
    """Returns a copy of the whole state that `restore` takes."""
    with tf.init_scope(), self.locked:  # Acme's checkpointer calls it in a trace
      return tree.map_structure(lambda variable: variable.numpy(), self._parts())

  def restore(self, state: Mapping[str, Sequence[np.ndarray]]):
    """Sets the whole state to one that `save` has returned.

    Raises:
      ValueError: the state is of a learner with another network. Nothing is changed.
    """
    with tf.init_scope(), self.locked:
      parts = self._parts()
      if _shapes(parts) != _shapes(state):
        raise ValueError('the state is of a learner with another network')
      tree.map_structure(lambda variable, value: variable.assign(value), parts, state)

  def _parts(self) -> dict[str, list[tf.Variable]]:
    return {
      'network': [*self._update.network.variables],
      'target_network': [*self._update.target_network.variables],
      'optimizer': [*self._update.optimizer.variables],
      'num_steps': [self._update.num_steps],
    }

  @property
  def num_steps(self) -> int:
    """The number of learner steps so far."""
    return self._steps_done

  def get_variables(self, names: list[str]) -> list[list[np.ndarray]]:
    """Returns the online network's variables and `num_steps` for each of the names.

    All calls between two steps return the same arrays, which are read-only. A call may
    wait for the current step to end, but never for a thread that is inside `locked`.
    """
    values = self._newest().values
    return [list(values) for _ in names]

  def get_new_variables(
    self, names: list[str], known: str
  ) -> tuple[str, list[list[np.ndarray]]]:
    """Returns the newest version and, unless it is known, what `get_variables` does.

    Args:
      names: as for `get_variables`.
      known: the version that an earlier call has returned, or ''. It is unlike those of
        other learners, and of this one before it was restored.

    Returns:
      The version, and the variables for each of the names, or nothing.
    """
    snapshot = self._newest()
    if snapshot.version == known:
      return known, []
    return snapshot.version, [list(snapshot.values) for _ in names]

  def _newest(self) -> '_Snapshot':
    """Returns the newest snapshot, for which it may wait for a step."""
    snapshot = self._snapshot
    if snapshot.num_steps != self._steps_done:
      with self._lock:
        snapshot = self._publish()
    return snapshot

  def _publish(self) -> '_Snapshot':
    """Returns the newest snapshot, and takes it first if need be; `_lock` is held."""
    if self._snapshot.num_steps != self._steps_done:
      self._snapshot = _Snapshot(
        self._steps_done, self._read_variables(), uuid.uuid4().hex
      )
    return self._snapshot

  @property
  def variables(self) -> list[tf.Variable]:
    """The variables that actors fetch: the network's, then the number of steps."""
    return [*self._update.network.variables, self._update.num_steps]

  def prepare(self, spec: Batch):
    """Builds the graph of a step, which takes seconds, before there is a batch.

    Args:
      spec: the `tf.TensorSpec`s of the batches.
    """
    with self._lock:
      self._publish()  # nobody who fetches waits meanwhile
    # Without the lock, so that a program that is stopped meanwhile can save.
    traced = self._trace((spec, tf.TensorSpec((), tf.bool)))
    with self._lock:
      if self._traced is None:
        traced.load()  # what the variables have become meanwhile
        self._traced = traced

  def step(self):
    """Waits for a batch, learns from it, and hands its new priorities on.

    A batch whose gradient is not finite changes nothing, and is no learner step. Its
    windows that are to blame get priority 0, so that they are not sampled again.

    Raises:
      LearningFailed: the gradient was not finite in too many batches in a row.
      RuntimeError: this thread is inside `locked`, which would undo the step.
    """
    batch = next(self._iterator)  # without the lock: it may wait for ever
    now = time.time()
    row_is_due = self._log.is_due(now)
    batch = tree.map_structure(np.asarray, batch)
    with self._lock:
      if self._is_held:
        raise RuntimeError('no step can be taken inside `locked`')
      priorities, metrics = self._run_update(
        batch, np.array(row_is_due or self.always_diagnose)
      )
      is_good = bool(np.isfinite(metrics['gradient_norm']))
      self._steps_done += is_good
    self.last_metrics = metrics
    if not is_good:
      is_bad = find_bad_windows(batch, priorities)
      self._update_priorities(batch.keys[is_bad], np.zeros(is_bad.sum(), np.float32))
      self._bad_batches.add(batch, is_bad, self.num_steps, self.restore_newest)
      return
    self._bad_batches.end_row()
    self._update_priorities(batch.keys, priorities)
    counts = self._counter.increment(steps=1)
    if row_is_due:
      counts = {**counts, 'bad_batches': self._bad_batches.count}
      self._log.write(metrics, counts, self.num_steps, now)

  def _run_update(self, batch: Batch, diagnose: np.ndarray):
    """Runs the update on the copies of the variables; NumPy arrays in and out."""
    inputs = batch, diagnose
    if self._traced is None:
      self._traced = self._trace(inputs)
    outputs = self._traced(*tree.flatten(inputs))
    return tree.unflatten_as(self._output_structure, outputs)

  def _trace(self, inputs) -> calls.Traced:
    def update(*flat: tf.Tensor) -> list[tf.Tensor]:
      outputs = self._update(*tree.unflatten_as(inputs, flat))
      self._output_structure = tree.map_structure(lambda x: None, outputs)
      return tree.flatten(outputs)

    signature = (tf.TensorSpec(x.shape, x.dtype) for x in tree.flatten(inputs))
    traced = calls.Traced(update, *signature, parallel=True)
    self._read_copies = traced.make_reader(self.variables)
    return traced

  def _read_variables(self) -> Sequence[np.ndarray]:
    """Returns arrays that cannot be written to: TensorFlow may own their memory."""
    if self._traced is None:
      values = [variable.numpy() for variable in self.variables]
    else:
      values = self._read_copies()
    arrays = [np.asarray(value) for value in values]
    for array in arrays:
      array.flags.writeable = False
    return arrays


class _Snapshot(NamedTuple):
  """What `get_variables` returns. It is one object: other threads read all at once.

  Attributes:
    num_steps: the learner steps after which it was taken.
    values: of the variables.
    version: of this snapshot only.
  """

  num_steps: int = -1
  values: Sequence[np.ndarray] = ()
  version: str = ''


class _Log:
  """Writes a row of the newest metrics every few seconds."""

  def __init__(
    self,
    logger: loggers.Logger | None,
    replay_ratio: Callable[[], Mapping[str, float]],
  ):
    self._logger = logger
    self._replay_ratio = replay_ratio
    self._last_time = 0.0
    self._last_steps: int | None = None

  def is_due(self, now: float) -> bool:
    return now - self._last_time >= _LOG_PERIOD

  def write(
    self,
    metrics: Mapping[str, np.ndarray],
    counts: Mapping[str, Any],
    num_steps: int,
    now: float,
  ):
    steps_per_second = 0.0
    if self._last_steps is not None:
      steps_per_second = (num_steps - self._last_steps) / (now - self._last_time)
    self._last_time, self._last_steps = now, num_steps
    if self._logger is not None:
      self._logger.write(
        {
          **{name: _median(value) for name, value in metrics.items()},
          **self._replay_ratio(),
          'steps_per_second': steps_per_second,
          **counts,
        }
      )


def _shapes(parts: Mapping[str, Sequence]) -> dict[str, list[tuple[int, ...]]]:
  return {name: [tuple(x.shape) for x in values] for name, values in parts.items()}


def _median(values: np.ndarray):
  """Returns the median over the batch of per-window metrics, and scalars unchanged.

  Delta-Q is a ratio, so that its mean would be dominated by outliers.
  """
  return np.median(values) if values.ndim else values
