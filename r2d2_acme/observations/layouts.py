"""Which specs of an environment R2D2 takes, and what to do about the others.

Specs come in. If one does not fit, a line that names fault and cure goes out.
Observations must be images [H, W, C] or vectors [D] of numbers, or dicts and tuples of
these, and actions a `DiscreteArray`. Environments import this module, so it does not
import TensorFlow.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from dm_env import specs

MIN_IMAGE_SIZE = 36  # pixels; smaller ones leave nothing after three convolutions

MAX_SPAN = 2.0**31 - 1  # bounds as far apart only tell the dtype
MAX_LISTED_ACTIONS = 10_000  # a greater number only tells the dtype
_MAX_ACTIONS = 100_000  # a batch has a Q-value for each action in each step
_MAX_LEAVES = 8  # leaves of a nested observation that an error lists

# The key of a dict of observations that holds the mask of valid actions [A], in which
# other numbers than 0 stand for valid ones.
ACTION_MASK = 'action_mask'


class Leaf(NamedTuple):
  """A part of a nest that is no nest.

  Attributes:
    name: how Python writes its place, such as "['eyes'][0]".
    value: such as a spec.
    path: the keys and indices that lead to it, see `get`.
  """

  name: str
  value: Any
  path: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Cures:
  """What to do about a shape that does not fit, in the words of one interface.

  Attributes:
    scalar: if there is no axis.
    empty: if an axis has size 0.
    flatten: if there are two axes that make no image, or more than three.
    add_channels: if it is an image [H, W].
    move_channels: if it is an image [C, H, W].
    unstack: if axis 0 is a stack of frames.
    resize: if it is an image of too few pixels.
  """

  scalar: str
  empty: str
  flatten: str
  add_channels: str
  move_channels: str
  unstack: str
  resize: str


def is_image(observation_spec: specs.Array) -> bool:
  """Returns whether a spec has the three axes of an image."""
  return len(observation_spec.shape) == 3


def check(observations: Any, actions: Any, rewards: Any) -> None:
  """Checks the specs of an environment.

  Raises:
    ValueError: R2D2 does not fit them; one line that says why and what to do.
  """
  check_observations(observations)
  _check_actions(actions)
  if has_mask(observations):
    _check_mask(observations[ACTION_MASK], actions.num_values)
  if not is_one_number(rewards):
    raise ValueError(
      f'rewards must be single numbers, not {_describe(rewards)}: make one of each'
    )


def check_observations(spec: Any) -> None:
  """Checks the spec of an environment's observations.

  Raises:
    ValueError: R2D2 does not fit it; one line that says why and what to do.
  """
  fault = _nest_fault(spec)
  if fault is not None:
    raise ValueError(f'observations cannot be used: {fault}')
  for leaf in numeric_leaves(spec):
    if leaf.path != (ACTION_MASK,):
      _check_leaf(leaf.name, leaf.value)


def _check_leaf(name: str, spec: specs.Array):
  observations = f'observations{name}'
  if isinstance(spec, specs.DiscreteArray):
    raise ValueError(
      f'{observations} must be images or vectors, not one of {spec.num_values} '
      f'numbers: return a one-hot vector of shape [{spec.num_values}]'
    )
  if isinstance(spec, specs.StringArray):
    raise ValueError(f'{observations} must be numbers, not text: encode it as a vector')
  fault = number_fault(spec)
  if fault is not None:
    raise ValueError(f'{observations} cannot be used: {fault}')
  fault = shape_fault(spec.shape, _dm_env_cures(spec.shape))
  if fault is not None:
    raise ValueError(
      f'{observations} must be images [H, W, C] or vectors [D], not of shape '
      f'{list(spec.shape)}: {fault}'
    )


def is_one_number(spec: Any) -> bool:
  """Returns whether the values of a spec can become one float32, as rewards do."""
  if isinstance(spec, (Mapping, tuple, list, specs.StringArray)):
    return False
  if not isinstance(spec, specs.Array):
    return True  # it does not say what they are
  return spec.shape in ((), (1,)) and np.dtype(spec.dtype).kind in 'biuf'


def shape_fault(shape: Sequence[int], cures: Cures) -> str | None:
  """Returns what is wrong with an observation's shape, with its cure, or None."""
  if not shape:
    return f'it has no axis: {cures.scalar}'
  if 0 in shape:
    return f'axis {list(shape).index(0)} has size 0: {cures.empty}'
  if len(shape) == 1:
    return None
  if len(shape) == 2:
    if min(shape) < MIN_IMAGE_SIZE:
      return f'two axes make no image: {cures.flatten}'
    return f'it has no axis for channels: {cures.add_channels}'
  if len(shape) > 3:
    if shape[0] < MIN_IMAGE_SIZE <= max(shape[1:3]):
      return f'axis 0, of size {shape[0]}, is a stack of frames: {cures.unstack}'
    return f'{len(shape)} axes make no image: {cures.flatten}'
  first, second, third = shape
  if first < MIN_IMAGE_SIZE <= min(second, third):
    if first in (1, 3):
      return f'axis 0, of size {first}, holds the channels: {cures.move_channels}'
    return (
      f'axis 0, of size {first}, is a stack of frames or the channels: '
      f'{cures.unstack}; or {cures.move_channels}'
    )
  if min(first, second) >= MIN_IMAGE_SIZE:
    return None
  if second <= 4 and min(first, third) >= MIN_IMAGE_SIZE:
    return (
      f'axis 1, of size {second}, holds the channels: move it to the end, as '
      'numpy.moveaxis(x, 1, -1) does'
    )
  channels = ''
  if first <= 4 < min(second, third):
    channels = f'axis 0, of size {first}, holds the channels, and '
    first, second = second, third
  return (
    f'{channels}images of {first}x{second} pixels are too small for the convolutions: '
    f'{cures.resize}'
  )


