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
from r2d2_acme.observations import layouts


class _Scripted(gymnasium.Env):
  """Plays a script of (reward, terminated, truncated); reuses an observation buffer."""

  def __init__(self, script=(), observation_space=None, action_space=None):
    self.observation_space = observation_space or spaces.Box(-1e3, 1e3, (2,), 'float64')
    self.action_space = action_space or spaces.Discrete(3)
    self.script = script
    self.reset_seeds = []
    self.actions = []
    space = self.observation_space
    self.buffer = np.zeros(space.shape or (), space.dtype or np.float32)

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
    return itertools.repeat(np.int32(0), 30)  # falls over after about ten


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


@pytest.mark.parametrize(
  ('dtype', 'low', 'high', 'expected'),
  [
    # Integers stay integers: the network scales them by their bounds.
    ('int64', 0, 9, np.int32),
    ('int8', -128, 127, np.int32),
    ('uint16', 0, 65535, np.int32),
    ('uint64', 0, 2**31 - 1, np.int32),
    ('uint32', 0, 2**32 - 1, np.float32),
    ('int64', -np.inf, np.inf, np.float32),
    ('bool', 0, 1, np.uint8),
    ('float16', 0, 1, np.float32),
  ],
)
def test_observations_of_other_dtypes_become_one_of_three(dtype, low, high, expected):
  space = spaces.Box(low, high, (2,), dtype)
  env = GymnasiumAdapter(_Scripted([(0.0, True, False)], space))
  spec = env.observation_spec()
  assert spec.dtype == expected
  np.testing.assert_array_equal(spec.minimum, space.low.astype(expected))
  np.testing.assert_array_equal(spec.maximum, space.high.astype(expected))
  env.reset()
  observation = env.step(0).observation
  assert observation.dtype == expected
  assert observation.tolist() == [1, 1]


def _observe(space, observation):
  """Returns the adapter's observation for an observation in this space."""
  inner = _Scripted(observation_space=space)
  inner.reset = lambda seed: (observation, {})
  return GymnasiumAdapter(inner).reset().observation


@pytest.mark.parametrize(
  ('dtype', 'observation'),
  [
    ('uint8', np.array([0.0, 255.0])),
    ('uint8', np.array([0, 255], np.int64)),
    ('uint8', [0, 255]),
    ('uint8', np.array([True, False])),
    ('int64', np.array([-200, 200], np.int16)),
    ('int64', np.array([7, 200], np.uint64)),
    ('float32', [1, 2]),
    ('float32', np.array([np.nan, np.inf])),
  ],
)
def test_numbers_that_the_space_can_hold_are_taken(dtype, observation):
  low, high = (0, 255) if dtype == 'uint8' else (-200, 200)
  taken = _observe(spaces.Box(low, high, (2,), dtype), observation)
  np.testing.assert_array_equal(taken, np.asarray(observation, taken.dtype))


@pytest.mark.parametrize(
  ('dtype', 'observation', 'words'),
  [
    ('uint8', np.full(2, 0.5), 'contains 0.5, but its space has uint8'),
    ('uint8', np.array([1, np.nan]), 'contains nan'),
    ('uint8', np.array([np.inf, 1]), 'contains inf'),
    ('uint8', np.array([300, 5]), 'contains 300'),
    ('uint8', np.array([3, -1], np.int8), 'contains -1'),
    ('uint8', np.array([300.0, 5]), 'contains 300.0'),
    ('uint8', [300, 5], 'contains 300'),
    ('int64', np.array([2**40, 5]), f'contains {2**40}, but its space has int32'),
    ('int64', np.array([2**63, 5], np.uint64), f'contains {2**63}'),
    ('float32', np.array([1j, 2]), 'is complex128 of shape [2], not numbers'),
    ('float32', ['1', '2'], 'is a list of 2, not numbers'),
    ('float32', None, 'is None, not numbers'),
    ('float32', {'a': 1}, 'is dict, not numbers'),
    ('float32', [[1.0, 2.0], [3.0]], 'the observation is not an array'),
  ],
)
def test_what_the_space_cannot_hold_is_named(dtype, observation, words):
  low, high = (0, 255) if dtype == 'uint8' else (-200, 200)
  message = _message(_observe, spaces.Box(low, high, (2,), dtype), observation)
  assert words in message


def test_what_gymnasium_does_not_return_is_named():
  inner = _Scripted()
  inner.step = lambda action: (inner.buffer, 0.0, False, {})  # Gym's old result
  env = GymnasiumAdapter(inner)
  env.reset()
  message = _message(env.step, 0)
  assert 'returned a tuple of 4 instead of (observation, reward, term' in message
  inner.reset = lambda seed: inner.buffer
  message = _message(env.reset)
  assert 'returned float64 of shape [2] instead of (observation, info)' in message


