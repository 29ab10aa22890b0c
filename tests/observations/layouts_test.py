"""Which specs fit R2D2, and that the agents refuse the others when they start."""

import collections
import contextlib
import pickle
import subprocess
import sys

import acme
import dm_env
import gymnasium
import numpy as np
import pytest
from acme import wrappers
from dm_env import specs

from r2d2_acme import config as config_lib
from r2d2_acme.agent import R2D2
from r2d2_acme.experiment import Experiment
from r2d2_acme.observations import layouts
from r2d2_acme.program import make_program

_VECTOR = specs.Array((3,), np.float32)
_RGB = specs.BoundedArray((84, 84, 3), np.uint8, 0, 255)
_ACTIONS = specs.DiscreteArray(3)
_REWARDS = specs.Array((), np.float32)
_Senses = collections.namedtuple('_Senses', 'eye ear')


class _Silent(dm_env.Environment):
  """Has specs and nothing else."""

  def __init__(self, observations=_VECTOR, actions=_ACTIONS, rewards=_REWARDS):
    self._specs = observations, actions, rewards
    self.is_closed = False

  def observation_spec(self):
    return self._specs[0]

  def action_spec(self):
    return self._specs[1]

  def reward_spec(self):
    return self._specs[2]

  def close(self):
    self.is_closed = True

  def reset(self):
    raise AssertionError('never reset')

  def step(self, action):
    raise AssertionError('never stepped')


def _image(*shape, dtype=np.uint8):
  return specs.Array(shape, dtype)


# A spec, and words of the error: what is wrong, and what to do.
_OBSERVATIONS = {
  'complex in a dict in a list': (
    [{'a': {'b': _image(3, dtype=complex)}}],
    ["[0]['a']['b'], complex128 [3], cannot be used: the network takes no complex128"],
    ['make them float32'],
  ),
  'no size in a named tuple': (
    _Senses(_image(84, 0, 3), _VECTOR),
    ['observations.eye, uint8 [84, 0, 3], cannot be used: axis 1 has size 0'],
    [],
  ),
  'no spec in a dict': ({'a': None}, ["observation_spec()['a'] must be a dm_env"], []),
  'text alone in a dict': ({'a': specs.StringArray(())}, ['holds no numbers'], []),
  'mask alone': ({'action_mask': _image(3)}, ['holds no numbers'], []),
  'empty dict': ({}, ['the dict of observation_spec() holds no numbers'], []),
  'keys of two types': (
    ({'eyes': {1: _VECTOR, 2: _VECTOR, 'a': _VECTOR}},),
    ["the keys 1 and 'a' of a dict cannot be sorted"],
    ['make all its keys strings'],
  ),
  'key None': (
    {None: _VECTOR, 'b': _VECTOR},
    ["the keys None and 'b' of a dict cannot be sorted"],
    ['make all its keys strings'],
  ),
  'no spec': (None, ['must be a dm_env.specs.Array, not a NoneType'], []),
  'Gymnasium space': (
    gymnasium.spaces.Box(0, 1, (3,)),
    ['must be a dm_env.specs.Array, not a Box'],
    [],
  ),
  'text': (specs.StringArray((3,)), ['they are text'], ['encode it as a vector']),
  'complex': (_image(3, dtype=np.complex64), ['no complex64'], ['make them float32']),
  'objects': (_image(3, dtype=object), ['no object'], ['make them float32']),
  'dates': (_image(3, dtype='datetime64[s]'), ['datetime64'], ['make them float32']),
  'no size': (_image(84, 0, 3), ['axis 1 has size 0'], ['give every axis a size']),
  'stack of images': (
    _image(4, 84, 80, 3),
    ['axis 0, of size 4, is a stack of frames'],
    ['return single ones', 'the agent stacks frames itself'],
  ),
  'channels in the middle': (
    _image(84, 3, 84),
    ['axis 1, of size 3, holds the channels'],
    ['numpy.moveaxis(x, 1, -1)'],
  ),
  'integers without bounds': (
    _image(84, 84, 1, dtype=np.int32),
    ['images of int32 need bounds'],
    ['BoundedArray'],
  ),
  'one of very many': (
    specs.DiscreteArray(10**6),
    ['one-hot vectors have 1,000,000 numbers'],
    ['return a vector'],
  ),
}

