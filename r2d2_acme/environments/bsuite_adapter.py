"""bsuite's memory experiments (Osband et al. 2020) with observations for this agent."""

import dm_env
import numpy as np
from dm_env import specs

from r2d2_acme.environments import base

_REQUIREMENT = 'bsuite==0.3.6'  # in setup.py's extra `test`
_EXPERIMENTS = ('memory_len', 'memory_size')


class BsuiteAdapter(base.Environment):
  """Gives a bsuite environment observations <float32>[D] and rewards <float32>[].

  Attributes:
    max_return: the undiscounted return of a perfect policy, 1.
    chance_return: the expected return of any policy without memory, 0.
    frames_per_step: 1.
  """

  max_return = 1.0
  chance_return = 0.0

  def __init__(self, environment: dm_env.Environment):
    self._environment = environment
    self._size = int(np.prod(environment.observation_spec().shape))

  def reset(self) -> dm_env.TimeStep:
    return self._adapt(self._environment.reset())

  def step(self, action: int | np.integer | np.ndarray) -> dm_env.TimeStep:
    return self._adapt(self._environment.step(int(action)))

  def observation_spec(self) -> specs.Array:
    return specs.Array((self._size,), np.float32, name='observation')

  def action_spec(self) -> specs.DiscreteArray:
    num_actions = self._environment.action_spec().num_values
    return specs.DiscreteArray(num_actions, dtype=np.int32, name='action')

  def close(self) -> None:
    self._environment.close()

  def _adapt(self, timestep: dm_env.TimeStep) -> dm_env.TimeStep:
    observation = np.array(timestep.observation, np.float32).reshape(self._size)
    if timestep.first():
      return dm_env.restart(observation)
    return timestep._replace(
      reward=base.to_float32(timestep.reward, 'reward'),
      discount=base.to_float32(timestep.discount, 'discount'),
      observation=observation,
    )


def make_bsuite(bsuite_id: str, *, seed: int | None = 0) -> dm_env.Environment:
  """Makes one of bsuite's memory experiments.

  Args:
    bsuite_id: an experiment and the number of a setting in bsuite's sweep, which is not
      the setting itself: `memory_len/15` is a memory length of 30 steps, and
      `memory_size/3` is 4 bits. In memory_len the numbers 0 … 9 are 1 … 10 steps,
      10 … 14 are 12, 14, 17, 20 and 25, and 15 … 22 are 30, 40 … 100. In memory_size
      the same sequence counts bits, up to 40 bits for 16, always over 2 steps.
    seed: seeds all episodes; None seeds from the operating system.

  Raises:
    ValueError: bsuite is not installed or has no such experiment.
  """
  try:
    from bsuite import sweep
    from bsuite.bsuite import load
  except ImportError as error:
    raise ValueError(
      f'bsuite/{bsuite_id} needs the package bsuite ({error}): '
      f'pip install {_REQUIREMENT}'
    ) from error
  experiment, _, _ = bsuite_id.partition('/')
  if experiment not in _EXPERIMENTS or bsuite_id not in sweep.SETTINGS:
    numbers = {
      name: sum(key.startswith(f'{name}/') for key in sweep.SETTINGS)
      for name in _EXPERIMENTS
    }
    known = ' and '.join(f'{name}/0 … {n - 1}' for name, n in numbers.items())
    raise ValueError(f'unknown bsuite experiment {bsuite_id!r}: there are {known}')
  # bsuite's `load_from_id` prints a line and fixes the seed.
  return BsuiteAdapter(load(experiment, {**sweep.SETTINGS[bsuite_id], 'seed': seed}))
