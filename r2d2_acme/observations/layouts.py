"""Which specs of an environment R2D2 takes, and what to do about the others.

Specs come in. If one does not fit, a line that names fault and cure goes out.
Observations must be numbers of any shape, or dicts and tuples of these, and actions a
`DiscreteArray`. Environments import this module, so it does not import TensorFlow.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from dm_env import specs

from r2d2_acme.config import R2D2Config

MIN_ATARI_SIZE = 36  # pixels; smaller images leave nothing after Atari's convolutions
MIN_IMAGE_SIZE = 3  # pixels; what is smaller is flattened to a vector
MAX_GRID_SIZE = 16  # cells; larger images of integers show brightness
_MAX_GRID_SPAN = 255  # between the least and the greatest symbol of a cell
_MAX_ONE_HOTS = 10_000  # numbers in all one-hot vectors of an observation together

MAX_SPAN = 2.0**31 - 1  # bounds as far apart only tell the dtype
MAX_LISTED_ACTIONS = 10_000  # a greater number only tells the dtype
_MAX_LEAVES = 8  # leaves of a nested observation that an error lists

# The key of a dict of observations that holds the mask of valid actions [A], in which
# other numbers than 0 stand for valid ones.
ACTION_MASK = 'action_mask'


class Categories(specs.BoundedArray):
  """Integers, each from 0 to its maximum, that are numbers of categories.

  They are to `DiscreteArray` what MultiDiscrete is to Discrete.
  """

  def __reduce__(self):  # that of the base class makes one of the base class
    return type(self), (self.shape, self.dtype, self.minimum, self.maximum, self.name)


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


def is_categorical(spec: specs.Array) -> bool:
  """Returns whether a spec's integers are numbers of categories."""
  return isinstance(spec, (specs.DiscreteArray, Categories))


def image_shape(spec: specs.Array) -> tuple[int, int, int] | None:
  """Returns the shape [H, W, C] of images, or None if a spec's values are vectors.

  Images are what has three axes, of which the first may hold the channels, and what has
  two and is large or holds integers with bounds.
  """
  shape = spec.shape
  if is_categorical(spec):
    return None
  if len(shape) == 2:
    min_size = MIN_ATARI_SIZE if integer_range(spec) is None else MIN_IMAGE_SIZE
    return (*shape, 1) if min(shape) >= min_size else None
  if len(shape) != 3:
    return None
  if _has_channels_first(shape):
    shape = (*shape[1:], shape[0])
  return shape if min(shape[:2]) >= MIN_IMAGE_SIZE else None


def is_image(spec: specs.Array) -> bool:
  """Returns whether a spec is of images, which are stacked."""
  return image_shape(spec) is not None


def as_image(array: np.ndarray) -> np.ndarray:
  """Turns an image [C, H, W] or [H, W], see `image_shape`, into [H, W, C]."""
  if array.ndim == 2:
    return array[..., np.newaxis]
  return np.moveaxis(array, 0, -1) if _has_channels_first(array.shape) else array


def is_grid(spec: specs.Array) -> bool:
  """Returns whether a spec is of small images of integers, which are symbols.

  Images of zeros and ones are none, because numbers say the same as one-hot planes.
  """
  shape = image_shape(spec)
  low_and_high = integer_range(spec)
  if shape is None or max(shape[:2]) > MAX_GRID_SIZE or low_and_high is None:
    return False
  low, high = low_and_high
  return 1 < high - low <= _MAX_GRID_SPAN


def integer_range(spec: specs.Array) -> tuple[int, int] | None:
  """Returns the least and the greatest of integers with bounds; None for others."""
  low_and_span = bounds(spec)
  if low_and_span is None or np.dtype(spec.dtype).kind not in 'iub':
    return None
  low, span = low_and_span
  return (int(low.min()), int((low + span).max())) if span.max() < MAX_SPAN else None


def _has_channels_first(shape: Sequence[int]) -> bool:
  first, *others = shape
  size = min(others)
  return first < MIN_ATARI_SIZE <= size or first <= 4 < size


def check(
  observations: Any,
  actions: Any,
  rewards: Any,
  max_actions: int = R2D2Config.max_actions,
) -> None:
  """Checks the specs of an environment, which may have at most `max_actions`.

  Raises:
    ValueError: R2D2 does not fit them; one line that says why and what to do.
  """
  check_observations(observations)
  _check_actions(actions, max_actions)
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


def notes(spec: Any) -> Sequence[str]:
  """Returns a line on each leaf of an observation's spec that is not taken as it is."""
  lines = []
  for name, leaf, _ in leaves(spec):
    if isinstance(leaf, specs.StringArray):
      lines.append(f'observations{name} are texts, which the agent does not see')
    elif is_image(leaf) and len(leaf.shape) == 3 and _has_channels_first(leaf.shape):
      lines.append(
        f'observations{name} of shape {list(leaf.shape)} are taken for images of '
        f'{leaf.shape[0]} channels, held by axis 0; if it is a stack of frames, take '
        'it off, because the agent stacks frames itself'
      )
  return lines


