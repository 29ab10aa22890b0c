"""Gymnasium environments behind the `dm_env` interface."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import dm_env
import gymnasium
import numpy as np
from dm_env import specs

from r2d2_acme.environments import base, gymnasium_spaces
from r2d2_acme.observations import layouts

# The parts of what Gymnasium's functions return.
_RESET = ('observation', 'info')
_STEP = ('observation', 'reward', 'terminated', 'truncated', 'info')


def name_of(env: gymnasium.Env) -> str:
  """Returns what to call an environment in errors: its id, or else its class."""
  return env.spec.id if env.spec else type(env.unwrapped).__name__


class GymnasiumAdapter(base.Environment):
  """Makes a Gymnasium environment with discrete actions a `dm_env.Environment`.

  | Gymnasium                            | dm_env                           |
  |--------------------------------------|----------------------------------|
  | actions, see `gymnasium_spaces`      | <int32>[] in 0 … n - 1           |
  | observation, see there               | an array or a nest of arrays     |
  | reward                               | <float32>[], unclipped           |
  | `terminated`, truncated or not       | LAST, discount 0                 |
  | `truncated` only                     | LAST, discount 1                 |
  | `info['action_mask']`, if there      | a dict: `observation` as above,  |
  | and no Dict with such a key          | and `action_mask` <uint8>[n]     |

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
    has_mask: bool | None = None,
  ):
    """Wraps `env`; does not reset it.

    Args:
      env: the environment to adapt; `close` closes it.
      seed: passed to the first `reset`; later episodes continue the same random
        stream. None seeds from the operating system.
      frames_per_step: emulator frames that pass in one step of `env`.
      has_mask: whether the infos hold masks of valid actions. None finds out by the
        first `reset`, which `observation_spec` then calls ahead of its time.

    Raises:
      ValueError: the actions are not discrete, or R2D2 cannot take the observation; one
        line that says why and what to do.
    """
    name = name_of(env)
    for space in ('action_space', 'observation_space'):
      if getattr(env, space, None) is None:
        raise ValueError(f'{name} has no {space}: set it in its __init__')
    num_actions, self._to_action = gymnasium_spaces.number_actions(
      env.action_space, name
    )
    self.gymnasium_env = env
    self.frames_per_step = frames_per_step
    self._next_seed = seed
    self._reset_next_step = True
    self._action_spec = specs.DiscreteArray(num_actions, dtype=np.int32, name='action')
    self._observation_spec, self._read = gymnasium_spaces.read_observations(
      env.observation_space, f'{name} has observations'
    )
    # A Dict may hold the mask itself.
    self._has_mask = False if layouts.has_mask(self._observation_spec) else has_mask
    self._mask_spec = specs.BoundedArray(
      (num_actions,), np.uint8, 0, 1, layouts.ACTION_MASK
    )
    self._first_timestep: dm_env.TimeStep | None = None

  def reset(self) -> dm_env.TimeStep:
    if self._first_timestep is not None:
      timestep, self._first_timestep = self._first_timestep, None
      return timestep
    observation, info = _unpack(self.gymnasium_env.reset(seed=self._next_seed), _RESET)
    if self._has_mask is None:
      self._has_mask = layouts.ACTION_MASK in info
    timestep = dm_env.restart(self.to_observation(observation, info))
    self._next_seed = None
    self._reset_next_step = False
    return timestep

  def step(self, action: int | np.integer | np.ndarray) -> dm_env.TimeStep:
    if self._reset_next_step or self._first_timestep is not None:
      return self.reset()
    observation, reward, terminated, truncated, info = _unpack(
      self.gymnasium_env.step(self.to_action(action)), _STEP
    )
    self._reset_next_step = terminated or truncated
    return dm_env.TimeStep(
      dm_env.StepType.LAST if self._reset_next_step else dm_env.StepType.MID,
      base.to_float32(reward, 'reward'),
      np.float32(0.0 if terminated else 1.0),
      self.to_observation(observation, info, terminated),
    )

  def observation_spec(self) -> Any:
    if self._has_mask is None:
      # A fault of the first reset is for `reset` to report, which then calls it again.
      with contextlib.suppress(*base.FAULTS):
        self._first_timestep = self.reset()
    if not self._has_mask:
      return self._observation_spec
    return self._with_mask(self._observation_spec, self._mask_spec)

  def action_spec(self) -> specs.DiscreteArray:
    return self._action_spec

  def close(self) -> None:
    self.gymnasium_env.close()

  def to_action(self, action: int | np.integer | np.ndarray) -> Any:
    """Turns an action of `action_spec` into one of the Gymnasium environment's."""
    return self._to_action(action)

  def to_observation(
    self, observation: Any, info: Mapping[str, Any], terminated: bool = False
  ) -> Any:
    """Turns an observation of the Gymnasium environment into one of the spec's.

    Args:
      observation: as `reset` and `step` of the environment return it.
      info: that came with it, which may hold the mask of valid actions.
      terminated: whether the episode has ended, so that no mask is needed.

    Raises:
      base.BadValue: it is not made of numbers that the dtype can hold, or the mask is
        not there or not one.
    """
    observation = self._read(observation)
    if not self._has_mask:
      return observation
    mask = info.get(layouts.ACTION_MASK)
    if mask is None and terminated:  # no action follows
      mask = np.zeros(self._action_spec.num_values)
    try:
      mask = np.asarray(mask)
    except ValueError:  # a ragged nest: one mask for each part of an action
      mask = np.asarray(None)
    if mask.shape != self._mask_spec.shape or mask.dtype.kind not in 'biuf':
      raise base.BadValue(
        f"info['{layouts.ACTION_MASK}'] is {base.describe_value(mask)}, not a number "
        f'for each of the {self._action_spec.num_values} actions (with several parts, '
        'for each combination)'
      )
    return self._with_mask(observation, (mask != 0).astype(np.uint8))

  def _with_mask(self, observation: Any, mask: Any) -> dict[str, Any]:
    """Adds a mask, or its spec, to an observation, or to its spec."""
    if not isinstance(observation, dict):
      observation = {'observation': observation}
    return {**observation, layouts.ACTION_MASK: mask}


def _unpack(result: Any, names: Sequence[str]) -> tuple:
  """Returns the result of `reset` or `step` if it has these parts, else raises."""
  if isinstance(result, tuple) and len(result) == len(names):
    return result
  raise base.BadValue(
    f'it returned {base.describe_value(result)} instead of ({", ".join(names)}): '
    'convert a Gym environment to Gymnasium first'
  )