class _Masked(_Scripted):
  """Says in its infos which actions are valid: all but that which the time names."""

  def reset(self, *, seed=None, options=None):
    observation, _ = super().reset(seed=seed)
    return observation, self._info()

  def step(self, action):
    return (*super().step(action)[:-1], self._info())

  def _info(self):
    return {'action_mask': np.arange(3) != self.time}


def test_masks_of_the_infos_become_a_part_of_the_observation():
  inner = _Masked([(0.0, False, False)] * 2)
  env = GymnasiumAdapter(inner, seed=7)
  spec = env.observation_spec()
  assert list(spec) == ['observation', 'action_mask']
  masks = []
  for timestep in (env.reset(), env.step(1)):
    for name, leaf in spec.items():
      leaf.validate(timestep.observation[name])
    masks.append(timestep.observation['action_mask'].tolist())
  assert masks == [[0, 1, 1], [1, 0, 1]]
  assert inner.reset_seeds == [7]  # the spec's reset was the first episode's
  env.reset()
  assert inner.reset_seeds == [7, None]


def test_spec_that_needs_a_reset_changes_no_episode():
  """Also where `step` and not `reset` starts the first episode."""

  def play(env) -> list[dm_env.StepType]:
    return [env.step(0).step_type for _ in range(7)]

  steps = [(0.0, False, False), (0.0, True, False)] * 3
  env = GymnasiumAdapter(_Masked(list(steps)))
  env.observation_spec()
  assert play(env) == play(GymnasiumAdapter(_Masked(list(steps))))


def test_masks_of_the_parts_of_an_action_are_named():
  inner = _Masked(action_space=spaces.MultiDiscrete([2, 3]))
  inner._info = lambda: {'action_mask': (np.ones(2), np.ones(3))}
  message = _message(GymnasiumAdapter(inner).reset)
  assert 'not a number for each of the 6 actions' in message
  assert 'for each combination' in message


def test_mask_of_another_size_is_named():
  env = GymnasiumAdapter(_Masked(action_space=spaces.Discrete(4)))
  message = _message(env.reset)
  assert "info['action_mask'] is bool of shape [3], not a number for each of" in message


def test_uint8_observations_stay_uint8():
  image = spaces.Box(0, 255, (36, 40, 1), 'uint8')
  env = GymnasiumAdapter(_Scripted(observation_space=image))
  spec = env.observation_spec()
  assert spec.shape == (36, 40, 1)
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
  env = make_gymnasium('CartPole-v1', seed=0, kwargs={'max_episode_steps': 3})
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


# Spaces.

_GREY = spaces.Box(0, 255, (84, 84), 'uint8')
_FLAT = spaces.Box(-1, 1, (5,))

_SPACES = {
  'number': spaces.Box(0, 1, ()),
  'matrix': spaces.Box(0, 1, (4, 8)),
  'grey image': _GREY,
  'channels first': spaces.Box(0, 255, (3, 84, 80), 'uint8'),
  'small image': spaces.Box(0, 255, (7, 9, 3), 'uint8'),
  'five axes': spaces.Box(0, 1, (2, 3, 4, 5, 6)),
  'Discrete': spaces.Discrete(4, start=2),
  'large Discrete': spaces.Discrete(500),
  'MultiDiscrete': spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[0, 1], [2, 3]]),
  'MultiBinary': spaces.MultiBinary([2, 3]),
  'Dict': spaces.Dict(speed=_FLAT, image=_GREY, name=spaces.Text(5)),
  'Tuple': spaces.Tuple([spaces.Discrete(32), spaces.Discrete(11), spaces.Discrete(2)]),
  'Dict in Tuple': spaces.Tuple([spaces.Dict(eye=_GREY, ear=_FLAT), _FLAT]),
}

# A space, and words of the error.
_REFUSED_SPACES = {
  'OneOf': (spaces.OneOf([spaces.Discrete(2), _FLAT]), 'observations of a OneOf space'),
  'Sequence': (spaces.Sequence(spaces.Discrete(2)), 'TransformObservation(env,'),
  'Graph in Dict': (
    spaces.Dict(near=spaces.Graph(_FLAT, None)),
    "observations['near'] of a Graph space",
  ),
  'stack of images': (
    spaces.Box(0, 255, (4, 84, 84, 1), 'uint8'),
    'axis 0, of size 4, is a stack of frames',
  ),
  'no size': (spaces.Box(0, 1, (84, 0, 3)), 'axis 1 has size 0'),
  'integers of any size': (
    spaces.Box(-np.inf, np.inf, (84, 84, 1), 'int64'),
    'images of int64 need bounds',
  ),
}