def _check_leaf(name: str, spec: specs.Array):
  if isinstance(spec, specs.StringArray):
    fault: str | None = 'they are text: encode it as a vector'
  elif is_categorical(spec):
    depth = int(np.max(spec.maximum, initial=0)) + 1
    number = depth * int(np.prod(spec.shape))
    fault = None if 0 not in spec.shape else shape_fault(spec.shape)
    if number > _MAX_ONE_HOTS:
      fault = (
        f'their one-hot vectors have {number:,} numbers: return a vector of at most '
        f'{_MAX_ONE_HOTS:,} instead'
      )
  else:
    fault = number_fault(spec) or shape_fault(spec.shape)
  if fault is not None:
    raise ValueError(f'observations{name}, {_describe(spec)}, cannot be used: {fault}')


def is_one_number(spec: Any) -> bool:
  """Returns whether the values of a spec can become one float32, as rewards do."""
  if isinstance(spec, (Mapping, tuple, list, specs.StringArray)):
    return False
  if not isinstance(spec, specs.Array):
    return True  # it does not say what they are
  return spec.shape in ((), (1,)) and np.dtype(spec.dtype).kind in 'biuf'


def shape_fault(shape: Sequence[int]) -> str | None:
  """Returns what is wrong with an observation's shape, with its cure, or None."""
  if 0 in shape:
    return f'axis {list(shape).index(0)} has size 0: give every axis a size'
  if len(shape) == 4 and shape[0] < MIN_ATARI_SIZE <= max(shape[1:3]):
    return (
      f'axis 0, of size {shape[0]}, is a stack of frames: return single ones (without '
      "Gymnasium's FrameStackObservation), because the agent stacks frames itself"
    )
  if len(shape) == 3 and shape[1] <= 4 and min(shape[0], shape[2]) >= MIN_ATARI_SIZE:
    return (
      f'axis 1, of size {shape[1]}, holds the channels: move it to the end, as '
      'numpy.moveaxis(x, 1, -1) does'
    )
  return None


def number_fault(spec: specs.Array) -> str | None:
  """Returns why an observation's numbers cannot be used, with a cure, or None."""
  dtype = np.dtype(spec.dtype)
  if dtype.kind not in 'biuf' or dtype.itemsize > 8:
    return f'the network takes no {dtype}: make them float32 or uint8'
  if is_image(spec) and dtype.kind in 'iu' and integer_range(spec) is None:
    return (
      f'images of {dtype} need bounds, by which the network scales them: give them '
      'the low and high of a Box, or the minimum and maximum of a BoundedArray'
    )
  return None


def bounds(spec: specs.Array) -> tuple[np.ndarray, np.ndarray] | None:
  """Returns minimum and span of each element, or None if the spec has no bounds.

  Both are float64 of the spec's shape. The span of an unbounded element is infinite.
  uint8 has the bounds 0 and 255 if the spec does not say otherwise, and bool 0 and 1.
  """
  if isinstance(spec, specs.BoundedArray):
    low, high = spec.minimum, spec.maximum
  elif np.dtype(spec.dtype) == bool:
    low, high = np.array(0), np.array(1)
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


def rebuild(
  nest: Any, values: Mapping[tuple[Any, ...], Any], path: tuple[Any, ...] = ()
) -> Any:
  """Returns a nest of values by path; a leaf of `nest` without a value is left out."""
  if path in values:
    return values[path]
  is_mapping = isinstance(nest, Mapping)
  parts = {
    key: rebuild(part, values, (*path, key))
    for key, part in (nest.items() if is_mapping else enumerate(nest))
    if is_nest(part) or (*path, key) in values
  }
  return parts if is_mapping else tuple(parts.values())


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
  keys = _find_unsortable(nest)
  if keys is not None:
    return (
      f'the keys {keys[0]!r} and {keys[1]!r} of a dict cannot be sorted: make all its '
      'keys strings'
    )
  return None


def _find_unsortable(nest: Any) -> tuple[Any, Any] | None:
  """Returns two keys of one dict that Python cannot put in an order, if there are any.

  TensorFlow and dm-tree go through dicts in the order of their keys.
  """
  if not is_nest(nest):
    return None
  is_mapping = isinstance(nest, Mapping)
  for first, second in itertools.combinations(nest, 2) if is_mapping else ():
    try:
      first < second  # noqa: B015
    except TypeError:
      return first, second
  parts = nest.values() if is_mapping else nest
  return next(filter(None, map(_find_unsortable, parts)), None)


def _check_mask(spec: specs.Array, num_actions: int):
  if is_nest(spec):
    described = f'a {type(spec).__name__}'
  elif spec.shape == (num_actions,) and np.dtype(spec.dtype).kind in 'biuf':
    return
  else:
    described = _describe(spec)
  raise ValueError(
    f'observations[{ACTION_MASK!r}] must be numbers [{num_actions}], 1 for each valid '
    f'action and else 0, not {described}'
  )


def _check_actions(spec: Any, max_actions: int) -> None:
  if isinstance(spec, specs.DiscreteArray):
    if spec.num_values > max_actions:
      raise ValueError(
        f'there are {spec.num_values:,} actions, and R2D2 has a Q-value for each: '
        f'leave at most max_actions={max_actions:,}, or raise --config.max_actions'
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