_FIT = {
  'vector': _VECTOR,
  'image': _RGB,
  'bools': _image(3, dtype=bool),
  'image of bools': _image(84, 84, 1, dtype=bool),
  'doubles': _image(84, 84, 1, dtype=np.float64),
  'halves': _image(3, dtype=np.float16),
  'integers': _image(3, dtype=np.int64),
  'image of integers': specs.BoundedArray((84, 84, 1), np.int64, 0, 9),
  'large matrix': _image(36, 36),
  'number': _image(dtype=np.float32),
  'one of a few numbers': specs.DiscreteArray(5, np.uint8),
  'some of a few numbers': layouts.Categories((2,), np.int64, 0, [3, 4]),
  'five axes': _image(2, 2, 2, 2, 2),
  'channels first': _image(3, 84, 80),
  'small': _image(3, 3, 3),
  'dict in tuple': (_VECTOR, {'speed': _VECTOR, 'image': _RGB}),
  'named tuple': _Senses(_RGB, _VECTOR),
  'dict with numbers as keys': {2: _VECTOR, 1: _RGB},
  'dict with text': {'name': specs.StringArray(()), 'speed': _VECTOR},
  'dict with mask': {'action_mask': specs.Array((3,), bool), 'speed': _VECTOR},
}


_ACTION_SPECS = {
  'integer from 0': (
    specs.BoundedArray((), np.int32, 0, 3),
    ['return DiscreteArray(4)'],
  ),
  'integer from 2': (
    specs.BoundedArray((), np.int32, 2, 4),
    ['return DiscreteArray(3), and add 2 to the action in step()'],
  ),
  'integer in an array': (
    specs.BoundedArray((1,), np.int32, 0, 3),
    ['not int32 [1]', 'return DiscreteArray(4)'],
  ),
  'integer of any size': (specs.Array((), np.int64), ['DiscreteArray(number of']),
  'several integers': (
    specs.BoundedArray((2,), np.int32, 0, 3),
    ['not int32 [2]', 'make each combination one action'],
  ),
  'float': (specs.BoundedArray((), np.float32, -1, 1), ['choose some of the values']),
  'floats': (specs.BoundedArray((2,), np.float64, -1, 1), ['not float64 [2]']),
  'dict': (
    {'legs': _ACTIONS, 'arms': _VECTOR},
    ["a dict of ['legs'] (int32 []), ['arms'] (float32 [3])", 'each combination'],
  ),
  'tuple': ((_ACTIONS, _ACTIONS), ['a tuple of [0]', 'each combination']),
  'nothing': (None, ['not a NoneType']),
}


def _message(function, *args, **kwargs):
  with pytest.raises(ValueError) as error:
    function(*args, **kwargs)
  assert '\n' not in str(error.value)
  return str(error.value)


def test_environments_do_not_import_tensorflow_with_it():
  code = 'import sys; import r2d2_acme.observations.layouts; print(*sys.modules)'
  process = subprocess.run(
    [sys.executable, '-c', code], check=True, capture_output=True, text=True
  )
  assert not {'tensorflow', 'sonnet', 'acme', 'reverb'} & {*process.stdout.split()}


@pytest.mark.parametrize('kind', _FIT)
def test_what_fits_is_let_through(kind):
  layouts.check(_FIT[kind], _ACTIONS, _REWARDS)


@pytest.mark.parametrize(
  ('spec', 'shape', 'is_grid'),
  [
    (_RGB, (84, 84, 3), False),
    (_image(84, 80), (84, 80, 1), False),
    (_image(3, 84, 80), (84, 80, 3), False),
    (_image(4, 84, 80, dtype=np.float32), (84, 80, 4), False),
    (_image(3, 7, 8), (7, 8, 3), True),
    (_image(7, 8, 20), (7, 8, 20), True),
    (_image(7, 8), (7, 8, 1), True),
    (_image(16, 16, 1), (16, 16, 1), True),
    (_image(17, 16, 1), (17, 16, 1), False),
    (_image(10, 10, 4, dtype=bool), (10, 10, 4), False),  # planes as they are
    (_image(10, 10, 4, dtype=np.float32), (10, 10, 4), False),
    (specs.BoundedArray((7, 7, 3), np.int64, -3, 9), (7, 7, 3), True),
    (specs.BoundedArray((7, 7, 3), np.int64, 0, 256), (7, 7, 3), False),
    (_image(2, 84, 3), None, False),
    (_image(7, 7, dtype=np.float32), None, False),
    (_image(7), None, False),
    (_image(), None, False),
    (layouts.Categories((7, 7), np.uint8, 0, 3), None, False),
  ],
  ids=str,
)
def test_images_and_grids_are_told_by_shape_and_bounds(spec, shape, is_grid):
  assert layouts.image_shape(spec) == shape
  assert layouts.is_grid(spec) == is_grid
  if shape is not None:
    image = np.arange(np.prod(spec.shape)).reshape(spec.shape)
    assert layouts.as_image(image).shape == shape


