"""Tests of environments by their Gymnasium ids: Atari games and ids of modules."""

import os
import pathlib
import subprocess
import sys
import textwrap

import gymnasium
import numpy as np
import pytest
from ale_py.env import AtariEnv
from gymnasium import wrappers
from gymnasium.envs.classic_control import PendulumEnv
from launchpad.nodes.python import process_entry

from r2d2_acme import environments
from r2d2_acme.environments import make_atari, make_gymnasium


def _ale(env):
  return env.gymnasium_env.unwrapped.ale


def _message(function, *args, **kwargs):
  with pytest.raises(ValueError) as error:
    function(*args, **kwargs)
  assert '\n' not in str(error.value)
  return str(error.value)


class _DoubledReward(AtariEnv):
  def step(self, action):
    observation, reward, *others = super().step(action)
    return observation, 2 * reward, *others


class _Unusable(PendulumEnv):
  num_closed = 0

  def close(self):
    _Unusable.num_closed += 1


class _OnlyPong(AtariEnv):
  def __init__(self):
    super().__init__('pong')


def _preprocessed(**kwargs):
  env = AtariEnv('pong', frameskip=1)
  return wrappers.AtariPreprocessing(env, frame_skip=3, **kwargs)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
  """Registers ids of these tests."""
  monkeypatch.setattr(gymnasium.envs.registration, 'registry', {**gymnasium.registry})
  monkeypatch.setattr(gymnasium, 'registry', gymnasium.envs.registration.registry)
  for name, entry_point, arguments in (
    ('Hard', 'ale_py.env:AtariEnv', {'game': 'pong', 'mode': 1, 'difficulty': 1}),
    ('Doubled', _DoubledReward, {'game': 'pong'}),
    ('Grey', AtariEnv, {'game': 'pong', 'obs_type': 'grayscale'}),
    ('Limited', AtariEnv, {'game': 'pong', 'max_num_frames_per_episode': 4_000}),
    ('Ram', 'ale_py:AtariEnv', {'game': 'pong', 'obs_type': 'ram'}),
    ('Continuous', AtariEnv, {'game': 'pong', 'continuous': True}),
    ('Sound', AtariEnv, {'game': 'pong', 'sound_obs': True}),
    ('OnlyPong', _OnlyPong, {}),
    ('Function', lambda **kwargs: AtariEnv('pong', **kwargs), {}),
    ('Preprocessed', _preprocessed, {'grayscale_newaxis': True}),
    ('PreprocessedFlat', _preprocessed, {'grayscale_newaxis': False}),
    ('Wrong', AtariEnv, {'game': 'pong', 'mode': 77}),
    ('Raising', lambda: 1 / 0, {}),
    ('Quitting', sys.exit, {}),
    ('Unusable', _Unusable, {}),
    ('Elsewhere', 'no_such_module:Env', {}),
  ):
    gymnasium.register(f'{name}-v0', entry_point=entry_point, kwargs=arguments)
  gymnasium.register(
    'Short-v0',
    entry_point=AtariEnv,
    max_episode_steps=100,
    kwargs={'game': 'pong', 'frameskip': 2},
  )


# Atari.

_PONG_IDS = [
  'ALE/Pong-v5',
  'Pong-v4',
  'Pong-v0',
  'PongNoFrameskip-v4',
  'PongNoFrameskip-v0',
  'ale_py:ALE/Pong-v5',
  'ale_py:PongNoFrameskip-v4',
]


@pytest.mark.parametrize('make', [environments.make, make_gymnasium])
@pytest.mark.parametrize('id', [*_PONG_IDS, 'Grey-v0'])
def test_atari_ids_play_as_make_atari_does(id, make):
  env = make(id, seed=3, atari_kwargs={'full_action_space': False})
  expected = make_atari('pong', seed=3, full_action_space=False)
  assert env.frames_per_step == 4
  assert env.action_spec() == expected.action_spec()
  assert env.observation_spec() == expected.observation_spec()
  assert _ale(env).getFloat('repeat_action_probability') == 0
  assert env.gymnasium_env.get_wrapper_attr('_max_episode_steps') == 27_000
  np.testing.assert_array_equal(env.reset().observation, expected.reset().observation)
  assert 1 <= _ale(env).getEpisodeFrameNumber() <= 30  # no-ops
  before = _ale(env).getFrameNumber()
  for step in range(60):
    timestep, expected_timestep = env.step(step % 6), expected.step(step % 6)
    np.testing.assert_array_equal(timestep.observation, expected_timestep.observation)
  assert _ale(env).getFrameNumber() - before == 4 * 60


def test_all_actions_of_an_atari_id_on_request():
  assert environments.make('Pong-v4').action_spec().num_values == 18


