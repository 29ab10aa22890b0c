"""Tests of the checks around any environment."""

import copy
import itertools
import pickle
import sys
import unittest

import dm_env
import gymnasium
import numpy as np
import pytest
from dm_env import specs, test_utils
from gymnasium import spaces

from r2d2_acme.environments import (
  EnvironmentFailed,
  checked,
  make_atari,
  make_cue_recall,
  make_gymnasium,
)
from r2d2_acme.environments.bsuite_adapter import BsuiteAdapter
from r2d2_acme.environments.gymnasium_adapter import GymnasiumAdapter

_MID, _LAST = dm_env.StepType.MID, dm_env.StepType.LAST
_ZEROS = np.zeros(3, np.float32)


class _Scripted(dm_env.Environment):
  """Plays a script of time steps, or of errors to raise, again and again."""

  max_return = 7.0
  frames_per_step = 4

  def __init__(self, *script, first=_ZEROS):
    self._script = script
    self._first = first
    self._time = 0
    self.num_closed = 0

  def reset(self):
    self._time = 0
    if isinstance(self._first, Exception):
      raise self._first
    return dm_env.restart(self._first)

  def step(self, action):
    self.last_action = action
    if self._time == len(self._script):
      return self.reset()
    self._time += 1
    result = self._script[self._time - 1]
    if isinstance(result, BaseException):
      raise result
    return result

  def observation_spec(self):
    return specs.Array((3,), np.float32, 'observation')

  def action_spec(self):
    return specs.DiscreteArray(2, np.int32)

  def close(self):
    self.num_closed += 1


def _mid(reward=1.0, discount=1.0, observation=_ZEROS):
  return dm_env.TimeStep(_MID, reward, discount, observation)


def _step(*script):
  """Plays a script; returns its last time step."""
  env = checked(_Scripted(*script))
  env.reset()
  for _ in script[1:]:
    env.step(0)
  return env.step(0)


def _failure(function, *args):
  with pytest.raises(EnvironmentFailed) as error:
    function(*args)
  assert '\n' not in str(error.value)
  return str(error.value)


class CheckedContractTest(test_utils.EnvironmentTestMixin, unittest.TestCase):
  def make_object_under_test(self):
    return checked(make_cue_recall(3))

  def make_action_sequence(self):
    return itertools.repeat(np.int32(1), 20)


_NUMBERS = [
  (2, 2.0),
  (True, 1.0),
  (-0.5, -0.5),
  (np.int64(3), 3.0),
  (np.uint8(200), 200.0),
  (np.bool_(True), 1.0),
  (np.float64(0.1), np.float32(0.1)),
  (np.float16(0.5), 0.5),
  (np.array(4), 4.0),
  (np.array([5.0]), 5.0),
  (np.array([6], np.int32), 6.0),
  ([7.0], 7.0),
]


@pytest.mark.parametrize(('value', 'expected'), _NUMBERS, ids=repr)
def test_any_one_number_becomes_a_float32(value, expected):
  timestep = _step(_mid(reward=value, discount=value))
  for number in (timestep.reward, timestep.discount):
    assert type(number) is np.float32
    assert number == expected


class _Unreadable:
  """Cannot become an array, like a tensor of PyTorch that needs a gradient."""

  def __array__(self, *args, **kwargs):
    raise RuntimeError('detach it first')

  def __repr__(self):
    return 'unreadable'


@pytest.mark.parametrize(
  ('value', 'words'),
  [
    (np.zeros(2), 'float64 of shape [2]'),
    (np.zeros((1, 1), np.float32), 'float32 of shape [1, 1]'),
    (np.zeros(0), 'float64 of shape [0]'),
    ([1.0, 2.0], 'a list of 2'),
    ([[1], [2, 3]], 'a list of 2'),
    ({'player': 1.0}, 'dict'),
    ('1.0', "'1.0'"),
    (None, 'None'),
    (1j, 'complex'),
    (10**400, 'int'),
    (_Unreadable(), '_Unreadable'),
  ],
  ids=repr,
)
@pytest.mark.parametrize('name', ['reward', 'discount'])
def test_any_other_reward_or_discount_is_named(value, words, name):
  message = _failure(_step, _mid(), _mid(**{name: value}))
  assert message == (
    '_Scripted failed in step 2 of episode 1: '
    f'the {name} must be one number, not {words}'
  )


