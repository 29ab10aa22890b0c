"""Environments by name, and factories of them: functions of a seed, which pickle."""

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import dm_env

from r2d2_acme.environments import base, gymnasium_ids
from r2d2_acme.environments.atari import make_atari
from r2d2_acme.environments.bsuite_adapter import make_bsuite
from r2d2_acme.environments.gymnasium_ids import import_module, make_gymnasium
from r2d2_acme.environments.memory import make_memory_task

# From a seed to a `dm_env` or a Gymnasium environment.
EnvironmentFactory = Callable[[int], Any]

_OURS = ('memory/', 'bsuite/')  # names that are no Gymnasium ids


def make(
  name: str,
  *,
  seed: int | None = None,
  atari_kwargs: Mapping[str, Any] = MappingProxyType({}),
  kwargs: Mapping[str, Any] = MappingProxyType({}),
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
    atari_kwargs: arguments of `make_atari`, for Atari games only.
    kwargs: arguments of a Gymnasium environment.

  Raises:
    ValueError: there is no such environment, its package is missing, it does not take
      the arguments, or R2D2 does not fit it; one line that says which.
  """
  if kwargs and name.startswith(_OURS):
    raise ValueError(f'{name} takes no --env_kwargs: they are for Gymnasium ids')
  if name.startswith('memory/'):
    return make_memory_task(name.removeprefix('memory/'), seed=seed)
  if name.startswith('bsuite/'):
    return make_bsuite(name.removeprefix('bsuite/'), seed=seed)
  return make_gymnasium(name, seed=seed, atari_kwargs=atari_kwargs, kwargs=kwargs)


@dataclasses.dataclass(frozen=True)
class NamedFactory:
  """Makes an environment from a seed, by a name that a user can give.

  Attributes:
    kind: 'game' for an Atari game, 'env' for what `make` takes, or 'environment' for a
      function of a seed in a module, such as `my_module:make_environment`.
    name: the name.
    atari_kwargs: arguments of `make_atari`, for Atari games only.
    kwargs: arguments of a Gymnasium environment; only for the kind 'env'.
  """

  kind: str
  name: str
  atari_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __call__(self, seed: int) -> Any:
    """Returns a `dm_env` or a Gymnasium environment.

    Raises:
      ValueError: there is no such environment, or R2D2 does not fit it.
    """
    if self.kind == 'environment':
      function = import_function(self.name)
      try:
        return function(seed)
      except base.FAULTS as error:  # whatever the user's code raises
        raise ValueError(f'{self.name} failed: {base.describe_error(error)}') from error
    if self.kind == 'game':
      return make_atari(self.name, seed=seed, **self.atari_kwargs)
    return make(
      self.name, seed=seed, atari_kwargs=self.atari_kwargs, kwargs=self.kwargs
    )


def is_atari(factory: EnvironmentFactory) -> bool:
  """Returns whether a factory makes environments by `make_atari`.

  Raises:
    ValueError: there is no such environment; one line.
  """
  if not isinstance(factory, NamedFactory) or factory.kind == 'environment':
    return False
  if factory.kind == 'game':
    return True
  return not factory.name.startswith(_OURS) and gymnasium_ids.is_atari(factory.name)


def describe(factory: EnvironmentFactory) -> Mapping[str, str]:
  """Returns kind and name by which a `NamedFactory` makes the same environments.

  The name is empty if the factory is no function of a module, so that no other program
  can find it.
  """
  if isinstance(factory, NamedFactory):
    return {factory.kind: factory.name}
  module, name = (getattr(factory, x, None) for x in ('__module__', '__qualname__'))
  if not module or not name or _find(sys.modules.get(module), name) is not factory:
    return {'environment': ''}  # such as a lambda, or a method of an object
  if module == '__main__':  # other programs import it by its name
    main = sys.modules[module]
    script = os.path.basename(getattr(main, '__file__', None) or '')
    spec = getattr(main, '__spec__', None)  # there is one if it was started by -m
    module = spec.name if spec else os.path.splitext(script)[0]
  return {'environment': f'{module}:{name}' if module else ''}


def env_kwargs(factory: EnvironmentFactory) -> dict[str, Any]:
  """Returns the arguments of the environments of a `NamedFactory`; else empty."""
  return dict(factory.kwargs) if isinstance(factory, NamedFactory) else {}


def starts_fresh(factory: EnvironmentFactory) -> bool:
  """Returns whether a factory needs a process that is no fork of another one.

  A function says so by an attribute `starts_fresh`, for example because it uses a GPU.

  Raises:
    ValueError: there is no such function; one line.
  """
  if isinstance(factory, NamedFactory) and factory.kind == 'environment':
    factory = import_function(factory.name)
  return getattr(factory, 'starts_fresh', False)


def import_function(path: str) -> Callable[..., Any]:
  """Imports `my_module:make_environment`; the module may be in the current folder.

  Raises:
    ValueError: there is no such function; one line.
  """
  module, _, name = path.partition(':')
  if not module or not name:
    raise ValueError(
      f'{path!r} names no function of a module: write it as my_module:make_environment'
    )
  _importing.append(module)
  try:
    import_module(module)
  finally:
    _importing.pop()
  found = _find(sys.modules[module], name)
  if not callable(found):
    raise ValueError(f'there is no function {name!r} in the module {module!r}')
  return found


_importing: list[str] = []  # modules whose functions are being looked for


def check_is_not_imported():
  """Refuses to train while a module is imported for its environments.

  Raises:
    ValueError: this is such a module; one line that names the cure.
  """
  if _importing:
    raise ValueError(
      f'{_importing[-1]} trains when it is imported, but other programs import it for '
      "its environments: put what it runs under `if __name__ == '__main__':`"
    )


def _find(module: Any, name: str) -> Any:
  """Returns what a module calls `name`, such as 'make' or 'Task.make', or None."""
  found = module
  for part in name.split('.'):
    found = getattr(found, part, None)
  return found