def test_every_registered_atari_id_is_preprocessed():
  """Three games are enough, because all games have the same ids."""
  ids = [
    id
    for id, spec in gymnasium.registry.items()
    if spec.kwargs.get('game') in ('pong', 'ms_pacman', 'pooyan')
    and spec.entry_point == 'ale_py.env:AtariEnv'
  ]
  assert len(ids) == 3 * 5 + 1  # and one more, Hard-v0
  for id in ids:
    assert environments.make(id).observation_spec().shape == (84, 84, 1)


def test_mode_and_difficulty_of_an_id_count():
  env = make_gymnasium('Hard-v0', seed=0)
  game = env.gymnasium_env.unwrapped
  assert (game._game_mode, game._game_difficulty) == (1, 1)
  assert env.observation_spec().shape == (84, 84, 1)
  easy = make_gymnasium('Hard-v0', seed=0, kwargs={'difficulty': 0})
  assert easy.gymnasium_env.unwrapped._game_difficulty == 0


def test_a_class_of_its_own_keeps_what_it_changes():
  env = make_gymnasium('Doubled-v0', seed=0)
  env.reset()
  rewards = {float(env.step(0).reward) for _ in range(100)}
  assert rewards == {0.0, -2.0}


@pytest.mark.parametrize(
  ('argument', 'field'),
  [
    ('frameskip', 'frame_skip'),
    ('repeat_action_probability', 'sticky_actions'),
    ('full_action_space', 'full_action_space'),
  ],
)
def test_arguments_that_are_fields_of_the_config_are_refused(argument, field):
  message = _message(make_gymnasium, 'ALE/Pong-v5', kwargs={argument: 0})
  assert f'{argument} of an Atari game is --config.{field}' in message


@pytest.mark.parametrize(
  'kwargs',
  [
    {'game': 'breakout'},
    {'max_episode_steps': 'a'},
    {'max_num_frames_per_episode': [1]},
    {'mode': 'a'},
    {'nonsense': 1},
  ],
  ids=str,
)
def test_bad_arguments_of_an_atari_id_are_one_line(kwargs):
  assert 'ALE/Pong-v5' in _message(make_gymnasium, 'ALE/Pong-v5', kwargs=kwargs)


def test_the_smallest_limit_of_frames_counts():
  env = make_gymnasium('Limited-v0', atari_kwargs={'max_episode_frames': 400})
  assert env.gymnasium_env.get_wrapper_attr('_max_episode_steps') == 100


@pytest.mark.parametrize(('id', 'num_steps'), [('Limited-v0', 1000), ('Short-v0', 50)])
def test_limits_of_an_id_count_in_frames(id, num_steps):
  env = make_gymnasium(id)
  assert env.gymnasium_env.get_wrapper_attr('_max_episode_steps') == num_steps


@pytest.mark.parametrize('id', ['Preprocessed-v0', 'PreprocessedFlat-v0'])
def test_an_id_with_its_own_preprocessing_is_taken_as_it_is(id):
  env = make_gymnasium(id, seed=0)
  assert env.frames_per_step == 3
  env.reset()
  before = _ale(env).getFrameNumber()
  env.step(0)
  assert _ale(env).getFrameNumber() - before == 3


@pytest.mark.parametrize(
  ('id', 'words'),
  [
    ('Ram-v0', 'obs_type=ram'),
    ('Continuous-v0', 'continuous=True'),
    ('Sound-v0', 'sound_obs=True'),
    ('OnlyPong-v0', 'without its preprocessing'),
    ('Function-v0', 'gymnasium.wrappers.AtariPreprocessing'),
    ('Pong-v5', 'no Gymnasium environment'),
    ('Pong', 'no Gymnasium environment'),
    ('pong', 'no Gymnasium environment'),
    ('PongDeterministic-v4', 'no Gymnasium environment'),
    ('Pong-ram-v4', 'no Gymnasium environment'),
    ('Pong-ramNoFrameskip-v4', 'no Gymnasium environment'),
    ('ALE/Pong-v4', 'no Gymnasium environment'),
    ('ALE/pong', 'no Gymnasium environment'),
    ('ale/Pong-v5', 'no Gymnasium environment'),
    ('ALE/Pnog-v5', 'no Gymnasium environment'),
    ('PnogNoFrameskip-v4', 'no Gymnasium environment'),
    ('ale_py:Pong-v5', 'no Gymnasium environment'),
  ],
)
def test_atari_ids_that_cannot_work_name_the_game(id, words):
  message = _message(make_gymnasium, id)
  assert words in message
  assert 'use --game=pong' in message


def test_other_names_are_not_taken_for_games():
  for id in ('CartPol-v1', 'Frezeway2-v1', 'carnivals-v0'):
    assert '--game' not in _message(make_gymnasium, id)


def test_old_ids_print_nothing():
  code = (
    'from r2d2_acme import environments\n'
    'for id in ("Pong-v0", "PongNoFrameskip-v4", "CartPole-v0", "CartPole"):\n'
    '  environments.make(id, seed=0).reset()\n'
  )
  ended = subprocess.run(
    [sys.executable, '-W', 'default', '-c', code],
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
    capture_output=True,
    text=True,
  )
  assert (ended.returncode, ended.stdout, ended.stderr) == (0, '', '')