@pytest.mark.parametrize('name', ['reward', 'discount'])
@pytest.mark.parametrize('value', [np.nan, np.inf, np.float32(-np.inf)])
def test_what_is_not_finite_is_named(name, value):
  message = _failure(_step, _mid(), _mid()._replace(**{name: value}))
  assert 'failed in step 2 of episode 1: the reward is ' in message
  assert str(value) in message


def test_the_environment_gets_actions_of_its_own_dtype():
  for dtype in (np.int64, np.uint8, np.int32):
    inner = _Scripted(_mid())
    spec = specs.DiscreteArray(2, dtype)
    inner.action_spec = lambda spec=spec: spec
    env = checked(inner)
    env.reset()
    env.step(np.int32(1))
    spec.validate(inner.last_action)
    assert inner.last_action == 1


def test_float32_time_steps_pass_as_they_are():
  timestep = _mid(np.float32(0.5), np.float32(1.0))
  assert _step(timestep) is timestep


def test_reward_and_discount_of_the_first_time_step_stay_none():
  first = checked(_Scripted()).reset()
  assert first.reward is None
  assert first.discount is None


@pytest.mark.parametrize(
  ('observation', 'words'),
  [
    (np.zeros(4, np.float32), 'float32 of shape [4]'),
    (np.zeros(3), 'float64 of shape [3]'),
    (np.zeros((1, 3), np.float32), 'float32 of shape [1, 3]'),
    ([0.0, 0.0, 0.0], 'a list of 3'),
    ({'image': _ZEROS}, 'dict'),
    (None, 'None'),
  ],
  ids=repr,
)
def test_observation_that_is_not_the_specs_is_named(observation, words):
  expected = (
    f'the observation is {words}, but observation_spec() says float32 of shape [3]'
  )
  assert _failure(_step, _mid(observation=observation)) == (
    f'_Scripted failed in step 1 of episode 1: {expected}'
  )
  assert _failure(checked(_Scripted(first=observation)).reset) == (
    f'_Scripted failed in the reset before episode 1: {expected}'
  )


def test_an_error_names_environment_step_and_episode():
  env = checked(
    _Scripted(_mid(), _mid()._replace(step_type=_LAST), ZeroDivisionError('a\n b')),
    'my task',
  )
  for _ in range(2):
    env.reset()
    env.step(0)
    env.step(0)
  with pytest.raises(EnvironmentFailed) as error:
    env.step(0)
  assert isinstance(error.value.__cause__, ZeroDivisionError)
  # After LAST, `step` resets to the next episode.
  message = str(error.value)
  assert message.startswith(
    'my task failed in the reset before episode 3: ZeroDivisionError: a b ('
  )
  assert f'{__file__}, line ' in message
  env.reset()
  assert checked(env) is env


def test_an_error_in_mid_episode_names_the_step():
  message = _failure(_step, _mid(), _mid(), RuntimeError())
  assert message.startswith('_Scripted failed in step 3 of episode 1: RuntimeError (')


def test_an_error_in_reset_names_the_episode_to_come():
  message = _failure(checked(_Scripted(first=OSError('no display'))).reset)
  assert message.startswith(
    '_Scripted failed in the reset before episode 1: OSError: no display ('
  )


def test_a_fault_in_a_reset_in_mid_episode_names_the_episode_to_come():
  for fault in (OSError('no display'), np.zeros(4)):
    inner = _Scripted(_mid())
    env = checked(inner)
    env.reset()
    env.step(0)
    inner._first = fault
    assert 'failed in the reset before episode 2: ' in _failure(env.reset)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
  ('shape', 'dtype'),
  [((1,), np.float32), ((7,), np.float64), ((3,), np.float16), ((4, 4, 3), np.float32)],
)
def test_a_float_that_is_not_finite_fails(value, shape, dtype):
  largest = np.full(shape, np.finfo(dtype).max, dtype)
  bad = largest.copy()
  bad[-1] = value
  inner = _Scripted(_mid(observation=largest), _mid(observation=bad), first=-largest)
  inner.observation_spec = lambda: specs.Array(shape, dtype)
  env = checked(inner)
  env.reset()
  env.step(0)
  message = _failure(env.step, 0)
  assert message == (
    f'_Scripted failed in step 2 of episode 1: the observation contains {value}'
  )


