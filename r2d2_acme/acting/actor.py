"""The agent as an `acme.core.Actor`, for Acme's own environment loop.

In come the timesteps of one environment, out go its actions.
"""

import acme
import dm_env
import numpy as np

from r2d2_acme.acting.policy import BatchedActor
from r2d2_acme.environments import base


class R2D2Actor(acme.Actor):
  """`acme.core.Actor` over a `BatchedActor` of one environment."""

  def __init__(self, actor: BatchedActor):
    self._actor = actor
    self._action = np.zeros(1, np.int32)
    self._timestep: dm_env.TimeStep | None = None

  def observe_first(self, timestep: dm_env.TimeStep):
    """Starts an episode. One that a loop left unfinished ends as truncated.

    Raises:
      ValueError: the actor has several environments.
    """
    if len(self._actor.epsilons) != 1:
      raise ValueError(
        'an environment loop of Acme has one environment: set envs_per_actor=1, not '
        f'{len(self._actor.epsilons)}, or use VectorEnvironmentLoop'
      )
    self._timestep = timestep

  def select_action(self, observation) -> np.ndarray:
    """Returns the action, int32 [], for the timestep that was observed last."""
    del observation  # the newest timestep has it
    return self._actor.select_actions(self._action, [self._timestep])[0]

  def observe(self, action, next_timestep: dm_env.TimeStep):
    """Takes the timestep that an action led to.

    Raises:
      ValueError: the reward or the discount is not a single number.
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
    """Fetches new parameters when they are due, see `BatchedActor.update`."""
    self._actor.update(wait)
