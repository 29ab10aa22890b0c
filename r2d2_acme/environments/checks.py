"""Checks what environments return, and reports where they fail."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dm_env
import numpy as np
from dm_env import specs

from r2d2_acme.environments import base
from r2d2_acme.observations import layouts

# Looking up these attributes takes longer than all the checks of a step.
_FLOAT32, _NDARRAY, _TIME_STEP = np.float32, np.ndarray, dm_env.TimeStep
_FIRST, _LAST = dm_env.StepType.FIRST, dm_env.StepType.LAST
_is_finite = math.isfinite


class EnvironmentFailed(RuntimeError):
  """An environment raised an error or violated its specs; the message is one line."""


def checked(environment: dm_env.Environment, name: str = '') -> 'Checked':
  """Wraps an environment so that its faults are reported where they occur.

  | the environment's                                     | becomes             |
  |-------------------------------------------------------|---------------------|
  | reward or discount: a number, bool or array [] or [1] | <float32>[]         |
  | ... any other value after the first time step         | `EnvironmentFailed` |
  | ... a value that is not finite                        | `EnvironmentFailed` |
  | observation of another type, shape or dtype           | `EnvironmentFailed` |
  | ... with a float that is not finite                   | `EnvironmentFailed` |
  | `action_mask` without a valid action, unless terminal | `EnvironmentFailed` |
  | first time step of `reset` that is not FIRST          | `EnvironmentFailed` |
  | error or `sys.exit` in `reset`, `step` or `close`     | `EnvironmentFailed` |

  The wrapper converts actions to the dtype in the environment's `action_spec`. A second
  `close` does nothing. All other attributes are the environment's. A wrapper is not
  wrapped again.

  Args:
    environment: an environment whose observation is an array or a nest of arrays.
    name: its name in errors; by default its Gymnasium id or its class.

  Raises:
    ValueError: it is not a `dm_env.Environment`.
  """
  if isinstance(environment, Checked):
    return environment
  if not hasattr(environment, 'observation_spec'):
    raise ValueError(
      f'environments must be dm_env.Environments, not {type(environment).__name__}: '
      "wrap a Gymnasium environment in r2d2_acme.environments' GymnasiumAdapter"
    )
  return Checked(environment, name or _name(environment))


class Checked(base.Environment):
  """The wrapper that `checked` returns."""

  def __init__(self, environment: dm_env.Environment, name: str):
    self._environment = environment
    self._name = name
    self._spec = environment.observation_spec()
    # A nest has neither, and single numbers come as Python's or as NumPy's.
    self._is_array = getattr(self._spec, 'shape', ()) != ()
    self._shape = getattr(self._spec, 'shape', ())
    self._dtype = getattr(self._spec, 'dtype', None)
    self._dot_zeros = _make_dot_zeros(self._shape, self._dtype)
    self._has_mask = layouts.has_mask(self._spec)
    action_dtype = getattr(environment.action_spec(), 'dtype', np.int32)
    self._to_action = None if action_dtype == np.int32 else np.dtype(action_dtype).type
    self._num_episodes = 0
    self._num_steps = 0  # of the current episode
    self._is_over = True
    self._is_closed = False
    self.frames_per_step = getattr(environment, 'frames_per_step', 1)

  def __getattr__(self, name: str) -> Any:
    if name.startswith('__') or name == '_environment':  # copy and pickle ask for them
      raise AttributeError(name)
    return getattr(self._environment, name)

  def reset(self) -> dm_env.TimeStep:
    self._is_over = True
    try:
      timestep = self._environment.reset()
    except base.FAULTS as error:
      raise self._failed(base.describe_error(error)) from error
    timestep = self._check(timestep)
    if timestep.step_type != _FIRST:
      self._is_over = True
      raise self._failed(f'its time step is {timestep.step_type!r}, not FIRST')
    return timestep

  def step(self, action: Any) -> dm_env.TimeStep:
    if self._to_action is not None:
      action = self._to_action(action)
    try:
      timestep = self._environment.step(action)
    except base.FAULTS as error:
      raise self._failed(base.describe_error(error)) from error
    return self._check(timestep)

  def observation_spec(self) -> specs.Array:
    return self._spec

  def action_spec(self) -> specs.Array:
    return self._environment.action_spec()

  def reward_spec(self) -> specs.Array:
    spec = self._environment.reward_spec()
    # The builder refuses any other spec.
    return super().reward_spec() if layouts.is_one_number(spec) else spec

  def close(self) -> None:
    if self._is_closed:
      return
    self._is_closed = True
    try:
      self._environment.close()
    except base.FAULTS as error:
      raise EnvironmentFailed(
        f'{self._name} failed in close: {base.describe_error(error)}'
      ) from error

  def _check(self, timestep: dm_env.TimeStep) -> dm_env.TimeStep:
    """Checks a time step; returns it with reward and discount in float32."""
    if not isinstance(timestep, _TIME_STEP):
      raise self._failed(
        f'it returned {base.describe_value(timestep)} instead of a dm_env.TimeStep: '
        'GymnasiumAdapter makes one of what a Gymnasium environment returns',
      )
    step_type, reward, discount, observation = timestep
    if not self._is_array:
      observation = self._check_nest(self._spec, observation)
      timestep = timestep._replace(observation=observation)
    elif (
      not isinstance(observation, _NDARRAY)
      or observation.dtype != self._dtype
      or observation.shape != self._shape
    ):
      raise self._unlike('', observation, f'{self._dtype} of shape {list(self._shape)}')
    if self._dot_zeros is not None and not _is_finite(self._dot_zeros(observation)):
      raise self._failed(
        f'the observation contains {observation[~np.isfinite(observation)][0]}'
      )
    # After a termination no action follows, and its Q-values are not used.
    if self._has_mask and (step_type != _LAST or discount):
      if not observation[layouts.ACTION_MASK].any():
        raise self._failed('its action_mask has no valid action')
    if step_type == _FIRST:
      self._num_episodes += 1
      self._num_steps = 0
      self._is_over = False
      return timestep
    if type(reward) is not _FLOAT32 or type(discount) is not _FLOAT32:
      try:
        reward = base.to_float32(reward, 'reward')
        discount = base.to_float32(discount, 'discount')
      except base.BadValue as error:
        raise self._failed(str(error)) from error
      timestep = dm_env.TimeStep(step_type, reward, discount, observation)
    if not (math.isfinite(reward) and math.isfinite(discount)):
      raise self._failed(f'the reward is {reward}, and the discount {discount}')
    self._num_steps += 1
    self._is_over = step_type == _LAST
    return timestep

  def _check_nest(self, spec: Any, value: Any, name: str = '') -> Any:
    """Checks a nested observation; returns dicts and tuples of arrays."""
    if isinstance(spec, Mapping):
      if not isinstance(value, Mapping) or not spec.keys() <= value.keys():
        raise self._unlike(name, value, f'a dict with the keys {", ".join(spec)}')
      return {
        key: self._check_nest(spec[key], value[key], f'{name}[{key!r}]') for key in spec
      }
    if isinstance(spec, (tuple, list)):
      if not isinstance(value, (tuple, list)) or len(value) != len(spec):
        raise self._unlike(name, value, f'a {type(spec).__name__} of {len(spec)}')
      return tuple(
        self._check_nest(spec[i], value[i], f'{name}[{i}]') for i in range(len(spec))
      )
    if isinstance(spec, specs.StringArray):
      return value  # the agent does not read it
    array = value
    if not spec.shape and isinstance(value, (bool, int, float, np.generic)):
      array = np.asarray(value)
      if array.dtype.kind == spec.dtype.kind:
        array = array.astype(spec.dtype)
    if (
      not isinstance(array, _NDARRAY)
      or array.dtype != spec.dtype
      or array.shape != spec.shape
    ):
      raise self._unlike(name, value, f'{spec.dtype} of shape {list(spec.shape)}')
    if array.dtype.kind == 'f' and not np.isfinite(array).all():
      raise self._failed(
        f'the observation{name} contains {array[~np.isfinite(array)][0]}'
      )
    return array

  def _unlike(self, name: str, value: Any, spec: str) -> EnvironmentFailed:
    return self._failed(
      f'the observation{name} is {base.describe_value(value)}, but '
      f'observation_spec() says {spec}'
    )

  def _failed(self, reason: str) -> EnvironmentFailed:
    """Returns the error to raise, which says in which step it occurred."""
    if self._is_over:
      where = f'the reset before episode {self._num_episodes + 1}'
    else:
      where = f'step {self._num_steps + 1} of episode {self._num_episodes}'
    return EnvironmentFailed(f'{self._name} failed in {where}: {reason}')


def _make_dot_zeros(shape: Sequence[int], dtype: Any) -> Callable | None:
  """Returns a function of an observation that is 0 if all its numbers are finite.

  Otherwise it is NaN. It is a product with zeros, which takes a quarter of the time of
  `numpy.isfinite`. Integers are finite: for them there is no function.
  """
  if dtype is None or np.dtype(dtype).kind != 'f':
    return None
  zeros = np.zeros(shape, dtype)
  return zeros.dot if zeros.ndim == 1 else functools.partial(np.vdot, zeros)


def _name(environment: dm_env.Environment) -> str:
  spec = getattr(getattr(environment, 'gymnasium_env', None), 'spec', None)
  return spec.id if spec is not None else type(environment).__name__