def test_an_id_without_a_version_is_the_newest():
  env = make_gymnasium('CartPole')
  assert env.gymnasium_env.spec.id == 'CartPole-v1'


# Errors from an environment's own code.


@pytest.mark.parametrize(
  ('id', 'words'),
  [
    ('Wrong-v0', ['RuntimeError: Invalid game mode']),
    ('Raising-v0', ['ZeroDivisionError: division by zero', __file__]),
    ('Quitting-v0', ['SystemExit']),
    ('Elsewhere-v0', ["ModuleNotFoundError: No module named 'no_such_module'"]),
  ],
)
def test_an_environment_that_cannot_be_made_says_why(id, words):
  message = _message(make_gymnasium, id)
  assert message.startswith(f'cannot make Gymnasium environment {id!r}: ')
  assert all(word in message for word in words)


def test_an_environment_that_is_refused_is_closed():
  _Unusable.num_closed = 0
  assert 'continuous actions' in _message(make_gymnasium, 'Unusable-v0')
  assert _Unusable.num_closed == 1


# Modules in the current directory.

_MODULE = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

gymnasium.register('Found-v0', entry_point=CartPoleEnv, max_episode_steps=9)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """The current directory, which Python does not import from by default."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', [path for path in sys.path if path])
  modules = set(sys.modules)
  yield tmp_path
  for name in set(sys.modules) - modules:
    del sys.modules[name]


@pytest.mark.parametrize('name', ['my_task', 'my_package.tasks'])
def test_module_is_found_in_the_current_directory(folder, name):
  path = folder.joinpath(*name.split('.')).with_suffix('.py')
  path.parent.mkdir(exist_ok=True)
  path.write_text(_MODULE)
  for _ in range(2):
    assert environments.make(f'{name}:Found-v0', seed=0).reset().first()
  assert sys.path.count(str(folder)) == 1


def test_module_in_the_current_directory_hides_no_installed_one(folder):
  (folder / 'ale_py.py').write_text('raise AssertionError')
  (folder / 'colorsys.py').write_text('raise AssertionError')
  assert environments.make('ale_py:ALE/Pong-v5').frames_per_step == 4
  message = _message(environments.make, 'colorsys:Found-v0')
  assert "doesn't exist" in message
  assert 'python3.10/colorsys.py' in message


@pytest.mark.parametrize('name', ['node', 'flag_utils', 'process_entry'])
def test_the_folder_of_the_program_hides_no_module_of_the_current_directory(
  folder, name
):
  """The main script may be Launchpad's, as in a node, or one in launch/."""
  scripts = pathlib.Path(process_entry.__file__).parent
  (folder / f'{name}.py').write_text(_MODULE)
  (folder / 'program.py').write_text(
    'from r2d2_acme import environments\n'
    f'environments.make("{name}:Found-v0").reset()\n'
    'import sys; print(sys.path[0])\n'
  )
  program = (
    'import runpy, sys; '
    f'sys.path[0] = {str(scripts)!r}; '
    f'sys.modules["__main__"].__file__ = {process_entry.__file__!r}; '
    'exec(open("program.py").read())'
  )
  result = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, cwd=folder
  )
  assert result.stdout.strip() == str(scripts), result.stderr


@pytest.mark.parametrize(
  ('source', 'words'),
  [
    ('1 / 0', ['ZeroDivisionError: division by zero', 'bad_task.py, line 1']),
    ('import no_such_package', ["No module named 'no_such_package'", 'bad_task.py']),
    ('def f(:', ['SyntaxError: invalid syntax (bad_task.py, line 1)']),
    ('import sys; sys.exit("usage:\\n  a")', ['SystemExit: usage: a']),
    ('from math import no_such_name', ['ImportError: cannot import name']),
  ],
)
def test_module_that_raises_is_one_line(folder, source, words):
  (folder / 'bad_task.py').write_text(textwrap.dedent(source))
  message = _message(environments.make, 'bad_task:Bad-v0')
  assert message.startswith(f"cannot import 'bad_task', from {folder} or installed: ")
  assert all(word in message for word in words), message


@pytest.mark.parametrize(
  'module', ['no_such_task', 'no_such_package.task', 'json.task', 'task.py', 'a/task']
)
def test_missing_module_names_the_folder(folder, module):
  message = _message(environments.make, f'{module}:Bad-v0')
  assert f'there is no module {module!r}, neither installed nor in {folder}' in message


def test_module_without_the_id_is_named(folder):
  (folder / 'empty_task.py').touch()
  message = _message(environments.make, 'empty_task:Nothing-v0')
  assert "Environment `Nothing` doesn't exist" in message
  assert f'The module is {folder}/empty_task.py' in message


@pytest.mark.parametrize('id', [':A-v0', '.a:A-v0', 'a:b:A-v0', 'a:', ':'])
def test_malformed_modules_are_one_line(folder, id):
  _message(environments.make, id)
