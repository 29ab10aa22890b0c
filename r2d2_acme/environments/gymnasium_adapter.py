"""Gymnasium environments behind the `dm_env` interface."""

from typing import Any

import dm_env
import gymnasium
import numpy as np
from dm_env import specs

from r2d2_acme.environments import base


class GymnasiumAdapter(base.Environment):
  """Makes a Gymnasium environment with Discrete actions a `dm_env.Environment`.

  | Gymnasium                        | dm_env                           |
  |----------------------------------|----------------------------------|
  | `Discrete(n, start)` actions     | <int32>[] in 0 … n - 1           |
  | `Box` observation, uint8         | <uint8>, same shape and bounds   |
  | `Box` observation, anything else | <float32>, same shape and bounds |
  | reward                           | <float32>[], unclipped           |
  | `terminated`, truncated or not   | LAST, discount 0                 |
  | `truncated` only                 | LAST, discount 1                 |

  Observations are copies, so they stay valid after the next step.
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
      seed: given to the first `reset` only, later episodes continue its random
        stream; None seeds from the operating system.
      frames_per_step: emulator frames that pass in one step of `env`.

    Raises:
      ValueError: the actions are not Discrete or the observation is not a Box.
    """
    name = env.spec.id if env.spec else type(env.unwrapped).__name__
    actions = _discrete(env.action_space, name)
    self.gymnasium_env = env
    self.frames_per_step = frames_per_step
    self._next_seed = seed
    self._reset_next_step = True
    self._first_action = int(actions.start)
    self._action_spec = specs.DiscreteArray(
      int(actions.n), dtype=np.int32, name='action'
    )
    self._observation_spec = _observation_spec(_box(env.observation_space, name))

  def reset(self) -> dm_env.TimeStep:
    observation, _ = self.gymnasium_env.reset(seed=self._next_seed)
    self._next_seed = None
    self._reset_next_step = False
    return dm_env.restart(self._to_observation(observation))

  def step(self, action: int | np.integer | np.ndarray) -> dm_env.TimeStep:
    if self._reset_next_step:
      return self.reset()
    observation, reward, terminated, truncated, _ = self.gymnasium_env.step(
      int(action) + self._first_action
    )
    self._reset_next_step = terminated or truncated
    return dm_env.TimeStep(
      dm_env.StepType.LAST if self._reset_next_step else dm_env.StepType.MID,
      base.to_float32(reward, 'reward'),
      np.float32(0.0 if terminated else 1.0),
      self._to_observation(observation),
    )

  def observation_spec(self) -> specs.BoundedArray:
    return self._observation_spec

  def action_spec(self) -> specs.DiscreteArray:
    return self._action_spec

  def close(self) -> None:
    self.gymnasium_env.close()

  def _to_observation(self, observation: Any) -> np.ndarray:
    return np.array(observation, dtype=self._observation_spec.dtype)


def make_gymnasium(
  id: str, *, seed: int | None = None, **kwargs: Any
) -> dm_env.Environment:
  """Makes the registered Gymnasium environment `id`, e.g. `CartPole-v1`.

  Args:
    id: name with version, or `module:name-v0` to import its module first.
    seed: seeds the first episode, see `GymnasiumAdapter`.
    **kwargs: passed on to `gymnasium.make`.

  Raises:
    ValueError: `id` is unknown (the message has the nearest names), its package is
      missing, its actions are not Discrete or its observation is not a Box.
  """
  try:
    env = gymnasium.make(id, **kwargs)
  except (gymnasium.error.Error, ModuleNotFoundError) as error:
    reason = ' '.join(str(error).split())
    raise ValueError(f'cannot make Gymnasium environment {id!r}: {reason}') from error
  return GymnasiumAdapter(env, seed=seed)


def _discrete(space: gymnasium.Space, name: str) -> gymnasium.spaces.Discrete:
  """Returns the action space of environment `name` if it is Discrete, else raises."""
  if isinstance(space, gymnasium.spaces.Discrete):
    return space
  is_continuous = isinstance(space, gymnasium.spaces.Box)
  kind = 'continuous' if is_continuous else type(space).__name__
  raise ValueError(
    f'{name} has {kind} actions, R2D2 needs Discrete ones: '
    'map them with a gymnasium.ActionWrapper or choose another environment'
  )


def _box(space: gymnasium.Space, name: str) -> gymnasium.spaces.Box:
  """Returns the observation space of environment `name` if it is a Box, else raises."""
  if isinstance(space, gymnasium.spaces.Box):
    return space
  raise ValueError(
    f'{name} has a {type(space).__name__} observation, R2D2 needs a Box: '
    'wrap it in gymnasium.wrappers.FlattenObservation first'
  )


def _observation_spec(space: gymnasium.spaces.Box) -> specs.BoundedArray:
  dtype = np.uint8 if space.dtype == np.uint8 else np.float32
  # Unbounded float64 spaces may use ±1.8e308, which is ±inf in float32.
  with np.errstate(over='ignore'):
    return specs.BoundedArray(
      shape=space.shape,
      dtype=dtype,
      minimum=space.low.astype(dtype),
      maximum=space.high.astype(dtype),
      name='observation',
    )
