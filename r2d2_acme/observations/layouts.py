"""Which observations and actions the network takes, and what to do about the others.

An observation is one array of numbers: an image [H, W, C] or a vector [D]. An action
is one number of a `DiscreteArray`.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from dm_env import specs

from r2d2_acme.config import R2D2Config

MIN_IMAGE_SIZE = 36  # pixels; smaller ones leave nothing after three convolutions

_MAX_SPAN = 2.0**31 - 1  # larger bounds are those of a dtype, and say nothing
MAX_LISTED_ACTIONS = 10_000  # more are the bounds of a dtype
_MAX_ACTIONS = 100_000  # a batch has a Q-value of each for each of its steps
_MAX_LEAVES = 8  # of a nested observation, that an error lists


class Scaling(NamedTuple):
  """Maps x to (x - minimum) / span: bounds to 0 and 1.

  Attributes:
    minimum, span: float32 [] or, where elements differ, of the observation's shape;
      0 and 1 where an element stays as it is. One that is constant becomes 0.
  """

  minimum: np.ndarray
  span: np.ndarray


@dataclasses.dataclass(frozen=True)
class Cures:
  """What to do about a shape that does not fit, in the words of one interface.

  Attributes:
    scalar: there is no axis.
    empty: an axis has size 0.
    flatten: there are two axes that make no image, or too many of them.
    add_channels: it is an image [H, W].
    move_channels: it is an image [C, H, W].
    unstack: there is a stack of frames in front.
    resize: it is an image of too few pixels.
  """

  scalar: str
  empty: str
  flatten: str
  add_channels: str
  move_channels: str
  unstack: str
  resize: str


def is_image(observation_spec: specs.Array) -> bool:
  """Whether observations go through the convolutional torso and are stacked."""
  return len(observation_spec.shape) == 3


def num_stacked(config: R2D2Config, observation_spec: specs.Array) -> int:
  """Frames that one network input is made of: `frame_stack` for images, else 1."""
  return config.frame_stack if is_image(observation_spec) else 1


def scaling(spec: specs.Array) -> Scaling | None:
  """Returns what the network makes of an observation's numbers; None for nothing.

  Images and integers are scaled by their bounds, where these are finite and less than
  2^31 - 1 apart. uint8 without bounds has 0 … 255. Vectors of floats stay as they are:
  their bounds are often so wide that little would be left of them.
  """
  if not is_image(spec) and np.dtype(spec.dtype).kind not in 'ui':
    return None
  bounds = _bounds(spec)
  if bounds is None:
    return None
  low, span = bounds
  is_scaled = span < _MAX_SPAN
  minimum = np.where(is_scaled, low, 0.0).astype(np.float32)
  span = np.where(is_scaled & (span > 0), span, 1.0).astype(np.float32)
  if np.ptp(minimum) == 0 and np.ptp(span) == 0:  # all elements are alike
    minimum, span = (x.reshape(-1)[0].reshape(()) for x in (minimum, span))
  return Scaling(minimum, span)


def check(observations: Any, actions: Any, rewards: Any) -> None:
  """Checks the specs of an environment.

  Raises:
    ValueError: no network here fits them; one line that says why and what to do.
  """
  _check_observations(observations)
  _check_actions(actions)
  if not is_one_number(rewards):
    raise ValueError(
      f'rewards must be single numbers, not {_describe(rewards)}: make one of each'
    )


def is_one_number(spec: Any) -> bool:
  """Whether values of a spec become one float32, as rewards do."""
  if isinstance(spec, (Mapping, tuple, list, specs.StringArray)):
    return False
  if not isinstance(spec, specs.Array):
    return True  # it says nothing
  return spec.shape in ((), (1,)) and np.dtype(spec.dtype).kind in 'biuf'


def shape_fault(shape: Sequence[int], cures: Cures) -> str | None:
  """Returns what is wrong with an observation's shape and the cure, or None."""
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
  """Returns why an observation's numbers cannot be used and the cure, or None."""
  dtype = np.dtype(spec.dtype)
  if dtype.kind not in 'biuf' or dtype.itemsize > 8:
    return f'the network takes no {dtype}: make them float32 or uint8'
  bounds = _bounds(spec)
  if is_image(spec) and dtype.kind in 'iu':
    if bounds is None or (bounds[1] >= _MAX_SPAN).any():
      return (
        f'images of {dtype} need bounds, by which the network scales them: give them '
        'the low and high of a Box, or the minimum and maximum of a BoundedArray'
      )
  return None


