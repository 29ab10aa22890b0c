"""Gymnasium environments behind the `dm_env` interface."""

import math
from collections.abc import Sequence
from typing import Any

import dm_env
import gymnasium
import numpy as np
from dm_env import specs

from r2d2_acme.environments import base
from r2d2_acme.observations import layouts

_INT32 = np.iinfo(np.int32)
# The parts of what Gymnasium's functions return.
_RESET = ('observation', 'info')
_STEP = ('observation', 'reward', 'terminated', 'truncated', 'info')


def name_of(env: gymnasium.Env) -> str:
  """Returns what to call an environment in errors: its id, or else its class."""
  return env.spec.id if env.spec else type(env.unwrapped).__name__


class GymnasiumAdapter(base.Environment):
  """Makes a Gymnasium environment with Discrete actions a `dm_env.Environment`.

  | Gymnasium                            | dm_env                           |
  |--------------------------------------|----------------------------------|
  | `Discrete(n, start)` actions         | <int32>[] in 0 … n - 1           |
  | `Box` observation, uint8 or bool     | <uint8>, same shape and bounds   |
  | ... of integers with bounds in int32 | <int32>, same shape and bounds   |
  | ... of anything else                 | <float32>, same shape and bounds |
  | reward                               | <float32>[], unclipped           |
  | `terminated`, truncated or not       | LAST, discount 0                 |
  | `truncated` only                     | LAST, discount 1                 |

  Observations are copies, which stay valid after the next step. `step` and `reset`
  raise `base.BadValue` if the reward is not one number, or if the dtype of the space
  cannot hold the observation's numbers.
  """

  def __init__(
    self,
    env: gymnasium.Env,
    *,
    seed: int | None = None,
    frames_per_step: int = 1,
  ):
    """Wraps `env`; does not reset it.

    Args:
      env: the environment to adapt; `close` closes it.
      seed: passed to the first `reset`; later episodes continue the same random
        stream. None seeds from the operating system.
      frames_per_step: emulator frames that pass in one step of `env`.

    Raises:
      ValueError: the actions are not Discrete, or the observation is not a Box that
        R2D2 can take; one line that says why and what to do.
    """
    name = name_of(env)
    for space in ('action_space', 'observation_space'):
      if getattr(env, space, None) is None:
        raise ValueError(f'{name} has no {space}: set it in its __init__')
    actions = _discrete(env.action_space, name)
    self.gymnasium_env = env
    self.frames_per_step = frames_per_step
    self._next_seed = seed
    self._reset_next_step = True
    self._first_action = int(actions.start)
    self._action_spec = specs.DiscreteArray(
      int(actions.n), dtype=np.int32, name='action'
    )
    self._observation_spec = _observation_spec(_box(env.observation_space, name), name)

  def reset(self) -> dm_env.TimeStep:
    observation, _ = _unpack(self.gymnasium_env.reset(seed=self._next_seed), _RESET)
    self._next_seed = None
    self._reset_next_step = False
    return dm_env.restart(self.to_observation(observation))

  def step(self, action: int | np.integer | np.ndarray) -> dm_env.TimeStep:
    if self._reset_next_step:
      return self.reset()
    observation, reward, terminated, truncated, _ = _unpack(
      self.gymnasium_env.step(self.to_action(action)), _STEP
    )
    self._reset_next_step = terminated or truncated
    return dm_env.TimeStep(
      dm_env.StepType.LAST if self._reset_next_step else dm_env.StepType.MID,
      base.to_float32(reward, 'reward'),
      np.float32(0.0 if terminated else 1.0),
      self.to_observation(observation),
    )

  def observation_spec(self) -> specs.BoundedArray:
    return self._observation_spec

  def action_spec(self) -> specs.DiscreteArray:
    return self._action_spec

  def close(self) -> None:
    self.gymnasium_env.close()

  def to_action(self, action: int | np.integer | np.ndarray) -> int:
    """Turns an action of `action_spec` into one of the Gymnasium environment's."""
    return int(action) + self._first_action

  def to_observation(self, observation: Any) -> np.ndarray:
    """Turns an observation of the Gymnasium environment into one of the spec's dtype.

    Raises:
      base.BadValue: it is not made of numbers that the dtype can hold.
    """
    dtype = self._observation_spec.dtype
    if getattr(observation, 'dtype', None) == dtype:
      return np.array(observation)
    try:
      given = np.asarray(observation)
    except (TypeError, ValueError) as error:
      raise base.BadValue(f'the observation is not an array: {error}') from error
    if given.dtype.kind not in 'biuf':
      raise base.BadValue(
        f'the observation is {base.describe_value(observation)}, not numbers'
      )
    with np.errstate(invalid='ignore', over='ignore'):
      array = given.astype(dtype)
    if dtype.kind != 'f':
      _check_integers(given, array)
    return array


