"""Tests of the Gymnasium adapter."""

import itertools
import unittest
import warnings

import dm_env
import gymnasium
import numpy as np
import pytest
from dm_env import test_utils
from gymnasium import spaces

from r2d2_acme.environments import make_gymnasium
from r2d2_acme.environments.gymnasium_adapter import GymnasiumAdapter


class _Scripted(gymnasium.Env):
  """Plays a script of (reward, terminated, truncated); observes one reused buffer."""

  def __init__(self, script=(), observation_space=None, action_space=None):
    self.observation_space = observation_space or spaces.Box(-1e3, 1e3, (2,), 'float64')
    self.action_space = action_space or spaces.Discrete(3)
    self.script = script
    self.reset_seeds = []
    self.actions = []
    self.buffer = np.zeros(
      self.observation_space.shape or (), self.observation_space.dtype
    )

  def reset(self, *, seed=None, options=None):
    self.reset_seeds.append(seed)
    self.time = 0
    self.buffer[...] = 0
    return self.buffer, {}

  def step(self, action):
    self.actions.append(action)
    reward, terminated, truncated = self.script[self.time]
    self.time += 1
    self.buffer[...] = self.time
    return self.buffer, reward, terminated, truncated, {}


def _balance(observation):
  """Returns the CartPole action of a linear controller that never drops the pole."""
  return int(observation @ np.array([0.05, 0.2, 1.0, 0.5]) > 0)


def _play(env, policy):
  """Returns the time steps of one episode."""
  timesteps = [env.reset()]
  while not timesteps[-1].last():
    timesteps.append(env.step(policy(timesteps[-1].observation)))
  return timesteps


class CartPoleContractTest(test_utils.EnvironmentTestMixin, unittest.TestCase):
  def make_object_under_test(self):
    return make_gymnasium('CartPole-v1', seed=0)

  def make_action_sequence(self):
    return itertools.repeat(np.int32(0), 30)  # Falls over after about ten.


def test_cartpole_falling_over_has_discount_0():
  last = _play(make_gymnasium('CartPole-v1', seed=0), lambda _: 0)[-1]
  assert last.discount == 0.0
  assert last.reward == 1.0


def test_cartpole_time_limit_of_500_steps_has_discount_1():
  timesteps = _play(make_gymnasium('CartPole-v1', seed=0), _balance)
  assert len(timesteps) == 1 + 500
  assert timesteps[-1].discount == 1.0


@pytest.mark.parametrize(
  'terminated, truncated, step_type, discount',
  [
    (False, False, dm_env.StepType.MID, 1.0),
    (True, False, dm_env.StepType.LAST, 0.0),
    (False, True, dm_env.StepType.LAST, 1.0),
    (True, True, dm_env.StepType.LAST, 0.0),
  ],
)
def test_ends_of_episodes(terminated, truncated, step_type, discount):
  env = GymnasiumAdapter(_Scripted([(0.0, terminated, truncated)]))
  env.reset()
  timestep = env.step(0)
  assert timestep.step_type is step_type
  assert timestep.discount == discount
  assert timestep.discount.dtype == np.float32


def test_step_after_last_starts_a_new_episode_and_ignores_the_action():
  inner = _Scripted([(1.0, True, False)])
  env = GymnasiumAdapter(inner)
  env.reset()
  assert env.step(2).last()
  assert env.step(1).first()
  assert inner.actions == [2]


def test_step_before_reset_starts_an_episode_and_ignores_the_action():
  inner = _Scripted([(1.0, True, False)])
  assert GymnasiumAdapter(inner).step(1).first()
  assert inner.actions == []


def test_seed_goes_to_the_first_reset_only():
  inner = _Scripted()
  env = GymnasiumAdapter(inner, seed=7)
  for _ in range(3):
    env.reset()
  assert inner.reset_seeds == [7, None, None]


def test_seeds_decide_the_trajectory():
  def play_two_episodes(seed):
    env = make_gymnasium('CartPole-v1', seed=seed)
    episodes = [_play(env, lambda _: 0) for _ in range(2)]
    return [t.observation.tolist() for t in itertools.chain(*episodes)]

  assert play_two_episodes(1) == play_two_episodes(1)
  assert play_two_episodes(1) != play_two_episodes(2)


def test_second_episode_differs_from_the_first():
  env = make_gymnasium('CartPole-v1', seed=0)
  assert not np.array_equal(env.reset().observation, env.reset().observation)


def test_rewards_are_not_clipped():
  env = GymnasiumAdapter(_Scripted([(250.5, False, False), (-3, False, False)]))
  env.reset()
  rewards = [env.step(0).reward for _ in range(2)]
  assert rewards == [250.5, -3.0]
  assert all(reward.dtype == np.float32 for reward in rewards)


