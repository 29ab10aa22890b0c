"""What all environments here share."""

import dm_env
import numpy as np
from dm_env import specs


class Environment(dm_env.Environment):
  """With rewards and discounts of float32.

  Attributes:
    frames_per_step: emulator frames that pass in one step.
  """

  frames_per_step = 1

  def reward_spec(self) -> specs.Array:
    return specs.Array(shape=(), dtype=np.float32, name='reward')

  def discount_spec(self) -> specs.BoundedArray:
    return specs.BoundedArray(
      shape=(), dtype=np.float32, minimum=0.0, maximum=1.0, name='discount'
    )