def _unpack(result: Any, names: Sequence[str]) -> tuple:
  """Returns the result of `reset` or `step` if it has these parts, else raises."""
  if isinstance(result, tuple) and len(result) == len(names):
    return result
  raise base.BadValue(
    f'it returned {base.describe_value(result)} instead of ({", ".join(names)}): '
    'convert a Gym environment to Gymnasium first'
  )


def _check_integers(given: np.ndarray, array: np.ndarray):
  """Raises BadValue if the integers in `array` differ from the numbers in `given`."""
  other = given[given != array]
  if other.size:
    raise base.BadValue(
      f'the observation contains {other[0]}, but its space has {array.dtype}: make the '
      'space float32'
    )


def _discrete(space: gymnasium.Space, name: str) -> gymnasium.spaces.Discrete:
  """Returns the action space of environment `name` if it is Discrete, else raises."""
  if isinstance(space, gymnasium.spaces.Discrete):
    return space
  is_continuous = isinstance(space, gymnasium.spaces.Box) and space.dtype.kind == 'f'
  kind = 'continuous' if is_continuous else type(space).__name__
  number = None if is_continuous else _num_combinations(space)
  n = 'n' if number is None or number > layouts.MAX_LISTED_ACTIONS else number
  cure = 'choose n of the values' if is_continuous else 'number the combinations'
  raise ValueError(
    f'{name} has {kind} actions, R2D2 needs Discrete ones: {cure} with gymnasium.'
    f'wrappers.TransformAction(env, function, gymnasium.spaces.Discrete({n}))'
  )


def _num_combinations(space: gymnasium.Space) -> int | None:
  """Returns the number of values of a space; None if they cannot be counted."""
  if isinstance(space, gymnasium.spaces.Discrete):
    return int(space.n)
  if isinstance(space, gymnasium.spaces.MultiBinary):
    return 2 ** math.prod(space.shape)
  if isinstance(space, gymnasium.spaces.MultiDiscrete):
    return math.prod(int(n) for n in space.nvec.flat)
  if isinstance(space, gymnasium.spaces.Box) and space.dtype.kind != 'f':
    pairs = zip(space.low.flat, space.high.flat, strict=True)
    return math.prod(int(high) - int(low) + 1 for low, high in pairs)
  if isinstance(space, (gymnasium.spaces.Dict, gymnasium.spaces.Tuple)):
    numbers = [_num_combinations(leaf) for _, leaf in layouts.leaves(_nest(space))]
    return None if None in numbers else math.prod(filter(None, numbers))
  return None


def _box(space: gymnasium.Space, name: str) -> gymnasium.spaces.Box:
  """Returns the observation space of environment `name` if it is a Box, else raises."""
  if isinstance(space, gymnasium.spaces.Box):
    return space
  raise ValueError(
    f'{name} has a {type(space).__name__} observation, R2D2 needs a Box: '
    f'{_cure_of_other(space)}'
  )


def _observation_spec(space: gymnasium.spaces.Box, name: str) -> specs.BoundedArray:
  """Returns the spec of a Box that R2D2 can take, else raises ValueError."""
  fault = _fault(space)
  if fault is not None:
    raise ValueError(
      f'{name} has observations of shape {list(space.shape)}, R2D2 needs images '
      f'[H, W, C] or vectors [D]: {fault}'
    )
  dtype = _dtype(space)
  # Unbounded float64 spaces may have the bounds ±1.8e308, which are ±inf in float32.
  with np.errstate(over='ignore'):
    return specs.BoundedArray(
      shape=space.shape,
      dtype=dtype,
      minimum=space.low.astype(dtype),
      maximum=space.high.astype(dtype),
      name='observation',
    )


def _dtype(space: gymnasium.spaces.Box) -> type:
  """Returns the dtype of the adapter's observations; see `GymnasiumAdapter`."""
  kind = space.dtype.kind
  if kind == 'b' or space.dtype == np.uint8:
    return np.uint8
  is_int32 = (space.low >= _INT32.min).all() and (space.high <= _INT32.max).all()
  return np.int32 if kind in 'iu' and is_int32 else np.float32


