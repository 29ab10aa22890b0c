"""The recurrent Q-network: torso, LSTM, duelling head.

Observations, previous actions and rewards, and a recurrent state come in; Q-values and
the next state go out. Kapturowski et al. 2019, section 2.3: a torso that depends on the
kind of observation, an LSTM that also sees the previous action and reward, and the
duelling head of Wang et al. 2016.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import sonnet as snt
import tensorflow as tf
import tree
from acme import specs
from acme.tf import utils as tf_utils

from r2d2_acme import types
from r2d2_acme.config import R2D2Config
from r2d2_acme.learning import lstm
from r2d2_acme.observations import kinds, layouts
from r2d2_acme.observations.base import Kind


class DuellingHead(snt.Module):
  """Q(s, a) = V(s) + A(s, a) - mean_a A(s, a) (Wang et al. 2016, equation 9).

  V and A have one hidden layer each.
  """

  def __init__(self, num_actions: int, hidden_size: int, name: str | None = None):
    super().__init__(name=name)
    self._value = snt.nets.MLP([hidden_size, 1], name='value')
    self._advantage = snt.nets.MLP([hidden_size, num_actions], name='advantage')

  def __call__(self, features: tf.Tensor) -> tf.Tensor:
    """Turns features, float32 [N, D], into Q-values, float32 [N, A]."""
    advantage = self._advantage(features)  # [N, A]
    mean = tf.reduce_mean(advantage, axis=-1, keepdims=True)  # [N, 1]
    return self._value(features) + advantage - mean


class R2D2Network(snt.RNNCore):
  """Q-values from observations, previous actions, previous rewards and a state.

  Actors use `__call__`, the learner uses `unroll` and `burn_in`. All three compute the
  same function of the same weights.
  """

  def __init__(
    self,
    num_actions: int,
    torso: snt.Module,
    core_size: int,
    head_size: int,
    recurrent: bool = True,
    action_mask: int | None = None,
    name: str = 'r2d2_network',
  ):
    """Constructs the network.

    Args:
      num_actions: A.
      torso: a module from observations [N, ...] to float32 [N, D].
      core_size: the number of LSTM units.
      head_size: the number of hidden units in each stream of the duelling head.
      recurrent: False makes the baseline without memory, see `lstm.MemorylessLSTM`.
      action_mask: which part of the observations, then a tuple, is the mask of valid
        actions [N, A]; None without masks.
      name: of the module.
    """
    super().__init__(name=name)
    self._num_actions = num_actions
    self._torso = torso
    self._action_mask = action_mask
    make_core = lstm.LSTM if recurrent else lstm.MemorylessLSTM
    self._core = make_core(core_size)
    self._head = DuellingHead(num_actions, head_size)

  def __call__(
    self, observation: types.Observation, core_state: snt.LSTMState
  ) -> tuple[tf.Tensor, snt.LSTMState]:
    """Computes one step of B environments.

    Args:
      observation: leading axis [B].
      core_state: the state before the step.

    Returns:
      Q-values, float32 [B, A], and the next state. An action that is not valid has
      `types.INVALID_Q`, so that it is never the best one.
    """
    output, next_state = self._core(self.features(observation), core_state)
    return self._masked(self._head(output), observation), next_state

  def unroll(
    self,
    observations: types.Observation,
    core_state: snt.LSTMState,
    keep: tf.Tensor | None = None,
  ) -> tuple[tf.Tensor, snt.LSTMState]:
    """Computes T steps; equals T calls, but applies torso and head once to [T x B].

    Args:
      observations: leading axes [T, B].
      core_state: the state before the first step.
      keep: float32 [T, B] or None; 0 restores the initial state after that step, see
        `lstm.LSTM.unroll`.

    Returns:
      Q-values, float32 [T, B, A], and the state after the last step.
    """
    features = _batch_apply(self.features, observations)  # [T, B, D + A + 1]
    outputs, final_state = self._core.unroll(features, core_state, keep)
    return self._masked(_batch_apply(self._head, outputs), observations), final_state

  def burn_in(
    self,
    observations: types.Observation,
    core_state: snt.LSTMState,
    keep: tf.Tensor | None = None,
  ) -> snt.LSTMState:
    """Returns the state after the last step of `unroll`, without the Q-values."""
    features = _batch_apply(self.features, observations)  # [T, B, D + A + 1]
    return self._core.unroll(features, core_state, keep)[1]

  def features(self, observation: types.Observation) -> tf.Tensor:
    """Returns the LSTM's input: the torso's features, previous action and reward.

    Kapturowski et al. 2019 do not say how the reward enters. As in Acme it goes through
    tanh, because unclipped Atari rewards reach thousands and would saturate the gates.

    Returns:
      float32 [N, D + A + 1].
    """
    action = tf.one_hot(observation.action, self._num_actions)  # [N, A]
    reward = tf.tanh(observation.reward)[:, tf.newaxis]  # [N, 1]
    return tf.concat([self._torso(observation.observation), action, reward], axis=-1)

  def _masked(self, q: tf.Tensor, observation: types.Observation) -> tf.Tensor:
    """Gives `types.INVALID_Q` to actions that a mask [..., A] forbids.

    Where no action is valid, as after an episode's end and in padding, none is masked:
    these Q-values are not used.
    """
    if self._action_mask is None:
      return q
    is_valid = tf.cast(observation.observation[self._action_mask], tf.bool)
    is_valid |= ~tf.reduce_any(is_valid, axis=-1, keepdims=True)
    return tf.where(is_valid, q, types.INVALID_Q)

  def initial_state(self, batch_size: int) -> snt.LSTMState:
    """Returns the state before an episode, zeros [B, H] each."""
    return self._core.initial_state(batch_size)


def make_network(
  config: R2D2Config,
  environment_spec: specs.EnvironmentSpec,
  torso_dtype: tf.DType = tf.float32,
  make_torso: Callable[[Any], snt.Module] | None = None,
) -> R2D2Network:
  """Builds the network that fits an environment, variables included.

  Initialisation is reproducible given `tf.random.set_seed`.

  Args:
    config: the hyperparameters.
    environment_spec: of a single environment, with discrete actions. The kind of its
      observations decides the torso, see `observations.kinds`.
    torso_dtype: of the products in the torso, see `observations.base.Kind.make_torso`.
    make_torso: makes another torso instead, see `observations.base.Kind.adapt_torso`.

  Raises:
    ValueError: no network here fits the environment.
  """
  actions = environment_spec.actions
  layouts.check(
    environment_spec.observations,
    actions,
    environment_spec.rewards,
    config.max_actions,
  )
  kind = kinds.make(environment_spec.observations, config)
  network = R2D2Network(
    actions.num_values,
    _make_own_torso(kind, make_torso) if make_torso else kind.make_torso(torso_dtype),
    config.core_size,
    config.head_size,
    config.recurrent,
    kind.action_mask,
  )
  inputs = types.Observation(
    observation=kind.input_spec,
    action=specs.Array([], np.int32),
    reward=specs.Array([], np.float32),
  )
  tf_utils.create_variables(network, [inputs])
  return network


def _make_own_torso(kind: Kind, make_torso: Callable[[Any], snt.Module]) -> snt.Module:
  """Makes a user's torso, and raises ValueError, one line, if it cannot be one."""

  def make_module(spec: Any) -> snt.Module:
    module = make_torso(spec)
    if not isinstance(module, tf.Module):  # its variables would not be found
      raise ValueError(f'a torso must be a Sonnet module, not {type(module).__name__}')
    return module

  torso = kind.adapt_torso(make_module)
  inputs = tree.map_structure(
    lambda spec: tf.zeros([1, *spec.shape], spec.dtype), kind.input_spec
  )
  features = torso(inputs)
  if not tf.is_tensor(features):
    raise ValueError(
      'a torso must turn inputs [N, ...] into features, float32 [N, D], not into a '
      f'{type(features).__name__}'
    )
  if features.dtype != tf.float32 or features.shape.rank != 2:
    raise ValueError(
      'a torso must turn inputs [N, ...] into features, float32 [N, D], not into '
      f'{features.dtype.name} {features.shape}'
    )
  return torso


def estimate_parameters(
  config: R2D2Config, environment_spec: specs.EnvironmentSpec
) -> int:
  """Returns about how many parameters the network has, without making it.

  It counts the matrices of the linear layers, of the LSTM and of the duelling head;
  convolutions and biases have few.
  """
  inputs = kinds.make(environment_spec.observations, config).torso_inputs
  num_actions = environment_spec.actions.num_values
  core_inputs = config.torso_size + num_actions + 1 + config.core_size
  return (
    inputs * config.torso_size
    + 4 * core_inputs * config.core_size
    + config.head_size * (2 * config.core_size + 1 + num_actions)
  )


def _batch_apply(function: Callable[..., tf.Tensor], inputs):
  """Applies a function of [N, ...] once to all of [T, B, ...], with N = T x B.

  `snt.BatchApply` does the same, but is a module, on which AutoGraph spends seconds.
  """
  merged = tree.map_structure(lambda x: snt.merge_leading_dims(x, 2), inputs)
  return snt.split_leading_dim(function(merged), tree.flatten(inputs)[0], 2)
