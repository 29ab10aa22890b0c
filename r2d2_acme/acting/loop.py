"""The loop between a policy and E environments, which all take each step together.

In come environments and a policy. Out go counts of steps, frames and episodes, and a
row of the log for each episode.
"""

import time
from collections.abc import Callable, Sequence

import dm_env
import numpy as np
from acme.utils import counting, loggers

from r2d2_acme.acting.policy import BatchedActor
from r2d2_acme.environments import EpisodeLost, checked

_RATE_PERIOD = 10.0  # seconds


class VectorEnvironmentLoop:
  """Acme's environment loop for E environments that share each network call.

  It counts `steps`, `frames` (raw frames of the emulator) and `episodes`, and writes a
  row for each episode.

  When an environment raises `EpisodeLost`, its episode ends without a row and without
  the window that was not complete, and its `reset` starts another one. The other
  environments lose nothing.
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
    self._num_failures = 0
    self._forget_episodes()
    self._rate = _Rate()

  def run(self, num_steps: int | None = None, num_episodes: int | None = None):
    """Runs until the given number of steps or episodes is done, or `should_stop`.

    The actor, and with it replay, learns of an episode's end by the network call that
    follows. After an exception, such as Ctrl-C, the next `run` starts new episodes.

    Args:
      num_steps: further steps of all environments together; None for no limit.
      num_episodes: further episodes of all environments together; None for no limit.

    Raises:
      EnvironmentFailed: an environment failed, and cannot go on.
    """
    if not self._timesteps:
      self._timesteps = [self._reset(i) for i in range(len(self._environments))]
    steps = episodes = 0
    while not self._should_stop():
      if num_steps is not None and steps >= num_steps:
        return
      if num_episodes is not None and episodes >= num_episodes:
        return
      try:
        new_steps, new_episodes = self._step()
      except BaseException:
        self._forget_episodes()  # only some environments have taken this step
        raise
      steps += new_steps
      episodes += new_episodes

  def _forget_episodes(self):
    num_envs = len(self._environments)
    self._timesteps = []
    self._returns = [0.0] * num_envs
    self._lengths = [0] * num_envs

  def _step(self):
    """Acts once; returns the numbers of steps and of episodes that this completed."""
    self._actions = self._actor.select_actions(self._actions, self._timesteps)
    steps = 0
    ended = []
    for i, environment in enumerate(self._environments):
      if self._timesteps[i].last():
        self._timesteps[i] = self._reset(i)
        continue
      try:
        timestep = environment.step(self._actions[i])
      except EpisodeLost:
        self._drop_episode(i)
        self._timesteps[i] = self._reset(i)
        continue
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

  def _reset(self, index: int) -> dm_env.TimeStep:
    """Starts an episode, however often the environment must be made again for it."""
    while True:
      try:
        return self._environments[index].reset()
      except EpisodeLost:
        self._drop_episode(index)
        if self._should_stop():
          raise

  def _drop_episode(self, index: int):
    self._num_failures += 1
    self._returns[index] = 0.0
    self._lengths[index] = 0
    self._actor.drop_episode(index)

  def _write_episodes(self, environments: Sequence[int]):
    counts = self._counter.get_counts()
    for i in environments:
      self._logger.write(
        {
          'episode_return': self._returns[i],
          'episode_length': self._lengths[i],
          'epsilon': self._actor.epsilons[i],
          'steps_per_second': self._rate.per_second,
          'environment_failures': self._num_failures,
          **counts,
        }
      )
      self._returns[i] = 0.0
      self._lengths[i] = 0


class _Rate:
  """Events per second over the last ten seconds or more."""

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
    """Events per second in the last whole period or, before its end, in the first."""
    if self._last is not None:
      return self._last
    return self._num / (time.time() - self._since)
