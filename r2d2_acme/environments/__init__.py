"""Environments with the `dm_env` interface: Atari, Gymnasium and memory tasks.

Each has an attribute `frames_per_step`, the emulator frames that pass in one step.
Importing this package registers `VelocitylessCartPole-v1` with Gymnasium.
"""

import dm_env

from r2d2_acme.environments.atari import make_atari
from r2d2_acme.environments.bsuite_adapter import make_bsuite
from r2d2_acme.environments.cartpole import VELOCITYLESS_CARTPOLE
from r2d2_acme.environments.checks import EnvironmentFailed, checked
from r2d2_acme.environments.gymnasium_adapter import GymnasiumAdapter
from r2d2_acme.environments.gymnasium_ids import make_gymnasium
from r2d2_acme.environments.lifetime import opened
from r2d2_acme.environments.memory import (
  make_cue_recall,
  make_memory_task,
  make_t_maze,
)

__all__ = [
  'VELOCITYLESS_CARTPOLE',
  'EnvironmentFailed',
  'GymnasiumAdapter',
  'checked',
  'make',
  'make_atari',
  'make_bsuite',
  'make_cue_recall',
  'make_gymnasium',
  'make_memory_task',
  'make_t_maze',
  'opened',
]


def make(
  name: str, *, seed: int | None = None, full_action_space: bool = True
) -> dm_env.Environment:
  """Makes an environment by a name that says where it comes from.

  | name                                      | made by            |
  |-------------------------------------------|--------------------|
  | `memory/cue_recall`, `memory/t_maze/20`   | `make_memory_task` |
  | `bsuite/memory_len/15`                    | `make_bsuite`      |
  | any other is a Gymnasium id, Atari's too  | `make_gymnasium`   |

  Args:
    name: see above.
    seed: seeds all episodes; None seeds from the operating system.
    full_action_space: of Atari games.

  Raises:
    ValueError: there is no such environment, its package is missing, or R2D2 does
      not fit it; one line that says which.
  """
  if name.startswith('memory/'):
    return make_memory_task(name.removeprefix('memory/'), seed=seed)
  if name.startswith('bsuite/'):
    return make_bsuite(name.removeprefix('bsuite/'), seed=seed)
  return make_gymnasium(name, seed=seed, full_action_space=full_action_space)