def test_a_reset_that_starts_no_episode_fails():
  for step_type in (_MID, _LAST):
    inner = _Scripted()
    inner.reset = lambda step_type=step_type: _mid()._replace(step_type=step_type)
    message = _failure(checked(inner).reset)
    assert 'failed in the reset before episode 1: ' in message
    assert message.endswith(f'its time step is {step_type!r}, not FIRST')


def test_an_environment_that_ends_the_program_fails():
  message = _failure(_step, _mid(), SystemExit(0))
  assert 'failed in step 2 of episode 1: SystemExit: 0 (' in message
  inner = _Scripted()
  for name in ('reset', 'close'):
    setattr(inner, name, sys.exit)
    message = _failure(getattr(checked(inner), name))
    assert 'failed in' in message and 'SystemExit' in message


def test_what_is_no_dm_env_environment_is_refused():
  for environment in (None, gymnasium.make('CartPole-v1')):
    with pytest.raises(ValueError, match='must be dm_env.Environments, not '):
      checked(environment)


def test_ctrl_c_in_an_environment_stays_ctrl_c():
  with pytest.raises(KeyboardInterrupt):
    _step(KeyboardInterrupt())


def test_what_is_no_time_step_is_named():
  message = _failure(_step, (_ZEROS, 1.0, False, False, {}))
  assert 'returned a tuple of 5 instead of a dm_env.TimeStep' in message
  assert 'GymnasiumAdapter' in message


def test_name_is_the_gymnasium_id():
  env = checked(make_gymnasium('CartPole-v1', seed=0))
  env.reset()
  message = _failure(env.step, 'left')
  assert message.startswith('CartPole-v1 failed in step 1 of episode 1: ValueError')


def test_the_environments_own_attributes_are_there():
  env = checked(_Scripted())
  assert (env.frames_per_step, env.max_return) == (4, 7.0)
  assert not hasattr(env, 'no_such_attribute')
  atari = checked(make_atari('pong', seed=0))
  assert atari.frames_per_step == 4
  assert atari.gymnasium_env.unwrapped.spec.id == 'ALE/Pong-v5'
  assert checked(make_cue_recall()).frames_per_step == 1


def test_close_closes_once():
  inner = _Scripted()
  env = checked(inner)
  env.close()
  env.close()
  assert inner.num_closed == 1


def test_an_error_in_close_names_the_environment():
  env = checked(_Scripted())
  env._environment.close = lambda: 1 / 0
  assert 'failed in close: ZeroDivisionError: division' in _failure(env.close)
  env.close()


def test_copies_work_alone():
  env = checked(_Scripted(_mid()), 'twin')
  for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
    assert twin.reset().first()
    assert twin.step(0).reward == 1.0
    assert twin.max_return == 7.0


class _Rewarding(gymnasium.Env):
  observation_space = spaces.Box(-1, 1, (3,))
  action_space = spaces.Discrete(2)

  def __init__(self, reward):
    self.reward = reward

  def reset(self, *, seed=None, options=None):
    return _ZEROS, {}

  def step(self, action):
    return _ZEROS, self.reward, False, False, {}


@pytest.mark.parametrize(('value', 'expected'), _NUMBERS, ids=repr)
def test_adapters_take_any_one_number(value, expected):
  for env in (
    GymnasiumAdapter(_Rewarding(value)),
    BsuiteAdapter(_Scripted(_mid(value))),
  ):
    env.reset()
    reward = env.step(0).reward
    assert type(reward) is np.float32
    assert reward == expected


@pytest.mark.parametrize('value', [None, np.zeros(2), [1, 2], 'one'], ids=repr)
def test_adapters_refuse_any_other_reward_by_name(value):
  for env in (
    GymnasiumAdapter(_Rewarding(value)),
    BsuiteAdapter(_Scripted(_mid(value))),
  ):
    env.reset()
    with pytest.raises(ValueError, match='the reward must be one number, not '):
      env.step(0)
