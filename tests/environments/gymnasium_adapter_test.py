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
  inner.step = lambda action: (observation, 0.0, False, False, {})
  env = GymnasiumAdapter(inner)
  env.reset()
  return env.step(0).observation


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


# Layouts.

_GREY = spaces.Box(0, 255, (84, 84), 'uint8')
_RGB = spaces.Box(0, 255, (84, 84, 3), 'uint8')
_FLAT = spaces.Box(-1, 1, (5,))
_WRAPPERS = gymnasium.wrappers

# A space, the error's words for the fault and for the cure, and the cure in code.
_LAYOUTS = {
  'Discrete': (
    spaces.Discrete(4, start=2),
    'a Discrete observation',
    'FlattenObservation',
    _WRAPPERS.FlattenObservation,
  ),
  'MultiDiscrete': (
    spaces.MultiDiscrete([[2, 3], [4, 5]]),
    'a MultiDiscrete observation',
    'FlattenObservation',
    _WRAPPERS.FlattenObservation,
  ),
  'MultiBinary': (
    spaces.MultiBinary([2, 3]),
    'a MultiBinary observation',
    'FlattenObservation',
    _WRAPPERS.FlattenObservation,
  ),
  'Text': (
    spaces.Text(5),
    'a Text observation',
    'FlattenObservation',
    _WRAPPERS.FlattenObservation,
  ),
  'OneOf': (
    spaces.OneOf([spaces.Discrete(2), _FLAT]),
    'a OneOf observation',
    'FlattenObservation',
    _WRAPPERS.FlattenObservation,
  ),
  'Sequence': (
    spaces.Sequence(spaces.Discrete(2)),
    'a Sequence observation',
    'TransformObservation(env, function, box)',
    lambda env: _WRAPPERS.TransformObservation(
      env, lambda x: np.zeros(5, np.float32), _FLAT
    ),
  ),
  'Graph': (
    spaces.Graph(_FLAT, None),
    'a Graph observation',
    'TransformObservation(env, function, box)',
    lambda env: _WRAPPERS.TransformObservation(
      env, lambda x: np.zeros(5, np.float32), _FLAT
    ),
  ),
  'Dict': (
    spaces.Dict(speed=_FLAT, image=_RGB),
    "['speed'] (float32 [5]), ['image'] (uint8 [84, 84, 3])",
    "TransformObservation(env, lambda x: x['image'], env.observation_space['image'])",
    lambda env: _WRAPPERS.TransformObservation(
      env, lambda x: x['image'], env.observation_space['image']
    ),
  ),
  'Dict of what can only be flattened': (
    spaces.Dict(goal=spaces.Discrete(3), grid=spaces.MultiBinary([2, 2])),
    "['goal'] (Discrete), ['grid'] (MultiBinary)",
    'FlattenObservation, which makes one vector',
    _WRAPPERS.FlattenObservation,
  ),
  'Dict of what has no fixed size': (
    spaces.Dict(near=spaces.Sequence(_FLAT)),
    "['near'] has no fixed size",
    'TransformObservation(env, function, box)',
    lambda env: _WRAPPERS.TransformObservation(
      env, lambda x: np.zeros(5, np.float32), _FLAT
    ),
  ),
  'Dict in Tuple': (
    spaces.Tuple([spaces.Dict(eye=_GREY, ear=_FLAT), spaces.Sequence(_FLAT)]),
    "[0]['eye'] (uint8 [84, 84]), [0]['ear'] (float32 [5]), [1] (Sequence)",
    "lambda x: x[0]['ear'], env.observation_space[0]['ear'])",
    lambda env: _WRAPPERS.TransformObservation(
      env, lambda x: x[0]['ear'], env.observation_space[0]['ear']
    ),
  ),
  'no axis': (
    spaces.Box(0, 1, ()),
    'of shape []',
    'ReshapeObservation(env, (1,))',
    lambda env: _WRAPPERS.ReshapeObservation(env, (1,)),
  ),
  'no axis for channels': (
    _GREY,
    'no axis for channels',
    'ReshapeObservation(env, (84, 84, 1))',
    lambda env: _WRAPPERS.ReshapeObservation(env, (84, 84, 1)),
  ),
  'matrix': (
    spaces.Box(0, 1, (4, 8)),
    'two axes make no image',
    'FlattenObservation(env)',
    _WRAPPERS.FlattenObservation,
  ),
  'channels first': (
    spaces.Box(0, 255, (3, 84, 80), 'uint8'),
    'axis 0, of size 3, holds the channels',
    'TransformObservation(env, lambda x: numpy.moveaxis(x, 0, -1), '
    "gymnasium.spaces.Box(0, 255, (84, 80, 3), 'uint8'))",
    lambda env: _WRAPPERS.TransformObservation(
      env,
      lambda x: np.moveaxis(x, 0, -1),
      gymnasium.spaces.Box(0, 255, (84, 80, 3), 'uint8'),
    ),
  ),
  'one channel first': (
    spaces.Box(0, 1, (1, 84, 84)),
    'axis 0, of size 1, holds the channels',
    "gymnasium.spaces.Box(0.0, 1.0, (84, 84, 1), 'float32'))",
    lambda env: _WRAPPERS.TransformObservation(
      env,
      lambda x: np.moveaxis(x, 0, -1),
      gymnasium.spaces.Box(0.0, 1.0, (84, 84, 1), 'float32'),
    ),
  ),
  'stack of grey frames': (
    spaces.Box(0, 255, (4, 84, 84), 'uint8'),
    'axis 0, of size 4, is a stack of frames or the channels',
    'take FrameStackObservation off',
    None,
  ),
  'stack of images': (
    spaces.Box(0, 255, (4, 84, 84, 1), 'uint8'),
    'axis 0, of size 4, is a stack of frames',
    'take FrameStackObservation off',
    None,
  ),
  'video': (
    spaces.Box(0, 1, (2, 3, 4, 5, 6)),
    '5 axes make no image',
    'FlattenObservation(env)',
    _WRAPPERS.FlattenObservation,
  ),
  'small image': (
    spaces.Box(0, 255, (7, 9, 3), 'uint8'),
    'images of 7x9 pixels are too small',
    'ResizeObservation(env, (36, 36)), or flatten it with '
    'gymnasium.wrappers.FlattenObservation(env)',
    lambda env: _WRAPPERS.ResizeObservation(env, (36, 36)),
  ),
  'small grey image': (
    spaces.Box(0, 255, (35, 84, 1), 'uint8'),
    'images of 35x84 pixels are too small',
    'ResizeObservation(env, (36, 36))',
    lambda env: _WRAPPERS.ResizeObservation(env, (36, 36)),
  ),
  'small symbolic image': (
    spaces.Box(0, 10, (7, 7, 3), 'uint8'),
    'images of 7x7 pixels are too small',
    'resize them to at least 36x36, or flatten it with '
    'gymnasium.wrappers.FlattenObservation(env)',
    _WRAPPERS.FlattenObservation,
  ),
  'small image, channels first': (
    spaces.Box(0, 255, (3, 32, 32), 'uint8'),
    'axis 0, of size 3, holds the channels, and images of 32x32 pixels',
    'FlattenObservation(env)',
    _WRAPPERS.FlattenObservation,
  ),
  'no size': (
    spaces.Box(0, 1, (84, 0, 3)),
    'axis 1 has size 0',
    'give every axis of the space a size',
    None,
  ),
  'nothing': (spaces.Dict({}), 'a Dict observation', 'empty', None),
  'integers of any size': (
    spaces.Box(-np.inf, np.inf, (84, 84, 1), 'int64'),
    'images of int64 need bounds',
    'low and high of a Box',
    None,
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


@pytest.mark.parametrize('kind', _LAYOUTS)
def test_layout_that_cannot_work_names_the_fault_and_a_cure_that_works(kind):
  space, fault, cure, cured = _LAYOUTS[kind]
  message = _message(GymnasiumAdapter, _Sampled(space))
  assert '_Sampled has ' in message
  assert fault in message
  assert cure in message
  if cured is not None:
    env = GymnasiumAdapter(cured(_Sampled(space)), seed=0)
    for timestep in (env.reset(), env.step(0)):
      env.observation_spec().validate(timestep.observation)
    layouts.check(env.observation_spec(), env.action_spec(), env.reward_spec())


def test_taking_the_stack_off_and_adding_channels_works():
  stacked = _WRAPPERS.FrameStackObservation(_Sampled(_GREY), 4)
  assert 'take FrameStackObservation off' in _message(GymnasiumAdapter, stacked)
  env = _WRAPPERS.ReshapeObservation(_Sampled(_GREY), (84, 84, 1))
  assert GymnasiumAdapter(env).observation_spec().shape == (84, 84, 1)


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
  ('space', 'number'),
  [
    (spaces.MultiDiscrete([2, 3]), 6),
    (spaces.MultiBinary(4), 16),
    (spaces.MultiBinary(400), 'n'),
    (spaces.Box(0, 3, (), np.int32), 4),
    (spaces.Box(-1, 1, (2,), np.int8), 9),
    (spaces.Tuple([spaces.Discrete(3), spaces.MultiBinary(1)]), 6),
    (spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(0, 1)), 'n'),
    (spaces.Text(3), 'n'),
  ],
  ids=repr,
)
def test_other_actions_can_be_numbered(space, number):
  message = _message(GymnasiumAdapter, _Scripted(action_space=space))
  kind = type(space).__name__
  assert f'_Scripted has {kind} actions, R2D2 needs Discrete ones' in message
  assert message.endswith(f'function, gymnasium.spaces.Discrete({number}))')


def test_observations_that_are_no_box_name_the_cure():
  message = _message(make_gymnasium, 'FrozenLake-v1')
  assert 'FrozenLake-v1 has a Discrete observation, R2D2 needs a Box' in message
  assert 'FlattenObservation' in message


def test_the_cure_for_observations_that_are_no_box_works():
  env = gymnasium.wrappers.FlattenObservation(gymnasium.make('FrozenLake-v1'))
  observation = GymnasiumAdapter(env, seed=0).reset().observation
  np.testing.assert_array_equal(observation, np.eye(16, dtype=np.float32)[0])