def leaves(nest: Any, path: str = '') -> Iterator[tuple[str, Any]]:
  """Yields path and leaf of what may be nested, such as ("['eyes'][0]", leaf)."""
  if isinstance(nest, Mapping):
    items = [(f'[{key!r}]', value) for key, value in nest.items()]
  elif isinstance(nest, tuple) and hasattr(nest, '_fields'):
    items = [(f'.{key}', getattr(nest, key)) for key in nest._fields]
  elif isinstance(nest, (tuple, list)):
    items = [(f'[{index}]', value) for index, value in enumerate(nest)]
  else:
    yield path, nest
    return
  for key, value in items:
    yield from leaves(value, path + key)


def describe_leaves(described: Sequence[tuple[str, str]]) -> str:
  """Returns "['a'] (uint8 [3]), ['b'] (…)" from paths and what is there."""
  parts = [f'{path} ({what})' for path, what in described[:_MAX_LEAVES]]
  more = ['…'] if len(described) > _MAX_LEAVES else []
  return ', '.join([*parts, *more]) or 'nothing'


def _bounds(spec: specs.Array) -> tuple[np.ndarray, np.ndarray] | None:
  """Returns minimum and span of each element in float64, infinite where unbounded."""
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


def _check_observations(spec: Any) -> None:
  if not isinstance(spec, specs.Array):
    raise ValueError(f'observations must be one array: {_nest_fault(spec)}')
  if isinstance(spec, specs.DiscreteArray):
    raise ValueError(
      f'observations must be images or vectors, not one of {spec.num_values} numbers: '
      f'return a one-hot vector of shape [{spec.num_values}]'
    )
  if isinstance(spec, specs.StringArray):
    raise ValueError('observations must be numbers, not text: encode it as a vector')
  fault = number_fault(spec)
  if fault is not None:
    raise ValueError(f'observations cannot be used: {fault}')
  fault = shape_fault(spec.shape, _dm_env_cures(spec.shape))
  if fault is not None:
    raise ValueError(
      'observations must be images [H, W, C] or vectors [D], not of shape '
      f'{list(spec.shape)}: {fault}'
    )


def _nest_fault(nest: Any) -> str:
  """Returns what is wrong with an observation spec that is no array, and the cure."""
  if getattr(nest, '_fields', None) == ('observation', 'action', 'reward'):
    return (
      'take ObservationActionRewardWrapper off the environment, because the agent '
      'feeds the previous action and reward itself'
    )
  if not isinstance(nest, (Mapping, tuple, list)):
    return f'observation_spec() must be a dm_env.specs.Array, not {_describe(nest)}'
  found = list(leaves(nest))
  if not found:
    return f'the {type(nest).__name__} of observation_spec() is empty'
  fitting = [(not is_image(leaf), path) for path, leaf in found if _fits(leaf)]
  alone = f'{min(fitting)[1]} alone, or ' if fitting else ''
  cure = f'return {alone}all of it as one vector'
  described = describe_leaves([(path, _describe(leaf)) for path, leaf in found])
  return f'this is a {type(nest).__name__} of {described}; {cure}'


def _fits(spec: Any) -> bool:
  try:
    _check_observations(spec)
  except ValueError:
    return False
  return True


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
    described = describe_leaves([(p, _describe(leaf)) for p, leaf in leaves(spec)])
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