class _Sampled(_Scripted):
  """An environment whose observations are samples of its space."""

  def __init__(self, space):
    self.observation_space = space
    self.action_space = spaces.Discrete(2)

  def reset(self, *, seed=None, options=None):
    return self.observation_space.sample(), {}

  def step(self, action):
    return self.observation_space.sample(), 0.0, False, False, {}


@pytest.mark.parametrize('kind', _SPACES)
def test_values_of_a_space_are_arrays_of_its_spec(kind):
  env = GymnasiumAdapter(_Sampled(_SPACES[kind]), seed=0)
  spec = env.observation_spec()
  layouts.check(spec, env.action_spec(), env.reward_spec())
  for timestep in (env.reset(), env.step(0)):
    for _, leaf, path in layouts.numeric_leaves(spec):
      array = layouts.get(timestep.observation, path)
      assert isinstance(array, np.ndarray)
      assert array.dtype == leaf.dtype
      leaf.validate(array)


def test_categories_are_counted_from_0_in_few_bytes():
  multi = spaces.MultiDiscrete([2, 300], start=[5, -1])
  space = spaces.Tuple([spaces.Discrete(3, start=-1), spaces.Discrete(257), multi])
  inner = _Scripted(observation_space=space)
  inner.reset = lambda seed: ((np.int64(1), 256, np.array([6, 298])), {})
  env = GymnasiumAdapter(inner)
  spec = env.observation_spec()
  assert [leaf.dtype for leaf in spec] == [np.uint8, np.int32, np.int32]
  assert spec[0].num_values == 3
  np.testing.assert_array_equal(spec[2].maximum, [1, 299])
  observation = env.reset().observation
  assert [x.tolist() for x in observation] == [2, 256, [1, 299]]


@pytest.mark.parametrize(
  ('space', 'observation', 'words'),
  [
    (spaces.Discrete(3), 3, 'is 3, which is not in Discrete(3)'),
    (spaces.Discrete(3), -1, 'is -1'),
    (spaces.Discrete(3), 0.5, 'is 0.5'),
    (spaces.Dict(a=_FLAT), {'b': 1}, 'is dict, not a dict with the keys a'),
    (spaces.Tuple([_FLAT]), (1, 2), 'is a tuple of 2, not a tuple of 1'),
  ],
  ids=repr,
)
def test_what_is_not_of_the_space_is_named(space, observation, words):
  assert words in _message(_observe, space, observation)


@pytest.mark.parametrize('kind', _REFUSED_SPACES)
def test_space_that_cannot_work_names_fault_and_cure(kind):
  space, words = _REFUSED_SPACES[kind]
  message = _message(GymnasiumAdapter, _Sampled(space))
  assert '_Sampled has observations' in message
  assert words in message


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
  assert 'choose n of the values with gymnasium.wrappers.TransformAction' in message


@pytest.mark.parametrize(
  ('space', 'actions'),
  [
    (
      spaces.MultiDiscrete([2, 3], start=[0, 5]),
      [[0, 5], [0, 6], [0, 7], [1, 5], [1, 6], [1, 7]],
    ),
    (spaces.MultiBinary(2), [[0, 0], [0, 1], [1, 0], [1, 1]]),
    (spaces.MultiDiscrete([[1, 2]]), [[[0, 0]], [[0, 1]]]),
  ],
  ids=repr,
)
def test_combinations_of_actions_are_numbered(space, actions):
  inner = _Scripted([(0.0, False, False)] * len(actions), action_space=space)
  env = GymnasiumAdapter(inner)
  assert env.action_spec().num_values == len(actions)
  env.reset()
  for i in range(len(actions)):
    env.step(np.int32(i))
  assert [action.tolist() for action in inner.actions] == actions
  assert all(space.contains(action) for action in inner.actions)


@pytest.mark.parametrize(
  ('space', 'words'),
  [
    (spaces.MultiBinary(400), '400 actions at a time'),
    (spaces.Tuple([spaces.Discrete(3)]), 'Tuple actions'),
    (spaces.Text(3), 'Text actions'),
    (spaces.Box(-1, 1, (2,), np.int8), 'Box actions'),
  ],
  ids=repr,
)
def test_other_actions_name_the_cure(space, words):
  message = _message(GymnasiumAdapter, _Scripted(action_space=space))
  assert words in message
  assert 'gymnasium.wrappers.TransformAction' in message
