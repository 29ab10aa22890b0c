"""Environments for Gymnasium's own loop: `reset`, `step`, and no `dm_env`."""

from collections.abc import Mapping
from typing import Any

import dm_env
import gymnasium
import numpy as np
from dm_env import specs

from r2d2_acme.environments.checks import checked
from r2d2_acme.environments.factories import EnvironmentFactory
from r2d2_acme.environments.gymnasium_adapter import GymnasiumAdapter
from r2d2_acme.environments.lifetime import make_dm_env

_MAX_TEXT = 10_000  # characters, since a spec does not tell


def make_for_gymnasium(factory: EnvironmentFactory, seed: int) -> gymnasium.Env:
  """Makes a factory's environment, with its preprocessing, for Gymnasium's own loop.

  A Gymnasium environment comes as it is, but the first `reset` uses `seed` if it is
  given no other one. A `dm_env` environment is wrapped in `FromDmEnv`.

  Raises:
    ValueError: R2D2 does not fit it.
  """
  environment = make_dm_env(factory, seed)
  if isinstance(environment, GymnasiumAdapter):
    return _Seeded(environment.gymnasium_env, seed)
  return FromDmEnv(environment)


class _Seeded(gymnasium.Wrapper):
  """Gives a seed to the first `reset`, if the caller gives none."""

  def __init__(self, env: gymnasium.Env, seed: int):
    super().__init__(env)
    self._seed: int | None = seed

  def reset(self, *, seed: int | None = None, options: dict | None = None):
    seed, self._seed = self._seed if seed is None else seed, None
    return super().reset(seed=seed, options=options)


class FromDmEnv(gymnasium.Env):
  """Makes a `dm_env` environment a Gymnasium one: the reverse of `GymnasiumAdapter`.

  | dm_env                                   | Gymnasium                      |
  |------------------------------------------|--------------------------------|
  | `DiscreteArray` actions                  | `Discrete`                     |
  | array observation                        | `Box`, same dtype and bounds   |
  | dict or tuple of observations            | `Dict` or `Tuple`              |
  | LAST with discount 0                     | terminated                     |
  | LAST with another discount               | truncated                      |
  | FIRST from `step`: it has reset itself   | truncated, reward 0            |
  """

  def __init__(self, environment: dm_env.Environment):
    self._environment = checked(environment)
    num_actions = self._environment.action_spec().num_values
    self.action_space = gymnasium.spaces.Discrete(num_actions)
    self.observation_space = _space(self._environment.observation_spec())

  def reset(
    self, *, seed: int | None = None, options: dict | None = None
  ) -> tuple[Any, dict[str, Any]]:
    """Starts an episode.

    Raises:
      ValueError: there is a seed, which only the environment's maker can use.
    """
    if seed is not None:
      raise ValueError(
        f'reset(seed={seed}): a dm_env environment takes its seed when it is made'
      )
    return self._environment.reset().observation, {}

  def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
    timestep = self._environment.step(action)
    if timestep.first():
      return timestep.observation, 0.0, False, True, {}
    terminated = timestep.last() and timestep.discount == 0
    truncated = timestep.last() and not terminated
    return timestep.observation, float(timestep.reward), terminated, truncated, {}

  def close(self):
    self._environment.close()


def _space(spec: Any) -> gymnasium.Space:
  """Returns the space of a spec, or of a nest of specs, that R2D2 fits."""
  if isinstance(spec, Mapping):
    return gymnasium.spaces.Dict({key: _space(part) for key, part in spec.items()})
  if isinstance(spec, (tuple, list)):
    return gymnasium.spaces.Tuple(map(_space, spec))
  if isinstance(spec, specs.StringArray):
    return gymnasium.spaces.Text(_MAX_TEXT)
  low: Any = -np.inf
  high: Any = np.inf
  if np.dtype(spec.dtype).kind in 'iu':
    low, high = np.iinfo(spec.dtype).min, np.iinfo(spec.dtype).max
  elif np.dtype(spec.dtype) == bool:
    low, high = False, True
  if isinstance(spec, specs.BoundedArray):
    low, high = (np.broadcast_to(x, spec.shape) for x in (spec.minimum, spec.maximum))
  return gymnasium.spaces.Box(low, high, spec.shape, spec.dtype)
