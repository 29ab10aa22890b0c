"""Acting: E environments, one network call.

`BatchedActor` is the policy and its memory for E environments. `R2D2Actor` is its
`acme.core.Actor` face for E = 1; `VectorEnvironmentLoop` runs E environments.
"""

import time
from collections.abc import Callable, Sequence

import acme
import dm_env
import numpy as np
import sonnet as snt
import tensorflow as tf
import tree
from acme import specs
from acme.tf import variable_utils
from acme.utils import counting, loggers

from r2d2_acme import networks, tracing
from r2d2_acme.adder import SequenceAdder
from r2d2_acme.config import R2D2Config
from r2d2_acme.environments import base, checked
from r2d2_acme.networks import R2D2Network
from r2d2_acme.types import Observation, Step

_RATE_PERIOD = 10.0  # seconds
_NUM_DRAWS = 256  # steps whose random numbers are drawn together


def epsilon_ladder(config: R2D2Config) -> np.ndarray:
  """eps_i = base^(1 + alpha i / (N - 1)) for the fleet's N environments.

  Float64 [N]; Horgan et al. 2018, section 4. One environment gets `epsilon_base`.
  """
  num = config.num_environments
  exponents = 1 + config.epsilon_alpha * np.arange(num) / max(num - 1, 1)
  return config.epsilon_base**exponents


