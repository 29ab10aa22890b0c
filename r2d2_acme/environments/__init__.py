"""Environments with the `dm_env` interface: Atari, Gymnasium and memory tasks.

Each has an attribute `frames_per_step`, the emulator frames that pass in one step.
Importing this package registers `VelocitylessCartPole-v1` with Gymnasium.
"""

from r2d2_acme.environments.atari import make_atari
from r2d2_acme.environments.bsuite_adapter import make_bsuite
from r2d2_acme.environments.cartpole import VELOCITYLESS_CARTPOLE
from r2d2_acme.environments.checks import EnvironmentFailed, checked
from r2d2_acme.environments.factories import (
  EnvironmentFactory,
  NamedFactory,
  check_is_not_imported,
  describe,
  env_kwargs,
  import_function,
  is_atari,
  make,
  starts_fresh,
)
from r2d2_acme.environments.gymnasium_adapter import GymnasiumAdapter
from r2d2_acme.environments.gymnasium_ids import make_gymnasium
from r2d2_acme.environments.gymnasium_loop import make_for_gymnasium
from r2d2_acme.environments.lifetime import (
  EpisodeLost,
  TooManyFailures,
  make_dm_env,
  opened,
)
from r2d2_acme.environments.memory import (
  make_cue_recall,
  make_memory_task,
  make_t_maze,
)

__all__ = [
  'VELOCITYLESS_CARTPOLE',
  'EnvironmentFactory',
  'EnvironmentFailed',
  'EpisodeLost',
  'GymnasiumAdapter',
  'NamedFactory',
  'TooManyFailures',
  'check_is_not_imported',
  'checked',
  'describe',
  'env_kwargs',
  'import_function',
  'is_atari',
  'make',
  'make_atari',
  'make_bsuite',
  'make_cue_recall',
  'make_dm_env',
  'make_for_gymnasium',
  'make_gymnasium',
  'make_memory_task',
  'make_t_maze',
  'opened',
  'starts_fresh',
]
