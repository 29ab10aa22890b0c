"""The cluster that a program runs on, and what its nodes need of it."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import yaml

AUTO, LOCAL = 'auto', 'local'
PACKAGES = "'ray==2.48.0'"  # for pip
PLACEMENTS = ('pack', 'spread')

_GIB = 1 << 30
# Ray counts in ten-thousandths, and does so in 64 bits; memory in those of bytes.
_MIN_AMOUNT = 0.0001
_MAX_AMOUNT = 500_000
_MAX_CUSTOM_AMOUNT = 900_000_000_000_000
_RAYS_OWN = ('CPU', 'GPU', 'memory', 'object_store_memory', 'bundle')


class NoCluster(ValueError):
  """No cluster can run the program as it was asked to; one line with the cure."""


@dataclasses.dataclass(frozen=True)
class Cluster:
  """Where a program shall run.

  Attributes:
    address: 'auto' or 'HOST:PORT' of a running cluster, or 'local' for one that is
      started on this machine and ends with the program.
    resources: the path of a file, see `read`.
    modules: names of Python modules that nodes import beside this package. They are
      shipped to the hosts, unless they are installed here.
  """

  address: str
  resources: str | None = None
  modules: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Resources:
  """What a node needs of its host.

  Attributes:
    cpus: cores, which may be a fraction.
    gpus: GPUs; None gives the learner one, if the cluster has any.
    memory: GiB; 0 asks for none.
    custom: resources that the cluster's owner has named.
    placement: 'spread' over hosts as far as possible, or 'pack' on few.
  """

  cpus: float = 1.0
  gpus: float | None = None
  memory: float = 0.0
  custom: Mapping[str, float] = dataclasses.field(default_factory=dict)
  placement: str = 'pack'

  @property
  def memory_bytes(self) -> int:
    return int(self.memory * _GIB)


def defaults(group: str) -> Resources:
  """Returns what the nodes of a group need if nobody says otherwise."""
  if group == 'learner':
    return Resources()
  return Resources(gpus=0, placement='spread' if group == 'actor' else 'pack')


def read(path: str | None, groups: Collection[str]) -> dict[str, Resources]:
  """Reads what the nodes of each group need.

  Args:
    path: of a YAML file such as `{learner: {cpus: 4, gpus: 1}, actor: {cpus: 0.5}}`;
      None uses the defaults.
    groups: of the program.

  Raises:
    NoCluster: the file cannot be read, or what it says cannot be.
  """
  found = {group: defaults(group) for group in groups}
  for group, fields in (_load(path) if path is not None else {}).items():
    if group not in found:
      raise NoCluster(
        f'{path}: there is no group {group!r}: give some of {", ".join(found)}'
      )
    if not isinstance(fields, dict):
      raise NoCluster(f'{path}: {group} must be a mapping, such as {{cpus: 1}}')
    for name, value in fields.items():
      _check(f'{path}: {group}', name, value)
    found[group] = dataclasses.replace(found[group], **fields)
  return found


def find_modules(factory: Mapping[str, str], torso: str) -> list[str]:
  """Returns the modules, without submodules, of an environment and of a torso.

  Args:
    factory: kind and name of the environment, see `environments.describe`.
    torso: such as 'my_module:make_torso'; '' for none.
  """
  names = factory.get('environment', ''), factory.get('env', ''), torso
  paths = [name.partition(':')[0] for name in names if ':' in name]
  return list(dict.fromkeys(path.partition('.')[0] for path in paths))


def _load(path: str) -> dict[Any, Any]:
  try:
    with open(path) as file:
      content = yaml.safe_load(file)
  except OSError as error:
    raise NoCluster(f'cannot read {path}: {error.strerror}') from error
  # Also bytes that are no text, numbers of too many digits, and brackets too deep.
  except (yaml.YAMLError, ValueError, RecursionError) as error:
    raise NoCluster(f'{path} is not YAML: {" ".join(str(error).split())}') from error
  if content is None:
    return {}
  if not isinstance(content, dict):
    raise NoCluster(f'{path} must map groups to what their nodes need')
  return content


def _check(where: str, name: Any, value: Any):
  """Refuses a field that `Resources` does not have, or a value that it cannot have."""
  names = [field.name for field in dataclasses.fields(Resources)]
  if name not in names:
    raise NoCluster(f'{where} has no {name!r}: give some of {", ".join(names)}')
  if name == 'placement':
    if value not in PLACEMENTS:
      raise NoCluster(f'{where}.placement must be one of {", ".join(PLACEMENTS)}')
  elif name == 'custom':
    if not isinstance(value, dict):
      raise NoCluster(f'{where}.custom must map names to numbers')
    for key, amount in value.items():
      _check_custom(f'{where}.custom', key, amount)
  else:
    _check_amount(f'{where}.{name}', value, _MAX_AMOUNT)
    if name == 'gpus' and value > 1 and value != int(value):
      raise NoCluster(f'{where}.gpus must be whole above 1')


def _check_custom(where: str, name: Any, amount: Any):
  """Refuses a custom resource that Ray would refuse."""
  if not isinstance(name, str) or not name.isascii() or not name.isprintable():
    raise NoCluster(f'{where}: {name!r} must be a name in ASCII')
  if name in _RAYS_OWN:
    raise NoCluster(
      f"{where}: {name!r} is a name of Ray's own: give cpus, gpus or memory instead"
    )
  _check_amount(f'{where}.{name}', amount, _MAX_CUSTOM_AMOUNT)


def _check_amount(where: str, value: Any, most: int):
  """Refuses what is no number, or one that Ray cannot count."""
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  if not is_number or not (value == 0 or _MIN_AMOUNT <= value <= most):
    raise NoCluster(f'{where} must be 0 or a number from {_MIN_AMOUNT} to {most}')
