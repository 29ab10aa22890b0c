"""One learner step: from a batch to new parameters, priorities and metrics.

`Update` is pure TensorFlow on the variables of two networks and an optimiser. It knows
nothing of threads, replay or logs: these are the learner's.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import sonnet as snt
import tensorflow as tf
import tree
import trfl

from r2d2_acme.config import R2D2Config
from r2d2_acme.learning import delta_q as delta_q_lib
from r2d2_acme.learning import losses
from r2d2_acme.learning.networks import R2D2Network
from r2d2_acme.types import Batch


class _Learned(NamedTuple):
  """What is left of an update by B windows.

  Attributes:
    td_errors: float32 [T, B].
    max_q: the greedy actions' Q-values, float32 [T + 1, B].
    delta_q: float32 [2, B], NaN without a diagnosis.
    loss: float32 [].
    gradient_norm: float32 [], before the gradient is clipped.
  """

  td_errors: tf.Tensor
  max_q: tf.Tensor
  delta_q: tf.Tensor
  loss: tf.Tensor
  gradient_norm: tf.Tensor


class Update:
  """Burn-in, unroll, rescaled n-step double-Q loss, Adam (Kapturowski et al. 2019).

  In the scope of a strategy for several devices, see `devices`, each of them learns
  from its share of a batch.

  Attributes:
    network, target_network: the online network and its older copy.
    optimizer: Adam, with its variables.
    num_steps: int64 variable, the number of updates so far.
  """

  def __init__(
    self, network: R2D2Network, target_network: R2D2Network, config: R2D2Config
  ):
    """Constructs the update; the target's variables become the online network's.

    Args:
      network, target_network: with their variables.
      config: the hyperparameters.
    """
    self.network = network
    self.target_network = target_network
    self.optimizer = snt.optimizers.Adam(
      learning_rate=config.learning_rate, epsilon=config.adam_epsilon
    )
    # An integer: a float32 would stop counting at 2^24.
    self.num_steps = tf.Variable(0, dtype=tf.int64, name='num_steps', trainable=False)
    self._config = config
    self._strategy = tf.distribute.get_strategy()
    # Created now, so that a checkpoint restores them before the first step.
    self.optimizer._initialize(network.trainable_variables)
    self._copy_to_target()

  def __call__(
    self, batch: Batch, diagnose: tf.Tensor
  ) -> tuple[tf.Tensor, Mapping[str, tf.Tensor]]:
    """Updates the variables by a batch.

    Where the gradient is not finite, `gradient_norm` says so, and all variables stay as
    they were.

    Args:
      batch: of tensors.
      diagnose: bool []; without it, Delta-Q is NaN and costs nothing.

    Returns:
      New priorities, float32 [B], and metrics: scalars, or [B] where they are of single
      windows.
    """
    config = self._config
    weights = losses.importance_weights(
      tf.cast(batch.probabilities, tf.float32),
      batch.table_size,
      config.importance_sampling_exponent,
    )
    learned = self._learn_on_all_devices(batch, weights, diagnose)
    mask = batch.mask[config.burn_in_length + 1 :]
    priorities = losses.sequence_priorities(
      learned.td_errors, mask, config.priority_eta
    )
    metrics = {
      'loss': learned.loss,
      'gradient_norm': learned.gradient_norm,
      **_error_metrics(learned.td_errors, mask),
      'mean_priority': tf.reduce_mean(priorities),
      **_value_metrics(learned.max_q, batch.mask[config.burn_in_length :]),
      # Learner steps since the parameters that acted.
      'parameter_age': tf.cast(self.num_steps - batch.learner_steps, tf.float32),
      'delta_q_initial': learned.delta_q[0],
      'delta_q_final': learned.delta_q[1],
      'replay_size': batch.table_size[-1],
    }
    return priorities, metrics

  def _learn_on_all_devices(
    self, batch: Batch, weights: tf.Tensor, diagnose: tf.Tensor
  ) -> _Learned:
    """Lets each device learn from its share of the windows; see `_learn`."""
    strategy = self._strategy
    num_devices = strategy.num_replicas_in_sync
    if num_devices == 1:
      return self._learn(batch, weights, diagnose)
    size = weights.shape[0] // num_devices
    shares = [
      _take(batch, weights, slice(i * size, (i + 1) * size)) for i in range(num_devices)
    ]
    shares = strategy.experimental_distribute_values_from_function(
      lambda context: shares[context.replica_id_in_sync_group]
    )
    learned = strategy.run(self._learn, (*shares, diagnose))
    *by_window, loss, norms = map(strategy.experimental_local_results, learned)
    joined = [tf.concat(x, axis=1) for x in by_window]
    return _Learned._make([*joined, tf.reduce_mean(loss), norms[0]])

  def _learn(self, batch: Batch, weights: tf.Tensor, diagnose: tf.Tensor) -> _Learned:
    """Updates this device's variables, by the mean of the devices' gradients.

    Args:
      batch: the device's share, of tensors.
      weights: importance weights, float32 [B].
      diagnose: bool [].
    """
    config = self._config
    burn_in = config.burn_in_length
    trace = tree.map_structure(lambda x: x[burn_in:], batch.observations)
    online_state, target_state = self._burn_in(batch)
    target_q, _ = self.target_network.unroll(trace, target_state)

    mask = batch.mask[burn_in + 1 :]  # [T, B]: a transition is real if its end is
    with tf.GradientTape() as tape:
      q, _ = self.network.unroll(trace, online_state)  # [T + 1, B, A]
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
    # Before the update, so that all Q-values are of the same parameters.
    delta_q = tf.cond(
      diagnose,
      lambda: delta_q_lib.delta_q(q, self._stored_q(batch), mask),
      lambda: tf.fill([2, tf.shape(mask)[1]], np.nan),
    )
    gradient_norm = self._descend(tape, loss)
    max_q = tf.reduce_max(q, axis=-1)
    return _Learned(td_errors, max_q, delta_q, loss, gradient_norm)

  def _burn_in(self, batch: Batch) -> tuple[snt.LSTMState, snt.LSTMState]:
    """Returns the states of both networks before the first trained row."""
    # Row 0 of the three stored states is that before the window.
    state = tree.map_structure(lambda x: x[:, 0], batch.core_state)
    if self._config.state_strategy == 'zero':
      state = tree.map_structure(tf.zeros_like, state)
    online_state = target_state = state
    burn_in = self._config.burn_in_length
    if burn_in:
      context = tree.map_structure(lambda x: x[:burn_in], batch.observations)
      # After a padded step the state is the initial one, so that an episode's first
      # window starts from exactly that.
      keep = batch.mask[:burn_in]  # [burn-in, B]
      # Each network burns in with its own parameters.
      online_state = self.network.burn_in(context, state, keep)
      target_state = self.target_network.burn_in(context, state, keep)
    # Burn-in only makes a start state: it is not trained through.
    return tree.map_structure(tf.stop_gradient, online_state), target_state

  def _descend(self, tape: tf.GradientTape, loss: tf.Tensor) -> tf.Tensor:
    """Updates all variables if the gradient is finite.

    Returns:
      The gradient's norm before it is clipped.
    """
    variables = self.network.trainable_variables
    gradients = tape.gradient(loss, variables)
    if self._strategy.num_replicas_in_sync > 1:
      context = tf.distribute.get_replica_context()
      gradients = context.all_reduce(tf.distribute.ReduceOp.MEAN, gradients)
    gradients, norm = tf.clip_by_global_norm(gradients, self._config.max_gradient_norm)

    def apply():
      self.optimizer.apply(gradients, variables)
      self.num_steps.assign_add(1)
      is_due = tf.equal(self.num_steps % self._config.target_update_period, 0)
      tf.cond(is_due, self._copy_to_target, tf.no_op)

    # Actors and checkpoints read the parameters, which must not become NaN.
    tf.cond(tf.math.is_finite(norm), apply, lambda: None)
    return norm

  def _stored_q(self, batch: Batch) -> tf.Tensor:
    """Returns Q [2, B, A] from the actor's states at both ends of the trained part."""
    burn_in = self._config.burn_in_length
    index = delta_q_lib.end_indices(batch.mask[burn_in + 1 :]) + [burn_in, 0]
    # Gathered from the whole batch, which is on the CPU: a GPU cannot gather uint8, and
    # would copy its share of the frames back.
    observations = tree.map_structure(
      lambda x: tf.gather_nd(x, index), batch.observations
    )
    core_state = tree.map_structure(
      lambda x: tf.transpose(x[:, 1:], [1, 0, 2]), batch.core_state
    )
    inputs = tree.map_structure(
      lambda x: snt.merge_leading_dims(x, 2), (observations, core_state)
    )
    q, _ = self.network(*inputs)  # [2 x B, A]
    return tf.reshape(q, [2, -1, q.shape[-1]])

  def _copy_to_target(self):
    return trfl.update_target_variables(
      self.target_network.variables, self.network.variables
    )


