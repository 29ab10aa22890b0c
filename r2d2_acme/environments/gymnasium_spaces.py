"""From Gymnasium's spaces to specs, from its values to arrays, and actions back.

| space                          | spec                                                |
|--------------------------------|-----------------------------------------------------|
| `Box` of uint8 or bool         | <uint8>, same shape and bounds                      |
| ... of integers in int32       | <int32>, same shape and bounds                      |
| ... of anything else           | <float32>, same shape and bounds                    |
| `Discrete`                     | `DiscreteArray` <uint8 or int32>[], from 0          |
| `MultiDiscrete`                | `Categories` <uint8 or int32>, same shape, from 0   |
| `MultiBinary`                  | <uint8>, same shape, 0 to 1                         |
| `Text`, or of `str`            | `StringArray`, which the agent does not read        |
| `Dict` and `Tuple`             | a dict and a tuple of the above                     |
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from dm_env import specs
from gymnasium import Space, spaces

from r2d2_acme.environments import base
from r2d2_acme.observations import layouts

_INT32 = np.iinfo(np.int32)

# From what an environment returns to an array of its spec, or a nest of them.
Reader = Callable[[Any], Any]


def read_observations(space: Space, name: str) -> tuple[Any, Reader]:
  """Returns the spec of a space's values, and the function that reads one.

  The function returns copies. It raises `base.BadValue` if a value is not of the space,
  or if the dtype of the spec cannot hold its numbers.

  Args:
    space: of the observations.
    name: what to call them in errors, such as "MyTask-v0 has observations['eye']".

  Raises:
    ValueError: R2D2 cannot take them; one line that says why and what to do.
  """
  if isinstance(space, spaces.Dict):
    parts = {
      key: read_observations(value, f'{name}[{key!r}]')
      for key, value in space.spaces.items()
    }
    readers = {key: read for key, (_, read) in parts.items()}
    spec = {key: spec for key, (spec, _) in parts.items()}
    return spec, functools.partial(_read_dict, readers)
  if isinstance(space, spaces.Tuple):
    pairs = [
      read_observations(value, f'{name}[{i}]') for i, value in enumerate(space.spaces)
    ]
    return tuple(spec for spec, _ in pairs), functools.partial(
      _read_tuple, [read for _, read in pairs]
    )
  if isinstance(space, spaces.Text) or space.dtype == np.dtype(str):
    return specs.StringArray((), name='observation'), lambda value: value
  if isinstance(space, spaces.Box):
    return _read_box(space, name)
  if isinstance(space, spaces.MultiBinary):
    spec = specs.BoundedArray(space.shape, np.uint8, 0, 1, 'observation')
    return spec, functools.partial(_read_numbers, np.dtype(np.uint8))
  if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
    return _read_categories_of(space)
  raise ValueError(
    f'{name} of a {type(space).__name__} space, which has no array of one size: map it '
    'to one with gymnasium.wrappers.TransformObservation(env, function, box)'
  )


def number_actions(space: Space, name: str) -> tuple[int, Callable[[Any], Any]]:
  """Returns how many actions there are, and the function from a number to an action.

  Combinations of a `MultiDiscrete` or a `MultiBinary` are numbered, the last part
  counting fastest.

  Args:
    space: of the actions.
    name: of the environment, for errors.

  Raises:
    ValueError: they are of another space, or too many to number.
  """
  if isinstance(space, spaces.Discrete):
    start = int(space.start)
    return int(space.n), lambda action: int(action) + start
  if isinstance(space, (spaces.MultiDiscrete, spaces.MultiBinary)):
    if isinstance(space, spaces.MultiBinary):
      nums, first = np.full(space.shape, 2), np.zeros(space.shape, int)
    else:
      nums, first = space.nvec, space.start
    number = math.prod(map(int, nums.flat))
    if number > _INT32.max:
      raise ValueError(
        f'{name} has {nums.size} actions at a time, of which there are too many '
        'combinations: leave some of them out with gymnasium.wrappers.TransformAction'
      )

    def undo(action: Any) -> np.ndarray:
      parts = np.unravel_index(int(action), nums.reshape(-1))
      return (np.reshape(parts, nums.shape) + first).astype(space.dtype)

    return number, undo
  is_continuous = isinstance(space, spaces.Box) and space.dtype.kind == 'f'
  kind = 'continuous' if is_continuous else type(space).__name__
  cure = 'choose n of the values' if is_continuous else 'number the combinations'
  raise ValueError(
    f'{name} has {kind} actions, R2D2 needs Discrete ones: {cure} with gymnasium.'
    'wrappers.TransformAction(env, function, gymnasium.spaces.Discrete(n))'
  )


def _read_box(space: spaces.Box, name: str) -> tuple[specs.Array, Reader]:
  spec = specs.BoundedArray(space.shape, space.dtype, space.low, space.high)
  fault = layouts.shape_fault(space.shape) or layouts.number_fault(spec)
  if fault is not None:
    raise ValueError(f'{name} of shape {list(space.shape)}: {fault}')
  dtype: np.dtype = np.dtype(_dtype_of(space))
  # Unbounded float64 spaces may have the bounds ±1.8e308, which are ±inf in float32.
  with np.errstate(over='ignore'):
    spec = specs.BoundedArray(
      shape=space.shape,
      dtype=dtype,
      minimum=space.low.astype(dtype),
      maximum=space.high.astype(dtype),
      name='observation',
    )
  return spec, functools.partial(_read_numbers, dtype)


def _dtype_of(space: spaces.Box) -> type:
  kind = space.dtype.kind
  if kind == 'b' or space.dtype == np.uint8:
    return np.uint8
  is_int32 = (space.low >= _INT32.min).all() and (space.high <= _INT32.max).all()
  return np.int32 if kind in 'iu' and is_int32 else np.float32


def _read_categories_of(
  space: spaces.Discrete | spaces.MultiDiscrete,
) -> tuple[specs.Array, Reader]:
  nums = np.asarray(space.n if isinstance(space, spaces.Discrete) else space.nvec)
  dtype: np.dtype = np.dtype(np.uint8 if nums.max() <= 256 else np.int32)
  spec: specs.Array
  if isinstance(space, spaces.Discrete):
    spec = specs.DiscreteArray(int(nums), dtype, 'observation')
  else:
    spec = layouts.Categories(nums.shape, dtype, 0, nums - 1, 'observation')
  return spec, functools.partial(_read_categories, space, nums, dtype)


def _read_dict(readers: dict[str, Reader], value: Any) -> dict[str, Any]:
  if not isinstance(value, dict) or not readers.keys() <= value.keys():
    raise base.BadValue(
      f'the observation is {base.describe_value(value)}, not a dict with the keys '
      f'{", ".join(readers)}'
    )
  return {key: read(value[key]) for key, read in readers.items()}


def _read_tuple(readers: list[Reader], value: Any) -> tuple:
  if not isinstance(value, (tuple, list)) or len(value) != len(readers):
    raise base.BadValue(
      f'the observation is {base.describe_value(value)}, not a tuple of {len(readers)}'
    )
  return tuple(read(part) for read, part in zip(readers, value, strict=True))


def _read_categories(
  space: Space, nums: np.ndarray, dtype: np.dtype, value: Any
) -> np.ndarray:
  numbers = np.asarray(value)
  if numbers.dtype.kind in 'iub' and numbers.shape == nums.shape:
    numbers = numbers.astype(np.int64) - space.start  # type: ignore[attr-defined]
    if ((numbers >= 0) & (numbers < nums)).all():
      return np.asarray(numbers, dtype)
  raise base.BadValue(f'the observation is {value!r}, which is not in {space}')


def _read_numbers(dtype: np.dtype, value: Any) -> np.ndarray:
  if getattr(value, 'dtype', None) == dtype:
    return np.array(value)
  try:
    given = np.asarray(value)
  except (TypeError, ValueError) as error:
    raise base.BadValue(f'the observation is not an array: {error}') from error
  if given.dtype.kind not in 'biuf':
    raise base.BadValue(f'the observation is {base.describe_value(value)}, not numbers')
  with np.errstate(invalid='ignore', over='ignore'):
    array = given.astype(dtype)
  if dtype.kind != 'f':
    _check_integers(given, array)
  return array


def _check_integers(given: np.ndarray, array: np.ndarray):
  """Raises BadValue if the integers in `array` differ from the numbers in `given`."""
  other = given[given != array]
  if other.size:
    raise base.BadValue(
      f'the observation contains {other[0]}, but its space has {array.dtype}: make the '
      'space float32'
    )