def test_float64_observations_become_float32():
  env = GymnasiumAdapter(_Scripted())
  assert env.observation_spec().dtype == np.float32
  assert env.reset().observation.dtype == np.float32


def test_integer_observations_other_than_bytes_become_float32():
  env = GymnasiumAdapter(_Scripted(observation_space=spaces.Box(0, 9, (2,), 'int64')))
  assert env.observation_spec().dtype == np.float32
  assert env.reset().observation.dtype == np.float32


def test_uint8_observations_stay_uint8():
  image = spaces.Box(0, 255, (4, 5, 1), 'uint8')
  env = GymnasiumAdapter(_Scripted(observation_space=image))
  spec = env.observation_spec()
  assert spec.shape == (4, 5, 1)
  assert spec.dtype == np.uint8
  assert (spec.minimum.min(), spec.maximum.max()) == (0, 255)
  assert env.reset().observation.dtype == np.uint8


def test_bounds_of_a_float64_box_beyond_float32_are_infinite_without_a_warning():
  largest = np.finfo(np.float64).max
  env = _Scripted(observation_space=spaces.Box(-largest, largest, (2,), 'float64'))
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    spec = GymnasiumAdapter(env).observation_spec()
  assert (spec.minimum == -np.inf).all()
  assert (spec.maximum == np.inf).all()


def test_observations_outlive_the_next_step():
  env = GymnasiumAdapter(
    _Scripted(
      [(0.0, False, False)] * 2,
      observation_space=spaces.Box(0, 9, (2,), 'float32'),
    )
  )
  first = env.reset().observation
  second = env.step(0).observation
  env.step(0)
  assert first.tolist() == [0, 0]
  assert second.tolist() == [1, 1]


def test_actions_are_int32_from_0_whatever_the_start():
  inner = _Scripted([(0.0, False, False)] * 3, action_space=spaces.Discrete(3, start=5))
  env = GymnasiumAdapter(inner)
  assert env.action_spec().num_values == 3
  assert env.action_spec().dtype == np.int32
  env.reset()
  for action in (np.int32(0), np.array(1), 2):
    env.step(action)
  assert inner.actions == [5, 6, 7]


def test_frames_per_step_is_1_unless_told():
  assert make_gymnasium('CartPole-v1').frames_per_step == 1
  assert GymnasiumAdapter(_Scripted(), frames_per_step=4).frames_per_step == 4


def test_keyword_arguments_reach_gymnasium():
  env = make_gymnasium('CartPole-v1', seed=0, max_episode_steps=3)
  assert len(_play(env, _balance)) == 1 + 3


def test_close_closes_the_wrapped_environment():
  inner = _Scripted()
  inner.close = lambda: inner.reset_seeds.append('closed')
  GymnasiumAdapter(inner).close()
  assert inner.reset_seeds == ['closed']


def _message(function, *args):
  with pytest.raises(ValueError) as error:
    function(*args)
  assert '\n' not in str(error.value)
  return str(error.value)


def test_unknown_id_names_the_nearest():
  message = _message(make_gymnasium, 'CartPol-v1')
  assert "'CartPol-v1'" in message
  assert '`CartPole`' in message


def test_unknown_version_names_the_known_ones():
  assert '`v1`' in _message(make_gymnasium, 'CartPole-v99')


def test_malformed_id_shows_the_form():
  assert '-v(version)' in _message(make_gymnasium, 'a b')


def test_missing_module_is_named():
  assert "'no_such_module'" in _message(make_gymnasium, 'no_such_module:Env-v0')


def test_continuous_actions_name_the_cure():
  message = _message(make_gymnasium, 'Pendulum-v1')
  assert 'Pendulum-v1 has continuous actions, R2D2 needs Discrete' in message
  assert 'gymnasium.ActionWrapper' in message


def test_multi_discrete_actions_name_the_cure():
  env = _Scripted(action_space=spaces.MultiDiscrete([2, 3]))
  message = _message(GymnasiumAdapter, env)
  assert '_Scripted has MultiDiscrete actions, R2D2 needs Discrete' in message


def test_observations_that_are_no_box_name_the_cure():
  message = _message(make_gymnasium, 'FrozenLake-v1')
  assert 'FrozenLake-v1 has a Discrete observation, R2D2 needs a Box' in message
  assert 'FlattenObservation' in message


def test_the_cure_for_observations_that_are_no_box_works():
  env = gymnasium.wrappers.FlattenObservation(gymnasium.make('FrozenLake-v1'))
  observation = GymnasiumAdapter(env, seed=0).reset().observation
  np.testing.assert_array_equal(observation, np.eye(16, dtype=np.float32)[0])
