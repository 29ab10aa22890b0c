"""Exploration: from Q-values to actions, with an epsilon for each environment."""

from collections.abc import Sequence

import numpy as np

from r2d2_acme.config import R2D2Config
from r2d2_acme.types import INVALID_Q

_NUM_DRAWS = 256  # steps whose random numbers are drawn together


def epsilon_ladder(config: R2D2Config) -> np.ndarray:
  """Returns eps_i = base^(1 + alpha i / (N - 1)) for the fleet's N environments.

  Horgan et al. 2018, section 4. A single environment gets `epsilon_base`.

  Returns:
    float64 [N], in the order of the actors and of the environments of each.
  """
  num = config.num_environments
  exponents = 1 + config.epsilon_alpha * np.arange(num) / max(num - 1, 1)
  return config.epsilon_base**exponents


class EpsilonGreedy:
  """Chooses the greedy action or, with probability epsilon, any valid one at random.

  Attributes:
    epsilons: one for each of E environments.
  """

  def __init__(self, epsilons: Sequence[float], seeds: Sequence[int], num_actions: int):
    """Epsilons and seeds are one for each environment."""
    self.epsilons = epsilons
    self._rngs = [np.random.default_rng(seed) for seed in seeds]
    self._num_actions = num_actions
    self._explorations: list[list[tuple[int, int]]] = []

  def __call__(self, q: np.ndarray) -> np.ndarray:
    """Returns actions, int32 [E], by Q-values, float32 [E, A].

    An action with the Q-value `INVALID_Q` is not valid.
    """
    if not self._explorations:
      self._explorations = self._draw()
    actions = q.argmax(axis=-1).astype(np.int32)
    for i, action in self._explorations.pop():
      if q[i, action] == INVALID_Q:  # a second draw makes valid ones equally likely
        action = self._rngs[i].choice(np.flatnonzero(q[i] != INVALID_Q))
      actions[i] = action
    return actions

  def _draw(self) -> list[list[tuple[int, int]]]:
    """Draws for each of many steps who explores and how: [(environment, action)]."""
    explorations: list[list[tuple[int, int]]] = [[] for _ in range(_NUM_DRAWS)]
    for i, (epsilon, rng) in enumerate(zip(self.epsilons, self._rngs, strict=True)):
      actions = rng.integers(self._num_actions, size=_NUM_DRAWS)
      for step in np.flatnonzero(rng.random(_NUM_DRAWS) < epsilon):
        explorations[step].append((i, actions[step]))
    return explorations
