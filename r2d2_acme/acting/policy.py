"""The policy: from the timesteps of E environments to actions, in one network call.

In come the timesteps of E environments. Out go their next actions and, to an adder for
each environment, the steps with the Q-values and recurrent states that replay needs.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import acme
import dm_env
import numpy as np
import sonnet as snt
import tensorflow as tf
import tree
from acme import specs
from acme.tf import variable_utils

from r2d2_acme import calls
from r2d2_acme.acting.exploration import EpsilonGreedy
from r2d2_acme.config import R2D2Config
from r2d2_acme.observations import kinds
from r2d2_acme.types import Observation, Step


class Adder(Protocol):
  """Takes the steps of one environment, such as `replay.adder.WindowAdder`."""

  num_windows: int

  def add(
    self,
    step: Step,
    core_state,
    q: np.ndarray,
    *,
    last: bool,
    first: bool = False,
    learner_steps: int = 0,
  ): ...

  def drop_episode(self): ...

  def flush(self): ...


class BatchedActor:
  """Epsilon-greedy recurrent policy for E environments.

  It keeps what lives as long as an episode: each environment's recurrent state and the
  network's input, which may hold earlier frames. Both start as zeros.

  Attributes:
    q: float32 [E, A], the Q-values of the latest step; `types.INVALID_Q` where an
      action is not valid.
  """

  def __init__(
    self,
    network: snt.RNNCore,
    config: R2D2Config,
    environment_spec: specs.EnvironmentSpec,
    epsilons: Sequence[float],
    seeds: Sequence[int],
    adders: Sequence[Adder] | None = None,
  ):
    """Constructs the policy.

    Args:
      network: with its variables.
      config: the hyperparameters.
      environment_spec: of a single environment.
      epsilons, seeds: one for each of the E environments.
      adders: one for each of the E environments; None writes nothing to replay.
    """
    num_actions = environment_spec.actions.num_values
    self._explore = EpsilonGreedy(epsilons, seeds, num_actions)
    self._adders = adders
    self._variable_client: variable_utils.VariableClient | None = None
    self._variables = network.variables
    self._update_period = config.variable_update_period
    self._clip_rewards = config.clip_rewards
    num_envs = len(epsilons)
    self._kind = kinds.make(environment_spec.observations, config)
    self._inputs = self._kind.make_inputs(num_envs)
    self._flat_inputs = tree.flatten(self._inputs)  # the same arrays
    self._core_state = tree.map_structure(np.array, network.initial_state(num_envs))
    self._is_over = [True] * num_envs  # whether the next timestep starts an episode
    self.q = np.zeros((num_envs, num_actions), np.float32)

    def policy(*args):
      *inputs, actions, rewards, hidden, cell = args
      inputs = tree.unflatten_as(self._inputs, inputs)
      q, next_state = network(
        Observation(inputs, actions, rewards), snt.LSTMState(hidden, cell)
      )
      return [q, *next_state]

    self._policy = calls.Traced(
      policy,
      *(tf.TensorSpec(x.shape, x.dtype) for x in self._flat_inputs),
      tf.TensorSpec([num_envs], tf.int32),
      tf.TensorSpec([num_envs], tf.float32),
      *(tf.TensorSpec(x.shape, x.dtype) for x in self._core_state),
    )
    self._age = _ParameterAge(self._policy.load)

  @property
  def num_windows(self) -> int:
    """Windows written so far."""
    return sum(adder.num_windows for adder in self._adders or ())

  def flush(self):
    """Blocks until the server has all windows."""
    for adder in self._adders or ():
      adder.flush()

  @property
  def epsilons(self) -> Sequence[float]:
    """The probabilities of a random action, one for each environment."""
    return self._explore.epsilons

  @property
  def learner_steps(self) -> int:
    """The number of learner steps that made the parameters it acts with."""
    return self._age.learner_steps

  def select_actions(
    self, actions: np.ndarray, timesteps: Sequence[dm_env.TimeStep]
  ) -> np.ndarray:
    """Returns an action for every environment.

    A FIRST timestep starts an episode, and so does any timestep that follows a LAST
    one. A FIRST timestep in the middle of an episode ends that episode as truncated.
    The action after a LAST timestep has no meaning; the call is needed all the same,
    because replay stores the Q-values of the last observation for the bootstrap.

    Args:
      actions: int32 [E], the actions that led to `timesteps`.
      timesteps: the newest timestep of each of the E environments.

    Returns:
      int32 [E], the next actions.
    """
    is_first = [
      timestep.first() or is_over
      for timestep, is_over in zip(timesteps, self._is_over, strict=True)
    ]
    self._is_over = [timestep.last() for timestep in timesteps]
    if any(is_first):
      actions = np.where(is_first, 0, actions)
      self._core_state = tree.map_structure(
        lambda x: np.where(np.expand_dims(is_first, -1), 0, x), self._core_state
      )
    rewards = np.zeros(len(timesteps), np.float32)
    for i, timestep in enumerate(timesteps):
      if not is_first[i]:
        rewards[i] = timestep.reward
    if self._clip_rewards:  # for the network and replay; logs count them as they are
      rewards = np.clip(rewards, -1, 1)
    frames = [timestep.observation for timestep in timesteps]
    self._kind.push_frames(self._inputs, frames, is_first)
    self.q, *next_state = self._policy(
      *self._flat_inputs, actions, rewards, *self._core_state
    )
    if self._adders is not None:
      self._add(actions, rewards, timesteps, is_first)
    self._core_state = snt.LSTMState(*next_state)
    return self._explore(self.q)

  def drop_episode(self, index: int):
    """Drops what replay does not hold yet of an environment's current episode.

    The environment's next timestep starts an episode.
    """
    self._is_over[index] = True
    if self._adders is not None:
      self._adders[index].drop_episode()

  def fetch(self, source: acme.VariableSource):
    """Copies the source's parameters and waits until they are here."""
    self._make_client(source).update_and_wait()

  def follow(self, source: acme.VariableSource):
    """Fetches the source's parameters now, and later as often as `update` is due."""
    self._variable_client = self._make_client(source)
    self._variable_client.update_and_wait()

  def update(self, wait: bool = False):
    """Fetches the followed source's parameters every `variable_update_period` calls.

    Args:
      wait: whether to wait for the parameters, or to fetch them in the background.
    """
    if self._variable_client is not None:
      self._variable_client.update(wait)

  def _make_client(self, source: acme.VariableSource):
    return variable_utils.VariableClient(
      source,
      {'policy': [*self._variables, self._age]},
      update_period=self._update_period,
    )

  def _add(self, actions, rewards, timesteps, is_first):
    hidden, cell = self._core_state
    for i, (adder, timestep) in enumerate(zip(self._adders, timesteps, strict=True)):
      discount = 1.0 if is_first[i] else timestep.discount
      step = Step(timestep.observation, actions[i], rewards[i], discount, mask=1.0)
      adder.add(
        step,
        snt.LSTMState(hidden[i], cell[i]),
        self.q[i],
        first=is_first[i],
        last=timestep.last(),
        learner_steps=self._age.learner_steps,
      )


class _ParameterAge:
  """Receives the age of fetched parameters, in learner steps.

  A variable client takes it for one more variable, the last one. Thus when it is
  assigned, the new values of all others are there.
  """

  def __init__(self, on_new_parameters: Callable[[], None]):
    self.learner_steps = 0
    self._on_new_parameters = on_new_parameters

  def assign(self, learner_steps: np.ndarray):
    self.learner_steps = int(learner_steps)
    self._on_new_parameters()
