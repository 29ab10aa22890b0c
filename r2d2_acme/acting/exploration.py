"""Exploration: one epsilon for each environment of the fleet."""

import numpy as np

from r2d2_acme.config import R2D2Config


def epsilon_ladder(config: R2D2Config) -> np.ndarray:
  """eps_i = base^(1 + alpha i / (N - 1)) for the fleet's N environments.

  Float64 [N]; Horgan et al. 2018, section 4. One environment gets `epsilon_base`.
  """
  num = config.num_environments
  exponents = 1 + config.epsilon_alpha * np.arange(num) / max(num - 1, 1)
  return config.epsilon_base**exponents