def number_fault(spec: specs.Array) -> str | None:
  """Returns why an observation's numbers cannot be used, with a cure, or None."""
  dtype = np.dtype(spec.dtype)
  if dtype.kind not in 'biuf' or dtype.itemsize > 8:
    return f'the network takes no {dtype}: make them float32 or uint8'
  if is_image(spec) and dtype.kind in 'iu':
    low_and_span = bounds(spec)
    if low_and_span is None or (low_and_span[1] >= MAX_SPAN).any():
      return (
        f'images of {dtype} need bounds, by which the network scales them: give them '
        'the low and high of a Box, or the minimum and maximum of a BoundedArray'
      )
  return None


def bounds(spec: specs.Array) -> tuple[np.ndarray, np.ndarray] | None:
  """Returns minimum and span of each element, or None if the spec has no bounds.

  Both are float64 of the spec's shape. The span of an unbounded element is infinite.
  uint8 has the bounds 0 and 255 if the spec does not say otherwise.
  """
  if isinstance(spec, specs.BoundedArray):
    low, high = spec.minimum, spec.maximum
  elif np.dtype(spec.dtype) == np.uint8:
    low, high = np.array(0), np.array(255)
  else:
    return None
  low, high = (np.broadcast_to(x, spec.shape).astype(np.float64) for x in (low, high))
  with np.errstate(invalid='ignore', over='ignore'):
    span = high - low
  return low, np.where(np.isfinite(span), span, np.inf)


def is_nest(value: Any) -> bool:
  """Returns whether a value is a dict, a tuple or a list."""
  return isinstance(value, (Mapping, tuple, list))


def leaves(nest: Any, name: str = '', path: tuple[Any, ...] = ()) -> Iterator[Leaf]:
  """Yields each leaf of a nest."""
  if not is_nest(nest):
    yield Leaf(name, nest, path)
    return
  if isinstance(nest, Mapping):
    items = [(f'[{key!r}]', key, value) for key, value in nest.items()]
  else:
    names = getattr(nest, '_fields', None)
    items = [
      (f'.{names[i]}' if names else f'[{i}]', i, value) for i, value in enumerate(nest)
    ]
  for suffix, key, value in items:
    yield from leaves(value, name + suffix, (*path, key))


def get(nest: Any, path: Sequence[Any]) -> Any:
  """Returns what is in a nest at a path of keys and indices."""
  for key in path:
    nest = nest[key]
  return nest


def numeric_leaves(spec: Any) -> Sequence[Leaf]:
  """Returns the leaves that the agent reads: all of a nest but texts."""
  if not is_nest(spec):
    return [Leaf('', spec, ())]
  return [
    leaf for leaf in leaves(spec) if not isinstance(leaf.value, specs.StringArray)
  ]