def _fault(space: gymnasium.spaces.Box) -> str | None:
  """Returns why R2D2 cannot take a Box, with the cure; None if it can."""
  spec = specs.BoundedArray(space.shape, space.dtype, space.low, space.high)
  return layouts.shape_fault(space.shape, _cures(space)) or layouts.number_fault(spec)


def _cures(space: gymnasium.spaces.Box) -> layouts.Cures:
  """Returns the cures for a Box's faults, in terms of Gymnasium's wrappers."""
  shape, flatten = space.shape, 'gymnasium.wrappers.FlattenObservation(env)'
  flatten_it = f'flatten it with {flatten}'
  moved = (*shape[1:], *shape[:1])
  unstack = 'take FrameStackObservation off, because the agent stacks frames itself' + (
    ', and add an axis for channels' if len(shape) == 3 else ''
  )
  smallest = (layouts.MIN_IMAGE_SIZE,) * 2
  resize = f'resize them to at least {smallest[0]}x{smallest[1]}'
  if space.dtype == np.uint8 and (space.low == 0).all() and (space.high == 255).all():
    resize = f'resize them with gymnasium.wrappers.ResizeObservation(env, {smallest})'
  return layouts.Cures(
    scalar='give it one with gymnasium.wrappers.ReshapeObservation(env, (1,))',
    empty='give every axis of the space a size',
    flatten=f'{flatten_it}, after taking FrameStackObservation off if there is one',
    add_channels=(
      f'add one with gymnasium.wrappers.ReshapeObservation(env, {(*shape, 1)})'
    ),
    move_channels=(
      'move it to the end with gymnasium.wrappers.TransformObservation(env, '
      f'lambda x: numpy.moveaxis(x, 0, -1), {_box_code(space, moved)})'
    ),
    unstack=unstack,
    resize=f'{resize}, or {flatten_it}',
  )


def _box_code(space: gymnasium.spaces.Box, shape: Sequence[int]) -> str:
  """Returns Python code for a Box like `space` with another shape."""
  low, high = (space.low.min(), space.high.max()) if space.low.size else (0, 1)
  return f'gymnasium.spaces.Box({low}, {high}, {tuple(shape)}, {str(space.dtype)!r})'


def _cure_of_other(space: gymnasium.Space) -> str:
  """Returns how to turn a space that is not a Box into one."""
  flatten = 'gymnasium.wrappers.FlattenObservation'
  if not isinstance(space, (gymnasium.spaces.Dict, gymnasium.spaces.Tuple)):
    if space.is_np_flattenable:
      return f'wrap it in {flatten} first'
    return (
      'map it to an array of one size with '
      'gymnasium.wrappers.TransformObservation(env, function, box)'
    )
  leaves = list(layouts.leaves(_nest(space)))
  if not leaves:
    return 'this one is empty'
  fitting = [
    (len(leaf.shape) != 3, path)  # images first
    for path, leaf in leaves
    if isinstance(leaf, gymnasium.spaces.Box) and _fault(leaf) is None
  ]
  rigid = [path for path, leaf in leaves if not leaf.is_np_flattenable]
  cures = []
  if fitting:
    _, path = min(fitting)
    cures.append(
      f'take {path} alone with gymnasium.wrappers.TransformObservation(env, '
      f'lambda x: x{path}, env.observation_space{path})'
    )
  if not rigid:
    cures.append(f'wrap it in {flatten}, which makes one vector of it')
  elif not fitting:
    cures.append(
      f'{rigid[0]} has no fixed size: map it to an array of one size with '
      'gymnasium.wrappers.TransformObservation(env, function, box)'
    )
  described = layouts.describe_leaves(
    [(path, _describe(leaf)) for path, leaf in leaves]
  )
  return f'it holds {described}; {", or ".join(cures)}'


def _nest(space: gymnasium.Space) -> Any:
  """Turns Dict and Tuple spaces into dicts and tuples of spaces."""
  if isinstance(space, gymnasium.spaces.Dict):
    return {key: _nest(value) for key, value in space.spaces.items()}
  if isinstance(space, gymnasium.spaces.Tuple):
    return tuple(_nest(value) for value in space.spaces)
  return space


def _describe(space: gymnasium.Space) -> str:
  if isinstance(space, gymnasium.spaces.Box):
    return f'{space.dtype} {list(space.shape)}'
  return type(space).__name__
