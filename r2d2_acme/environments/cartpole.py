"""CartPole without velocities, which the agent must infer from past observations."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv

VELOCITYLESS_CARTPOLE = 'VelocitylessCartPole-v1'

_POSITIONS = [0, 2]  # position of the cart, angle of the pole; 1 and 3: velocities


class _Velocityless(gymnasium.ObservationWrapper):
  """Observes the positions only, <float32>[2]."""

  def __init__(self, env: gymnasium.Env):
    super().__init__(env)
    space = env.observation_space
    assert isinstance(space, spaces.Box)
    self.observation_space = spaces.Box(space.low[_POSITIONS], space.high[_POSITIONS])

  def observation(self, observation: np.ndarray) -> np.ndarray:
    return observation[_POSITIONS]


def _make(**kwargs: Any) -> gymnasium.Env:
  return _Velocityless(CartPoleEnv(**kwargs))


# As in CartPole-v1, each step earns 1 and an episode is cut off after 500 steps.
# RLlib's StatelessCartPole has the same observations.
gymnasium.register(VELOCITYLESS_CARTPOLE, entry_point=_make, max_episode_steps=500)