def _error_metrics(td_errors: tf.Tensor, mask: tf.Tensor) -> dict[str, tf.Tensor]:
  """Returns mean and maximum of the absolute TD errors [T, B] of real transitions."""
  abs_td = tf.abs(td_errors) * mask
  return {
    'mean_abs_td': tf.reduce_sum(abs_td) / tf.reduce_sum(mask),
    'max_abs_td': tf.reduce_max(abs_td),
  }


def _value_metrics(max_q: tf.Tensor, mask: tf.Tensor) -> dict[str, tf.Tensor]:
  """Returns mean and maximum of the greedy actions' Q-values [T + 1, B]."""
  return {
    'mean_q': tf.reduce_sum(max_q * mask) / tf.reduce_sum(mask),
    'max_q': tf.reduce_max(tf.where(mask > 0, max_q, tf.float32.min)),
  }


def _take(batch: Batch, weights: tf.Tensor, windows: slice) -> tuple[Batch, tf.Tensor]:
  """Returns some windows of a batch, and their importance weights [B]."""
  # On the CPU, where the batch is: GPU 0 would get all of it to take its share.
  with tf.device('CPU:0'):
    by_time = (batch.observations, batch.discount, batch.mask)  # [R, B, ...]
    by_window = (*batch[len(by_time) :], weights)  # [B, ...]
    by_time = tree.map_structure(lambda x: x[:, windows], by_time)
    *others, weights = tree.map_structure(lambda x: x[windows], by_window)
  return Batch(*by_time, *others), weights
