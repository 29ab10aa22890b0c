"""Pong that fails on request: when a file of a fault's name appears in a folder."""

import ctypes
import os

import dm_env
import numpy as np

from r2d2_acme import environments

FOLDER = 'CHAOS_FOLDER'  # an environment variable: where to look for the files
KINDS = ('raise', 'nan', 'shape', 'hang')


class _Faulty(dm_env.Environment):
  """Passes on another environment, and fails once for each file, which it removes."""

  def __init__(self, environment: dm_env.Environment):
    self._environment = environment
    self._folder = os.environ[FOLDER]

  def __getattr__(self, name: str):
    return getattr(self._environment, name)

  def reset(self) -> dm_env.TimeStep:
    return self._environment.reset()

  def step(self, action) -> dm_env.TimeStep:
    timestep = self._environment.step(action)
    for kind in os.listdir(self._folder):
      try:
        os.remove(os.path.join(self._folder, kind))
      except FileNotFoundError:  # another environment was faster
        continue
      return self._fail(kind, timestep)
    return timestep

  def _fail(self, kind: str, timestep: dm_env.TimeStep) -> dm_env.TimeStep:
    if kind == 'raise':
      raise RuntimeError('chaos: the ball is out of reach')
    if kind == 'hang':
      ctypes.PyDLL(None).sleep(100_000)  # with Python's lock
    if kind == 'nan':
      return timestep._replace(reward=np.float32(np.nan))
    return timestep._replace(observation=timestep.observation[1:])

  def observation_spec(self):
    return self._environment.observation_spec()

  def action_spec(self):
    return self._environment.action_spec()


def make_environment(seed: int) -> dm_env.Environment:
  """Makes Pong with the game's own actions."""
  return _Faulty(environments.make_atari('pong', seed=seed, full_action_space=False))