class BatchedActor:
  """Epsilon-greedy recurrent policy for E environments.

  It keeps for each environment what lives as long as an episode: the recurrent
  state and the stack of frames, both of zeros at an episode's first step.

  Attributes:
    q: float32 [E, A], the Q-values of the latest step.
  """

  def __init__(
    self,
    network: R2D2Network,
    config: R2D2Config,
    environment_spec: specs.EnvironmentSpec,
    epsilons: Sequence[float],
    seeds: Sequence[int],
    adders: Sequence[SequenceAdder] | None = None,
  ):
    """Epsilons, seeds and adders are one for each environment."""
    frame = environment_spec.observations
    self._num_actions = environment_spec.actions.num_values
    self._epsilons = epsilons
    self._rngs = [np.random.default_rng(seed) for seed in seeds]
    self._explorations: list[list[tuple[int, int]]] = []
    self._adders = adders
    self._variable_client: variable_utils.VariableClient | None = None
    self._variables = network.variables
    self._update_period = config.variable_update_period
    num_envs = len(epsilons)
    *shape, self._num_channels = frame.shape
    num_channels = self._num_channels * networks.num_stacked(config, frame)
    # The newest frames, oldest first, stacked along the channels.
    self._stacks = np.zeros((num_envs, *shape, num_channels), frame.dtype)
    self._core_state = tree.map_structure(np.array, network.initial_state(num_envs))
    self._is_over = [True] * num_envs  # whether the next timestep starts an episode
    self.q = np.zeros((num_envs, self._num_actions), np.float32)

    def policy(stacks, actions, rewards, *core_state):
      q, next_state = network(
        Observation(stacks, actions, rewards), snt.LSTMState(*core_state)
      )
      return [q, *next_state]

    self._policy = tracing.Traced(
      policy,
      tf.TensorSpec(self._stacks.shape, self._stacks.dtype),
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
    return self._epsilons

  @property
  def learner_steps(self) -> int:
    """How many learner steps made the parameters that it acts with."""
    return self._age.learner_steps

  def select_actions(
    self, actions: np.ndarray, timesteps: Sequence[dm_env.TimeStep]
  ) -> np.ndarray:
    """Returns an action for every environment.

    A FIRST timestep starts an episode, and so does whatever follows a LAST one. A LAST
    timestep is written to replay, with its Q-values for the bootstrap, and its action
    has no meaning. A FIRST timestep in the middle of an episode ends that as truncated.

    Args:
      actions: int32 [E], those that led to `timesteps`.
      timesteps: E of them.

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
    self._push_frames(timesteps, is_first)
    self.q, *next_state = self._policy(
      self._stacks, actions, rewards, *self._core_state
    )
    if self._adders is not None:
      self._add(actions, rewards, timesteps, is_first)
    self._core_state = snt.LSTMState(*next_state)
    return self._epsilon_greedy()

  def fetch(self, source: acme.VariableSource):
    """Takes the source's parameters, now."""
    self._make_client(source).update_and_wait()

  def follow(self, source: acme.VariableSource):
    """Fetches now and, with each `update`, every `variable_update_period` calls."""
    self._variable_client = self._make_client(source)
    self._variable_client.update_and_wait()

  def update(self, wait: bool = False):
    """Fetches the followed source's parameters when due, in the background."""
    if self._variable_client is not None:
      self._variable_client.update(wait)

  def _make_client(self, source: acme.VariableSource):
    return variable_utils.VariableClient(
      source,
      {'policy': [*self._variables, self._age]},
      update_period=self._update_period,
    )

  def _push_frames(self, timesteps, is_first):
    """Moves every stack on by one frame; those before an episode's first are zero."""
    new = self._num_channels
    # All of memory moves by one frame's channels: in each pixel all frames get older,
    # and what comes in from the next pixel is where the newest now goes.
    flat = self._stacks.reshape(-1)
    flat[:-new] = flat[new:]
    for i, timestep in enumerate(timesteps):
      self._stacks[i, ..., -new:] = timestep.observation
      if is_first[i]:
        self._stacks[i, ..., :-new] = 0

  def _epsilon_greedy(self) -> np.ndarray:
    if not self._explorations:
      self._explorations = self._draw_explorations()
    actions = self.q.argmax(axis=-1).astype(np.int32)
    for i, action in self._explorations.pop():
      actions[i] = action
    return actions

  def _draw_explorations(self) -> list[list[tuple[int, int]]]:
    """For each of many steps, who acts at random and how: [(environment, action)]."""
    explorations: list[list[tuple[int, int]]] = [[] for _ in range(_NUM_DRAWS)]
    for i, (epsilon, rng) in enumerate(zip(self._epsilons, self._rngs, strict=True)):
      actions = rng.integers(self._num_actions, size=_NUM_DRAWS)
      for step in np.flatnonzero(rng.random(_NUM_DRAWS) < epsilon):
        explorations[step].append((i, actions[step]))
    return explorations

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
  """Takes the last of the values that are fetched, the parameters' age.

  To a variable client it is one more variable. When it is assigned, all others are.
  """

  def __init__(self, on_new_parameters: Callable[[], None]):
    self.learner_steps = 0
    self._on_new_parameters = on_new_parameters

  def assign(self, learner_steps: np.ndarray):
    self.learner_steps = int(learner_steps)
    self._on_new_parameters()


class R2D2Actor(acme.Actor):
  """`acme.core.Actor` over a `BatchedActor` of one environment."""

  def __init__(self, actor: BatchedActor):
    self._actor = actor
    self._action = np.zeros(1, np.int32)
    self._timestep: dm_env.TimeStep | None = None

  def observe_first(self, timestep: dm_env.TimeStep):
    """Starts an episode; one that a loop left unfinished ends as truncated.

    Raises:
      ValueError: the actor has other than one environment.
    """
    if len(self._actor.epsilons) != 1:
      raise ValueError(
        'an environment loop of Acme has one environment: set envs_per_actor=1, not '
        f'{len(self._actor.epsilons)}, or use VectorEnvironmentLoop'
      )
    self._timestep = timestep

  def select_action(self, observation) -> np.ndarray:
    del observation  # that of the timestep observed last
    return self._actor.select_actions(self._action, [self._timestep])[0]

  def observe(self, action, next_timestep: dm_env.TimeStep):
    """Takes the timestep that an action led to.

    Raises:
      ValueError: its reward or its discount is not one number.
    """
    self._action = np.array([action], np.int32)
    if next_timestep.first():  # the environment has reset itself
      self._timestep = next_timestep
      return
    self._timestep = next_timestep._replace(
      reward=base.to_float32(next_timestep.reward, 'reward'),
      discount=base.to_float32(next_timestep.discount, 'discount'),
    )
    if next_timestep.last():
      self._actor.select_actions(self._action, [self._timestep])

  def update(self, wait: bool = False):
    self._actor.update(wait)


class VectorEnvironmentLoop:
  """Acme's environment loop, for E environments in step.

  Counts `steps`, `frames` (raw frames of the emulator) and `episodes`; writes one
  row for each episode.
  """

  def __init__(
    self,
    environments: Sequence[dm_env.Environment],
    actor: BatchedActor,
    counter: counting.Counter,
    logger: loggers.Logger,
    should_stop: Callable[[], bool] = lambda: False,
  ):
    self._environments = [checked(environment) for environment in environments]
    self._actor = actor
    self._counter = counter
    self._logger = logger
    self._should_stop = should_stop
    self._frames_per_step = getattr(environments[0], 'frames_per_step', 1)
    self._actions = np.zeros(len(environments), np.int32)
    self._timesteps: list[dm_env.TimeStep]
    self._forget_episodes()
    self._rate = _Rate()

  def run(self, num_steps: int | None = None, num_episodes: int | None = None):
    """Runs until `num_steps` more steps, or episodes, are done, or `should_stop`.

    An episode's end reaches the actor, and so replay, with the next call. After an
    exception, such as Ctrl-C, the next call starts new episodes.
    """
    if not self._timesteps:
      self._timesteps = [environment.reset() for environment in self._environments]
    steps = episodes = 0
    while not self._should_stop():
      if num_steps is not None and steps >= num_steps:
        return
      if num_episodes is not None and episodes >= num_episodes:
        return
      try:
        new_steps, new_episodes = self._step()
      except BaseException:
        self._forget_episodes()  # some environments have taken a step, others not
        raise
      steps += new_steps
      episodes += new_episodes

  def _forget_episodes(self):
    num_envs = len(self._environments)
    self._timesteps = []
    self._returns = [0.0] * num_envs
    self._lengths = [0] * num_envs

  def _step(self):
    """One network call; returns how many steps and episodes it completed."""
    self._actions = self._actor.select_actions(self._actions, self._timesteps)
    steps = 0
    ended = []
    for i, environment in enumerate(self._environments):
      if self._timesteps[i].last():
        self._timesteps[i] = environment.reset()
        continue
      timestep = environment.step(self._actions[i])
      self._timesteps[i] = timestep
      if timestep.first():  # the environment has reset itself
        ended.append(i)
        continue
      self._returns[i] += timestep.reward
      self._lengths[i] += 1
      steps += 1
      if timestep.last():
        ended.append(i)
    episodes = len(ended)
    self._rate.add(steps)
    self._counter.increment(
      steps=steps, frames=steps * self._frames_per_step, episodes=episodes
    )
    if ended:
      self._write_episodes(ended)
    self._actor.update()
    return steps, episodes

  def _write_episodes(self, environments: Sequence[int]):
    counts = self._counter.get_counts()
    for i in environments:
      self._logger.write(
        {
          'episode_return': self._returns[i],
          'episode_length': self._lengths[i],
          'epsilon': self._actor.epsilons[i],
          'steps_per_second': self._rate.per_second,
          **counts,
        }
      )
      self._returns[i] = 0.0
      self._lengths[i] = 0


class _Rate:
  """Events per second over the last ten seconds or so."""

  def __init__(self):
    self._num = 0
    self._since = time.time()
    self._last: float | None = None

  def add(self, num: int):
    self._num += num
    elapsed = time.time() - self._since
    if elapsed >= _RATE_PERIOD:
      self._last = self._num / elapsed
      self._num, self._since = 0, time.time()

  @property
  def per_second(self) -> float:
    """That of the last whole period, or of what there is of the first."""
    if self._last is not None:
      return self._last
    return self._num / (time.time() - self._since)
