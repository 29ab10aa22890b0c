"""Environments by name, and factories of them: functions of a seed, which pickle."""

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import dm_env

from r2d2_acme.environments.atari import make_atari
from r2d2_acme.environments.bsuite_adapter import make_bsuite
from r2d2_acme.environments.gymnasium_ids import import_module, make_gymnasium
from r2d2_acme.environments.memory import make_memory_task

# From a seed to a `dm_env` or a Gymnasium environment.
EnvironmentFactory = Callable[[int], Any]


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


@dataclasses.dataclass(frozen=True)
class NamedFactory:
  """Makes an environment from a seed, by a name that a user can give.

  Attributes:
    kind: 'game' for an Atari game, 'env' for what `make` takes, or 'environment' for a
      function of a seed in a module, such as `my_module:make_environment`.
    name: the name.
    full_action_space: whether Atari games have all 18 actions.
  """

  kind: str
  name: str
  full_action_space: bool = True

  def __call__(self, seed: int) -> Any:
    """Returns a `dm_env` or a Gymnasium environment.

    Raises:
      ValueError: there is no such environment, or R2D2 does not fit it.
    """
    if self.kind == 'environment':
      return _import_function(self.name)(seed)
    make_named = make_atari if self.kind == 'game' else make
    return make_named(self.name, seed=seed, full_action_space=self.full_action_space)


def describe(factory: EnvironmentFactory) -> Mapping[str, str]:
  """Returns kind and name by which a `NamedFactory` makes the same environments.

  The name is empty if the factory is no function of a module, so that no other program
  can find it.
  """
  if isinstance(factory, NamedFactory):
    return {factory.kind: factory.name}
  name = getattr(factory, '__qualname__', '<')
  if '<' in name:  # such as <lambda>, or <locals>
    return {'environment': ''}
  module = factory.__module__
  if module == '__main__':  # other programs import the script by its name
    script = getattr(sys.modules[module], '__file__', None)
    module = os.path.splitext(os.path.basename(script or ''))[0]
  return {'environment': f'{module}:{name}' if module else ''}


def _import_function(path: str) -> EnvironmentFactory:
  """Imports `my_module:make_environment`; the module may be in the current folder.

  Raises:
    ValueError: there is no such function; one line.
  """
  module, _, name = path.partition(':')
  if not module or not name:
    raise ValueError(
      f'{path!r} names no function of a module: write it as my_module:make_environment'
    )
  import_module(module)
  found: Any = sys.modules[module]
  for part in name.split('.'):
    found = getattr(found, part, None)
  if not callable(found):
    raise ValueError(f'there is no function {name!r} in the module {module!r}')
  return found
