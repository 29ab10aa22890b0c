"""Seeds that derive from one."""

import numpy as np


def derive_seed(seed: int, *path: int) -> int:
  """Returns a seed in [0, 2^31) for each path, independent of all others."""
  state = np.random.SeedSequence(seed, spawn_key=path).generate_state(1)
  return int(state[0]) >> 1