def test_categories_survive_pickling():
  spec = pickle.loads(pickle.dumps(_FIT['some of a few numbers']))
  assert layouts.is_categorical(spec)
  np.testing.assert_array_equal(spec.maximum, [3, 4])


def test_what_is_not_taken_as_it_is_is_said():
  spec = {
    'a': _image(3, 84, 80),
    'b': (specs.StringArray(()),),
    'c': _RGB,
    'd': layouts.Categories((3, 7, 7), np.int32, 0, 4),
  }
  channels_first, text = layouts.notes(spec)
  assert (
    "observations['a'] of shape [3, 84, 80] are taken for images of 3 channels"
    in (channels_first)
  )
  assert text == "observations['b'][0] are texts, which the agent does not see"


@pytest.mark.parametrize('kind', _OBSERVATIONS)
def test_observations_that_cannot_work_name_fault_and_cure(kind):
  spec, faults, cures = _OBSERVATIONS[kind]
  message = _message(layouts.check, spec, _ACTIONS, _REWARDS)
  assert message.startswith('observations')
  assert all(words in message for words in faults + cures), message


@pytest.mark.parametrize('kind', _ACTION_SPECS)
def test_actions_that_cannot_work_name_fault_and_cure(kind):
  spec, expected = _ACTION_SPECS[kind]
  message = _message(layouts.check, _VECTOR, spec, _REWARDS)
  assert message.startswith(
    'actions must be discrete (dm_env.specs.DiscreteArray), not'
  )
  assert all(words in message for words in expected), message


def test_actions_beyond_number_are_refused():
  for number in (2**40, 2**31 - 1):
    spec = specs.DiscreteArray(number, np.int64)
    message = _message(layouts.check, _VECTOR, spec, _REWARDS)
    assert message.startswith(f'there are {number:,} actions')
  with pytest.raises(ValueError, match='at most max_actions=7, or raise --config'):
    layouts.check(_VECTOR, specs.DiscreteArray(8), _REWARDS, max_actions=7)
  layouts.check(_VECTOR, specs.DiscreteArray(7), _REWARDS, max_actions=7)


@pytest.mark.parametrize(
  'spec',
  [
    *(_VECTOR, {'a': _REWARDS}, (_REWARDS,)),
    *(specs.StringArray(()), specs.Array((), np.complex64), specs.Array((), object)),
  ],
  ids=str,
)
def test_rewards_that_are_not_one_number_are_refused(spec):
  message = _message(layouts.check, _VECTOR, _ACTIONS, spec)
  assert message.startswith('rewards must be single numbers, not ')


def test_acmes_observation_action_reward_wrapper_must_go():
  wrapped = wrappers.ObservationActionRewardWrapper(_Silent())
  message = _message(_start_program, wrapped)
  assert 'take ObservationActionRewardWrapper off' in message
  assert 'the agent feeds the previous action and reward itself' in message
  _start_program(wrapped.environment)


_CONFIG = config_lib.R2D2Config(num_actors=1, envs_per_actor=1)


def _start_program(environment):
  make_program(Experiment(_CONFIG, lambda seed: environment))


def _start_agent(environment):
  R2D2(acme.make_environment_spec(environment), _CONFIG)


@pytest.mark.parametrize('start', [_start_program, _start_agent])
@pytest.mark.parametrize(
  ('environment', 'words'),
  [
    (_Silent(observations={'a': _image(3, dtype=complex)}), "observations['a']"),
    (_Silent(observations={1: _VECTOR, 'a': _VECTOR}), 'cannot be sorted'),
    (_Silent(observations=_image(84, 3, 84)), 'holds the channels'),
    (_Silent(observations=_image(84, 84, 1, dtype=complex)), 'complex128'),
    (_Silent(actions=specs.BoundedArray((), np.int32, 0, 3)), 'DiscreteArray(4)'),
    (_Silent(actions={'legs': _ACTIONS}), "a dict of ['legs']"),
    (_Silent(rewards=_VECTOR), 'rewards must be single numbers'),
  ],
  ids=lambda value: value if isinstance(value, str) else '',
)
def test_agents_refuse_at_their_start(start, environment, words):
  assert words in _message(start, environment)


def test_environment_made_for_its_specs_is_closed():
  for environment in (_Silent(), _Silent(actions=_VECTOR)):
    with contextlib.suppress(ValueError):
      _start_program(environment)
    assert environment.is_closed


def test_program_takes_gymnasiums_environments_and_refuses_what_is_none():
  _start_program(gymnasium.make('CartPole-v1'))
  message = _message(_start_program, object())
  assert 'must be dm_env.Environments, not object' in message
  assert 'GymnasiumAdapter' in message