def has_mask(spec: Any) -> bool:
  """Returns whether observations hold the mask of valid actions."""
  return isinstance(spec, Mapping) and ACTION_MASK in spec


def describe_leaves(described: Sequence[tuple[str, str]]) -> str:
  """Returns "['a'] (uint8 [3]), ['b'] (…)" from names and descriptions."""
  parts = [f'{name} ({what})' for name, what in described[:_MAX_LEAVES]]
  more = ['…'] if len(described) > _MAX_LEAVES else []
  return ', '.join([*parts, *more]) or 'nothing'


def _nest_fault(nest: Any) -> str | None:
  """Returns what is wrong with the structure of an observation spec, with its cure."""
  if getattr(nest, '_fields', None) == ('observation', 'action', 'reward'):
    return (
      'take ObservationActionRewardWrapper off the environment, because the agent '
      'feeds the previous action and reward itself'
    )
  for name, leaf, _ in leaves(nest):
    if not isinstance(leaf, specs.Array):
      return (
        f'observation_spec(){name} must be a dm_env.specs.Array, not {_describe(leaf)}'
      )
  if not any(leaf.path != (ACTION_MASK,) for leaf in numeric_leaves(nest)):
    return f'the {type(nest).__name__} of observation_spec() holds no numbers'
  return None


def _check_mask(spec: specs.Array, num_actions: int):
  if spec.shape != (num_actions,) or np.dtype(spec.dtype).kind not in 'biu':
    raise ValueError(
      f'observations[{ACTION_MASK!r}] must be integers [{num_actions}], 1 for each '
      f'valid action and else 0, not {_describe(spec)}'
    )


def _check_actions(spec: Any) -> None:
  if isinstance(spec, specs.DiscreteArray):
    if spec.num_values > _MAX_ACTIONS:
      raise ValueError(
        f'there are {spec.num_values:,} actions, and R2D2 has a Q-value for each: '
        f'leave at most {_MAX_ACTIONS:,}'
      )
    return
  fault = 'actions must be discrete (dm_env.specs.DiscreteArray), not'
  if isinstance(spec, (Mapping, tuple, list)):
    described = describe_leaves([(n, _describe(leaf)) for n, leaf, _ in leaves(spec)])
    raise ValueError(
      f'{fault} a {type(spec).__name__} of {described}: make each combination one '
      'action'
    )
  if not isinstance(spec, specs.Array):
    raise ValueError(f'{fault} {_describe(spec)}: that is what action_spec() returns')
  if np.dtype(spec.dtype).kind not in 'iub':
    raise ValueError(
      f'{fault} {_describe(spec)}: choose some of the values and number them'
    )
  if spec.shape not in ((), (1,)):
    raise ValueError(f'{fault} {_describe(spec)}: make each combination one action')
  number = 'DiscreteArray(number of actions)'
  if isinstance(spec, specs.BoundedArray):
    low, high = int(np.min(spec.minimum)), int(np.max(spec.maximum))
    if high - low < MAX_LISTED_ACTIONS:
      number = f'DiscreteArray({high - low + 1})'
      number += f', and add {low} to the action in step()' if low else ''
  raise ValueError(f'{fault} {_describe(spec)}: return {number}')


def _describe(spec: Any) -> str:
  if isinstance(spec, specs.StringArray):
    return f'text {list(spec.shape)}'
  if isinstance(spec, specs.Array):
    return f'{spec.dtype} {list(spec.shape)}'
  return f'a {type(spec).__name__}'


def _dm_env_cures(shape: Sequence[int]) -> Cures:
  others = [*shape[1:], 1] if len(shape) < 4 else list(shape[1:])
  return Cures(
    scalar='give it the shape [1]',
    empty='give every axis a size',
    flatten=f'flatten it to [{int(np.prod(shape))}]',
    add_channels=f'give it the shape {[*shape, 1]}',
    move_channels=f'move that axis to the end, as in {[*shape[1:], *shape[:1]]}',
    unstack=(
      f'return single frames, as in {others}, because the agent stacks them itself'
    ),
    resize=(
      f'resize them to at least {MIN_IMAGE_SIZE}x{MIN_IMAGE_SIZE}, or flatten them to '
      f'[{int(np.prod(shape))}]'
    ),
  )
