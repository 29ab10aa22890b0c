"""Tests of CartPole without velocities."""

import itertools
import unittest
import warnings

import gymnasium
import numpy as np
from dm_env import test_utils
from gymnasium.utils import env_checker

from r2d2_acme import environments
from r2d2_acme.environments import VELOCITYLESS_CARTPOLE, make_gymnasium


class VelocitylessCartPoleContractTest(
  test_utils.EnvironmentTestMixin, unittest.TestCase
):
  def make_object_under_test(self):
    return make_gymnasium(VELOCITYLESS_CARTPOLE, seed=0)

  def make_action_sequence(self):
    return itertools.repeat(np.int32(0), 30)  # falls over after about ten


def _play(env, policy):
  """Returns an episode's time steps; `policy` sees the last two observations."""
  timesteps = [env.reset()]
  previous = timesteps[0].observation
  while not timesteps[-1].last():
    observation = timesteps[-1].observation
    timesteps.append(env.step(policy(previous, observation)))
    previous = observation
  return timesteps


def test_it_is_cartpole_without_velocities():
  full = make_gymnasium('CartPole-v1', seed=7)
  part = make_gymnasium(VELOCITYLESS_CARTPOLE, seed=7)
  for _ in range(3):
    pairs = [(full.reset(), part.reset())]
    while not pairs[-1][0].last():
      action = len(pairs) % 2
      pairs.append((full.step(action), part.step(action)))
    for whole, observed in pairs:
      assert observed.step_type == whole.step_type
      assert observed.discount == whole.discount
      assert observed.reward == whole.reward
      # Position of the cart and angle of the pole.
      np.testing.assert_array_equal(observed.observation, whole.observation[[0, 2]])


def test_bounds_are_those_of_position_and_angle():
  full = make_gymnasium('CartPole-v1').observation_spec()
  part = make_gymnasium(VELOCITYLESS_CARTPOLE).observation_spec()
  assert part.shape == (2,)
  np.testing.assert_array_equal(part.minimum, full.minimum[[0, 2]])
  np.testing.assert_array_equal(part.maximum, full.maximum[[0, 2]])
  assert np.isfinite(part.maximum).all()


def test_two_observations_are_enough_for_all_500_steps():
  weights = np.array([0.05, 1.0])

  def balance(before, now):
    velocities = (now - before) / 0.02  # 0.02 seconds per step
    return int(now @ weights + velocities @ np.array([0.2, 0.5]) > 0)

  env = make_gymnasium(VELOCITYLESS_CARTPOLE, seed=0)
  timesteps = _play(env, balance)
  assert len(timesteps) == 1 + 500
  assert timesteps[-1].discount == 1.0  # a time limit


def test_one_observation_is_not():
  env = make_gymnasium(VELOCITYLESS_CARTPOLE, seed=0)
  lengths = [len(_play(env, lambda _, now: int(now[1] > 0))) - 1 for _ in range(20)]
  assert np.mean(lengths) < 100


def test_gymnasium_finds_no_fault():
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    warnings.filterwarnings('ignore', '.*different from the unwrapped version')
    env_checker.check_env(gymnasium.make(VELOCITYLESS_CARTPOLE), skip_render_check=True)


def test_names_lead_to_their_makers():
  made = {
    name: environments.make(name, seed=0)
    for name in (
      'memory/cue_recall/2',
      'bsuite/memory_len/15',
      VELOCITYLESS_CARTPOLE,
      'ALE/MsPacman-v5',
    )
  }
  shapes = [env.observation_spec().shape for env in made.values()]
  assert shapes == [(6,), (3,), (2,), (84, 84, 1)]
  assert [env.frames_per_step for env in made.values()] == [1, 1, 1, 4]
