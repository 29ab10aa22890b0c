"""`R2D2Learner`: burn-in, unroll, rescaled n-step double-Q loss, Adam, priorities."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import acme
import numpy as np
import sonnet as snt
import tensorflow as tf
import tree
import trfl
from acme.utils import counting, loggers

from r2d2_acme import calls
from r2d2_acme.config import R2D2Config
from r2d2_acme.learning import delta_q as delta_q_lib
from r2d2_acme.learning import losses
from r2d2_acme.learning.networks import R2D2Network
from r2d2_acme.types import Batch

_LOG_PERIOD = 5.0  # seconds between rows


class R2D2Learner(acme.Learner):
  """Kapturowski et al. 2019, section 2.3, on `Batch`es from replay.

  One thread calls `step`; `get_variables` and `locked` serve others, and never see
  a half-done update.

  Steps run on copies of the variables (see `calls.Traced`), which meet the variables
  inside `locked` only.
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
      network, target_network: have their variables.
      iterator: of batches.
      config: the hyperparameters.
      update_priorities: is given the keys [B] and new priorities [B] of each batch, and
        must not block.
      replay_ratio: what it returns is in each row of the log.
      counter: of learner steps.
      logger: gets a row every few seconds.
    """
    self._network = network
    self._target_network = target_network
    self._iterator = iterator
    self._config = config
    self._counter = counter or counting.Counter()
    self._logger = logger
    self._update_priorities = update_priorities
    self._replay_ratio = replay_ratio
    self._optimizer = snt.optimizers.Adam(
      learning_rate=config.learning_rate, epsilon=config.adam_epsilon
    )
    # An integer: a float32 would stop counting at 2^24.
    self._num_steps = tf.Variable(0, dtype=tf.int64, name='num_steps', trainable=False)
    # Created now, so that a checkpoint restores them before the first step.
    self._optimizer._initialize(network.trainable_variables)
    self._copy_to_target()
    self._lock = threading.RLock()
    self._traced: calls.Traced | None = None  # `_update`, from the first batch on
    self._is_held = False  # by whoever is inside `locked`
    self._steps_done = 0  # `_num_steps` of the copies
    # What `get_variables` gives out, and after which step it was taken: read in one go.
    self._snapshot: tuple[int, Sequence[np.ndarray]] = (-1, ())
    self._last_row_time = 0.0
    self._last_row_steps: int | None = None
    # Of the newest step: scalars, and [B] where a metric is of single windows.
    self.last_metrics: Mapping[str, np.ndarray] = {}
    # Delta-Q in each step, for a study; else in those that a row is written of, and
    # NaN in the others: it costs 3 % of a step.
    self.always_diagnose = False

  @property
  def state(self) -> Mapping[str, Any]:
    """What a checkpoint holds, as TensorFlow objects.

    Read and write them inside `locked` only: elsewhere they are those of an earlier
    step. `save` and `restore` need no such care.
    """
    return {
      'network': self._network,
      'target_network': self._target_network,
      'optimizer': self._optimizer,
      'num_steps': self._num_steps,
    }

  @property
  def locked(self) -> contextlib.AbstractContextManager:
    """Holds the learner between two steps, to read or write its state as a whole.

    Inside, the variables are as the newest step left them. The next step goes on from
    what they are at the end. Until then `get_variables` and `num_steps` give what was
    before. Inside, the same thread may enter it again, but not take a step.
    """
    return self._hold()

  @contextlib.contextmanager
  def _hold(self):
    with self._lock:
      if self._is_held:  # by this thread: what is outermost copies
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
        self._snapshot = (-1, ())  # before `_steps_done`, by which it would be current
        self._steps_done = int(self._num_steps.numpy())

  def save(self) -> Mapping[str, Sequence[np.ndarray]]:
    """Returns a copy of the whole state, for `restore`."""
    with tf.init_scope(), self.locked:  # Acme's checkpointer calls it in a trace
      return tree.map_structure(lambda variable: variable.numpy(), self._parts())

  def restore(self, state: Mapping[str, Sequence[np.ndarray]]):
    """Goes back, or on, to a state that `save` has returned.

    Raises:
      ValueError: it is of a learner with another network. Nothing is changed.
    """
    with tf.init_scope(), self.locked:
      parts = self._parts()
      if _shapes(parts) != _shapes(state):
        raise ValueError('the state is of a learner with another network')
      tree.map_structure(lambda variable, value: variable.assign(value), parts, state)

  def _parts(self) -> dict[str, list[tf.Variable]]:
    return {
      'network': [*self._network.variables],
      'target_network': [*self._target_network.variables],
      'optimizer': [*self._optimizer.variables],
      'num_steps': [self._num_steps],
    }

  @property
  def num_steps(self) -> int:
    return self._steps_done

  def get_variables(self, names: list[str]) -> list[list[np.ndarray]]:
    """The online network's variables and `num_steps`, whatever the names.

    All who ask after the same step get the same arrays, which cannot be written to. It
    waits for a step to end, at the most, and not for whoever is inside `locked`.
    """
    num_steps, values = self._snapshot
    if num_steps != self._steps_done:
      with self._lock:
        values = self._publish()
    return [list(values) for _ in names]

  def _publish(self) -> Sequence[np.ndarray]:
    """Returns the newest snapshot, taken now if need be; `_lock` is held."""
    num_steps, values = self._snapshot
    if num_steps != self._steps_done:
      values = self._read_variables()
      self._snapshot = (self._steps_done, values)
    return values

  @property
  def variables(self) -> list[tf.Variable]:
    """What actors fetch: the network's variables, then their age."""
    return [*self._network.variables, self._num_steps]

  def step(self):
    """Waits for a batch, learns from it, and sends the new priorities on.

    Raises:
      FloatingPointError: the gradient is not finite; the parameters stay as they were.
      RuntimeError: this thread is inside `locked`, which would undo the step.
    """
    batch = next(self._iterator)  # without the lock: it may wait for ever
    now = time.time()
    row_is_due = now - self._last_row_time >= _LOG_PERIOD
    batch = tree.map_structure(np.asarray, batch)
    with self._lock:
      if self._is_held:
        raise RuntimeError('no step can be taken inside `locked`')
      priorities, metrics = self._run_update(
        batch, np.array(row_is_due or self.always_diagnose)
      )
      self._steps_done += 1
    self.last_metrics = metrics
    if not np.isfinite(metrics['gradient_norm']):
      raise FloatingPointError(
        'the gradient is not finite: learning diverged, or the environment gives '
        'observations or rewards that are not finite'
      )
    if self._update_priorities is not None:
      self._update_priorities(batch.keys, priorities)
    counts = self._counter.increment(steps=1)
    if row_is_due:
      self._write_row(metrics, counts, now)

  def _run_update(self, batch: Batch, diagnose: np.ndarray):
    """Runs `_update` on the copies of the variables; NumPy arrays in and out."""
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

  def _update(self, batch: Batch, diagnose: tf.Tensor):
    """One learner step; returns priorities [B] and a dict of scalars or [B].

    Without `diagnose`, Delta-Q is NaN.
    """
    config = self._config
    burn_in = config.burn_in_length
    context = tree.map_structure(lambda x: x[:burn_in], batch.observations)
    trace = tree.map_structure(lambda x: x[burn_in:], batch.observations)
    core_state = self._initial_state(batch)
    # After a padded step the state is the initial one, so that an episode's first
    # window starts from exactly that.
    keep = batch.mask[:burn_in]  # [burn-in, B]
    # Each network burns in with its own parameters.
    online_state = core_state
    target_state = core_state
    if burn_in:
      online_state = self._network.burn_in(context, core_state, keep)
      target_state = self._target_network.burn_in(context, core_state, keep)
    # Burn-in is not trained through (the spec, "Burn-in").
    online_state = tree.map_structure(tf.stop_gradient, online_state)
    target_q, _ = self._target_network.unroll(trace, target_state)

    mask = batch.mask[burn_in + 1 :]  # [T, B]: a transition is real if its end is
    weights = losses.importance_weights(
      tf.cast(batch.probabilities, tf.float32),
      batch.table_size,
      config.importance_sampling_exponent,
    )
    with tf.GradientTape() as tape:
      q, _ = self._network.unroll(trace, online_state)  # [T + 1, B, A]
      td_errors = losses.window_td_errors(
        q,
        target_q,
        actions=batch.observations.action[burn_in + 1 :],
        rewards=batch.observations.reward[burn_in + 1 :],
        discounts=batch.discount[burn_in + 1 :],
        mask=mask,
        gamma=config.discount,
        n_step=config.n_step,
        epsilon=config.rescaling_epsilon,
      )
      loss = losses.r2d2_loss(td_errors, mask, weights)
    # Before the update: all of it with the same parameters.
    delta_q = tf.cond(
      diagnose,
      lambda: delta_q_lib.delta_q(q, self._stored_q(batch), mask),
      lambda: tf.fill([2, tf.shape(mask)[1]], np.nan),
    )  # [2, B]
    variables = self._network.trainable_variables
    gradients = tape.gradient(loss, variables)
    gradients, gradient_norm = tf.clip_by_global_norm(
      gradients, config.max_gradient_norm
    )
    # Others read the parameters: no NaNs.
    tf.cond(
      tf.math.is_finite(gradient_norm),
      lambda: self._optimizer.apply(gradients, variables),
      lambda: None,
    )
    self._num_steps.assign_add(1)
    if_due = tf.equal(self._num_steps % config.target_update_period, 0)
    tf.cond(if_due, self._copy_to_target, tf.no_op)

    priorities = losses.sequence_priorities(td_errors, mask, config.priority_eta)
    abs_td = tf.abs(td_errors) * mask
    num_real = tf.reduce_sum(mask)
    real_rows = batch.mask[burn_in:]  # [T + 1, B]
    max_q = tf.reduce_max(q, axis=-1)
    metrics = {
      'loss': loss,
      'gradient_norm': gradient_norm,
      'mean_abs_td': tf.reduce_sum(abs_td) / num_real,
      'max_abs_td': tf.reduce_max(abs_td),
      'mean_priority': tf.reduce_mean(priorities),
      # Of the greedy actions.
      'mean_q': tf.reduce_sum(max_q * real_rows) / tf.reduce_sum(real_rows),
      'max_q': tf.reduce_max(tf.where(real_rows > 0, max_q, tf.float32.min)),
      # Learner steps since the parameters that acted.
      'parameter_age': tf.cast(self._num_steps - batch.learner_steps, tf.float32),
      'delta_q_initial': delta_q[0],
      'delta_q_final': delta_q[1],
      'replay_size': batch.table_size[-1],
    }
    return priorities, metrics

  def _stored_q(self, batch: Batch) -> tf.Tensor:
    """Q-values [2, B, A] from the actor's states at both ends of the trained part."""
    burn_in = self._config.burn_in_length
    index = delta_q_lib.end_indices(batch.mask[burn_in + 1 :]) + [burn_in, 0]
    # From the whole batch, which is on the CPU: a GPU cannot gather uint8, and its
    # share of the frames would come back.
    observations = tree.map_structure(
      lambda x: tf.gather_nd(x, index), batch.observations
    )
    core_state = tree.map_structure(
      lambda x: tf.transpose(x[:, 1:], [1, 0, 2]), batch.core_state
    )
    inputs = tree.map_structure(
      lambda x: snt.merge_leading_dims(x, 2), (observations, core_state)
    )
    q, _ = self._network(*inputs)  # [2 x B, A]
    return tf.reshape(q, [2, -1, q.shape[-1]])

  def _initial_state(self, batch: Batch):
    if self._config.state_strategy == 'zero':
      return tree.map_structure(lambda x: tf.zeros_like(x[:, 0]), batch.core_state)
    return tree.map_structure(lambda x: x[:, 0], batch.core_state)

  def _copy_to_target(self):
    return trfl.update_target_variables(
      self._target_network.variables, self._network.variables
    )

  def _write_row(
    self, metrics: Mapping[str, np.ndarray], counts: Mapping[str, Any], now: float
  ):
    steps = self.num_steps
    steps_per_second = 0.0
    if self._last_row_steps is not None:
      steps_per_second = (steps - self._last_row_steps) / (now - self._last_row_time)
    self._last_row_time, self._last_row_steps = now, steps
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
