"""What users give, good and bad, as the programs in `launch/` take it."""

import dataclasses
import datetime
import fcntl
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest

from r2d2_acme import config as config_lib
from r2d2_acme import environments, experiment, tracking
from r2d2_acme.config import R2D2Config
from r2d2_acme.results import plotting
from r2d2_acme.tracking import process
from r2d2_acme.workdir import checkpointing
from tests import helpers
from tests.starts import ENVIRON, Ended

_LAUNCH = helpers.LAUNCH
# A program that says what it was asked for.
_DESCRIBE = """
import dataclasses, json, os
import experiment_flags
from r2d2_acme import experiment, tracking

def main():
  run = experiment.begin(experiment_flags.from_flags()).experiment
  spec = run.environment_factory(7).observation_spec()
  assert spec == run.environment_spec.observations
  with open(os.path.join(run.workdir, 'config.json')) as file:
    environment = json.load(file)['environment']
  config = dataclasses.asdict(run.config)
  print(json.dumps([config, environment, spec.shape, run.workdir]))
  return 0

experiment_flags.run(main)
"""


_TORSO = """
import sonnet as snt
import tensorflow as tf

class Torso(snt.Module):
  def __call__(self, inputs):
    return tf.cast(snt.flatten(inputs), tf.float32)

def make(spec):
  return Torso()
"""


class _Described(NamedTuple):
  config: R2D2Config
  environment: dict[str, str]
  shape: list[int]  # of an observation
  workdir: str


@pytest.fixture
def describe(start, tmp_path):
  """`describe(*arguments)` is the experiment that these flags describe."""
  script = tmp_path / 'describe.py'
  script.write_text(_DESCRIBE)
  (tmp_path / 'my_torso.py').write_text(_TORSO)

  def describe(*arguments: str) -> _Described:
    ended = start(*arguments, script=script)
    assert (ended.code, ended.err) == (0, '')
    config, *others = json.loads(ended.out.splitlines()[-1])
    return _Described(R2D2Config(**config), *others)

  return describe


_STORED = ('--env=CartPole-v1', '--config.batch_size=8', '--seed=3', '--num_actors=2')


@pytest.fixture
def workdir(describe) -> pathlib.Path:
  """That of a run of `_STORED`."""
  return pathlib.Path(describe(*_STORED, '--workdir=run').workdir)


_SHARES = (
  *('discount', 'priority_eta', 'epsilon_base', 'evaluator_epsilon'),
  *('sticky_actions', 'life_loss_discount'),
)
_SPECIAL = {
  'torso': 'my_torso:make',
  'state_strategy': 'zero',
  'full_action_space': True,
  'recurrent': False,
  'clip_rewards': True,
  'normalize_images': False,
  'value_rescaling': False,
  'actor_priorities': False,
  'torso_dtype': 'float32',
  'conv_channels': (4, 5, 6),
  'trace_length': 50,
  'sequence_period': 39,
  'learner_devices': 0,  # more are refused where there are no GPUs
}


def _other(name: str):
  """A valid value of a field, not that of laptop."""
  if name in _SPECIAL:
    return _SPECIAL[name]
  value = getattr(config_lib.laptop(), name)
  return 0.25 if name in _SHARES else value + 1 if value < 1 else value * 2


_ATARI = R2D2Config().atari.keys()
_OTHERS = {field.name: _other(field.name) for field in dataclasses.fields(R2D2Config)}
_FREE = {
  *('num_actors', 'envs_per_actor', 'checkpoint_period', 'evaluation_period'),
  *('torso_dtype', 'learning_rate', 'adam_epsilon', 'max_gradient_norm'),
  *('target_update_period', 'max_evaluation_steps', 'video_period'),
  *('num_checkpoints', 'checkpoint_keep_period', 'num_best_episodes'),
  *('replay_checkpoint_period', 'max_restarts', 'restart_period', 'progress_timeout'),
  *('max_environment_failures', 'max_bad_batches'),
  *('actors_per_cacher', 'learner_devices'),
}


# Good input.


def test_every_field_has_a_flag(describe):
  flags = [f'--config.{name}={value}' for name, value in _OTHERS.items()]
  described = describe('--game=pong', *flags)
  assert described.config == R2D2Config(**_OTHERS)
  laptop = dataclasses.asdict(config_lib.laptop())
  assert all(value != laptop[name] for name, value in _OTHERS.items())


def test_without_flags_it_is_pong_on_a_laptop(describe, tmp_path):
  described = describe()
  assert described.config == config_lib.laptop()
  assert described.environment == {'game': 'pong'}
  assert described.workdir == str(tmp_path / 'runs' / 'pong')


@pytest.mark.parametrize(
  'flag',
  [
    '--game=MsPacman',
    '--env=ALE/MsPacman-v5',
    '--env=MsPacman-v4',
    '--env=MsPacmanNoFrameskip-v4',
    '--env=ale_py:MsPacmanNoFrameskip-v0',
  ],
)
def test_atari_is_preprocessed_whatever_it_is_called(describe, flag):
  assert describe(flag).shape == [84, 84, 1]


@pytest.mark.parametrize(
  ('name', 'shape'),
  [
    ('memory/cue_recall', [6]),
    ('memory/t_maze/20', [3]),
    ('bsuite/memory_len/15', [3]),
    ('VelocitylessCartPole-v1', [2]),
  ],
)
def test_memory_tasks_go_by_name(describe, name, shape):
  described = describe(f'--env={name}', '--preset=memory')
  assert described.shape == shape
  assert described.environment == {'env': name}
  assert described.config == config_lib.memory()


_TASK = """
import gymnasium
from gymnasium import spaces, wrappers
from gymnasium.envs.classic_control import CartPoleEnv

class Looking(CartPoleEnv):
  def __init__(self, space):
    super().__init__()
    self.observation_space = space

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    return self.observation_space.sample(), {}

def looking(low, high, shape, dtype):
  return lambda: Looking(spaces.Box(low, high, shape, dtype))

gymnasium.register('Found-v0', entry_point=CartPoleEnv, max_episode_steps=9)
gymnasium.register('Middle-v0', entry_point=looking(0, 255, (84, 3, 84), 'uint8'))
gymnasium.register('Grey-v0', entry_point=looking(0, 255, (84, 84), 'uint8'))
gymnasium.register('Floats-v0', entry_point=looking(0, 255, (84, 84, 3), 'float32'))
"""


def test_module_in_the_current_directory_is_found_in_every_process(start, tmp_path):
  (tmp_path / 'my_task.py').write_text(_TASK)
  script = tmp_path / 'elsewhere' / 'run.py'
  script.parent.mkdir()
  script.write_text(
    'import pathlib, pickle\n'
    'import experiment_flags\n'
    'def main():\n'
    '  run = experiment_flags.from_flags()\n'
    '  pathlib.Path("factory").write_bytes(pickle.dumps(run.environment_factory))\n'
    '  return 0\n'
    'experiment_flags.run(main)\n'
  )
  assert start('--env=my_task:Found-v0', script=script) == Ended(0, '', '')
  worker = script.with_name('worker.py')
  worker.write_text(
    'import pickle; print(pickle.load(open("factory", "rb"))(0).reset())'
  )
  ended = subprocess.run(
    [sys.executable, worker],
    cwd=tmp_path,
    env=ENVIRON,
    capture_output=True,
    text=True,
  )
  assert ended.stderr == ''
  assert 'StepType.FIRST' in ended.stdout


_FAILING = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Failing(CartPoleEnv):
  num_steps = 0

  def step(self, action):
    Failing.num_steps += 1
    if Failing.num_steps == 50:
      {what}
    return super().step(action)

gymnasium.register('Failing-v0', entry_point=Failing, max_episode_steps=9)
"""


@pytest.mark.parametrize(
  ('what', 'is_own'),
  [
    ('raise OSError("the cable fell out")', True),
    ('return super().step(action)[0], [1, 2], False, False, {}', False),
  ],
  ids=['raises', 'bad reward'],
)
def test_what_was_learned_is_saved_when_the_environment_fails(
  start, tmp_path, what, is_own
):
  (tmp_path / 'my_task.py').write_text(_FAILING.format(what=what))
  ended = start(
    *('--env=my_task:Failing-v0', '--preset=memory', '--envs_per_actor=1'),
    *('--noevaluator', '--workdir=run', '--max_actor_steps=200'),
    '--config.max_environment_failures=0',
    script=_LAUNCH / 'single_process.py',
  )
  (line,) = [line for line in ended.err.splitlines() if line.startswith('error: ')]
  assert ended.code == 1
  assert line.startswith('error: Failing-v0 failed in step 5 of episode 6: ')
  assert ('Traceback' in ended.err) == is_own == ('my_task.py' in ended.err)
  assert checkpointing.verify(str(tmp_path / 'run'))['actor_steps'] == 49


def test_images_of_floats_are_taken(describe, tmp_path):
  (tmp_path / 'my_task.py').write_text(_TASK)
  assert describe('--env=my_task:Floats-v0').shape == [84, 84, 3]
  assert describe('--env=my_task:Grey-v0').shape == [84, 84]


@pytest.mark.parametrize(
  ('id', 'words'),
  [
    ('Middle-v0', 'axis 1, of size 3, holds the channels: move it to the end'),
    ('Missing-v0', "Environment `Missing` doesn't exist"),
  ],
)
def test_tasks_that_cannot_work_are_refused(refuse, tmp_path, id, words):
  (tmp_path / 'my_task.py').write_text(_TASK)
  assert words in refuse(f'--env=my_task:{id}')
  assert not (tmp_path / 'runs').exists()


def test_module_that_raises_is_refused(refuse, tmp_path):
  (tmp_path / 'bad_task.py').write_text('1 / 0')
  line = refuse('--env=bad_task:Bad-v0')
  assert f"cannot import 'bad_task', from {tmp_path} or installed: ZeroDivision" in line


def test_short_flags_mean_the_fields(describe):
  described = describe('--num_actors=3', '--envs_per_actor=4', '--seed=5')
  assert described.config == dataclasses.replace(
    config_lib.laptop(), num_actors=3, envs_per_actor=4, seed=5
  )


def test_flags_overrule_the_preset(describe):
  flags = ('--preset=paper', '--num_actors=2', '--config.max_replay_size=5000')
  assert describe(*flags).config == dataclasses.replace(
    config_lib.paper(), num_actors=2, max_replay_size=5000
  )


def test_workdir_tells_how_to_do_it_again(workdir):
  stored = json.loads((workdir / 'config.json').read_text())
  assert stored['environment'] == {'env': 'CartPole-v1'}
  assert stored['config']['batch_size'] == 8
  assert stored['seed'] == 3
  assert stored['command'][1:] == [*_STORED, '--workdir=run']
  assert stored['versions']['tensorflow'] == '2.8.4'
  assert stored['revision']


def test_protocol_of_a_game_sets_fields_that_flags_overrule(describe, refuse, tmp_path):
  start = ('--env=ALE/Pong-v5', '--atari=sticky', '--workdir=run')
  described = describe(*start, '--config.frame_skip=2')
  assert described.config == dataclasses.replace(
    config_lib.laptop(), **{**config_lib.ATARI['sticky'], 'frame_skip': 2}
  )
  stored = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert stored['atari'] == 'sticky, frame_skip=2'
  factory = experiment.from_workdir(str(tmp_path / 'run')).environment_factory
  game = factory(0).gymnasium_env
  ale = game.get_wrapper_attr('ale')
  assert ale.getFloat('repeat_action_probability') == 0.25
  assert game.get_wrapper_attr('frame_skip') == 2
  assert game.get_wrapper_attr('noop_max') == 0
  assert describe('--workdir=run').config == described.config
  line = refuse('--workdir=run', '--atari=dqn')
  assert 'full_action_space=True, not False' in line


_SIZED = """
import gymnasium

class Sized(gymnasium.Env):
  action_space = gymnasium.spaces.Discrete(2)

  def __init__(self, seed=1):
    self.observation_space = gymnasium.spaces.Box(0, 1, [seed])

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    return self.observation_space.sample(), {}

gymnasium.register('Sized-v0', entry_point=Sized)
"""


def test_arguments_of_an_environment_are_kept(describe, refuse, tmp_path, monkeypatch):
  (tmp_path / 'sized.py').write_text(_SIZED)
  start = ('--env=sized:Sized-v0', '--workdir=run')
  # A name that functions here have, too.
  described = describe(*start, '--env_kwargs={"seed": 5}')
  assert described.shape == [5]
  stored = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert stored['env_kwargs'] == {'seed': 5}
  assert describe('--workdir=run') == described
  assert describe(*start) == described
  line = refuse(*start, '--env_kwargs={"seed": 6}')
  assert '--env_kwargs={"seed": 5}, not {"seed": 6}' in line
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', [*sys.path])
  assert experiment.from_workdir('run').environment_spec.observations.shape == (5,)


# Resuming.


def test_second_start_needs_no_flags(describe, workdir):
  described = describe('--workdir=run')
  assert described.config == dataclasses.replace(
    config_lib.laptop(), batch_size=8, seed=3, num_actors=2
  )
  assert described.environment == {'env': 'CartPole-v1'}
  assert described.workdir == str(workdir)
  assert describe(*_STORED, '--workdir=run') == described


@pytest.mark.parametrize('name', sorted(_FREE))
def test_second_start_may_change_a_free_field(describe, workdir, name):
  flag = f'--config.{name}={_OTHERS[name]}'
  expected = dataclasses.replace(
    describe('--workdir=run').config, **{name: _OTHERS[name]}
  )
  assert describe('--workdir=run', flag).config == expected
  assert describe('--workdir=run').config == expected


@pytest.mark.parametrize(
  'name',
  sorted(_OTHERS.keys() - _FREE - (_ATARI - {'full_action_space'}) - {'frame_stack'}),
)
def test_second_start_cannot_change_the_experiment(refuse, workdir, name):
  before = (workdir / 'config.json').read_bytes()
  value = 4 if name == 'seed' else _OTHERS[name]
  line = refuse('--workdir=run', f'--config.{name}={value}')
  assert f'{name}=' in line
  assert f'not {value}' in line
  assert (workdir / 'config.json').read_bytes() == before


def test_second_start_may_stack_frames_otherwise_where_there_are_none(
  describe, refuse, workdir
):
  described = describe('--workdir=run', '--config.frame_stack=1')
  assert described.config.frame_stack == 1
  describe('--game=pong', '--workdir=images')
  line = refuse('--workdir=images', '--config.frame_stack=1')
  assert 'frame_stack=4, not 1' in line


def test_arguments_of_an_environment_are_compared_as_they_are_kept(tmp_path):
  def begin(**kwargs):
    factory = environments.NamedFactory('env', 'FrozenLake-v1', kwargs=kwargs)
    described = experiment.Experiment(R2D2Config(), factory, workdir=str(tmp_path))
    experiment.begin(described, num_processes=0)

  begin(desc=('SF', 'FG'))
  begin(desc=('SF', 'FG'))
  with pytest.raises(experiment.BadInput, match='was started with --env_kwargs'):
    begin(desc=('SF', 'HG'))
  with pytest.raises(experiment.BadInput, match='must fit into JSON'):
    begin(desc=(b'SF', b'FG'))


def test_evaluation_that_is_shorter_than_the_game_is_told(start, tmp_path):
  script = tmp_path / 'describe.py'
  script.write_text(_DESCRIBE)
  note = 'evaluation cuts episodes off after 54,000 frames'
  for frame_skip in (2, 4):
    workdir = f'--workdir={frame_skip}'
    ended = start(workdir, f'--config.frame_skip={frame_skip}', script=script)
    assert (note in ended.out) == (frame_skip == 2)


def test_free_field_stays_when_the_preset_is_given_again(describe, tmp_path):
  flags = ('--env=CartPole-v1', '--preset=memory', '--workdir=run')
  describe(*flags, '--config.learning_rate=0.5', '--num_actors=2')
  described = describe(*flags)
  assert (described.config.learning_rate, described.config.num_actors) == (0.5, 2)


def _read(workdir: pathlib.Path) -> dict:
  return json.loads((workdir / 'config.json').read_text())


def test_history_tells_what_ran_when(describe, workdir):
  started = datetime.datetime.now(datetime.timezone.utc)
  flags = ('--workdir=run', '--config.learning_rate=0.5', '--num_actors=4')
  describe(*flags)
  describe('--workdir=run')
  stored = _read(workdir)
  first, second, third = stored['history']
  assert first['command'][1:] == [*_STORED, '--workdir=run']
  assert second['command'][1:] == [*flags]
  assert second['changed_fields'] == {
    'learning_rate': [3e-4, 0.5],
    'num_actors': [2, 4],
  }
  assert third['changed_fields'] == {} == third['changed_versions']
  assert stored['config']['learning_rate'] == 0.5
  for start in (second, third):
    assert start['revision'] == stored['revision']
    when = datetime.datetime.fromisoformat(start['time'])
    assert abs(when - started) < datetime.timedelta(minutes=5)


def test_history_tells_of_versions(describe, workdir):
  stored = _read(workdir)
  stored['versions']['tensorflow'] = '2.7.0'
  stored['versions']['gone'] = '1'
  del stored['versions']['dm-env']
  (workdir / 'config.json').write_text(json.dumps(stored))
  describe('--workdir=run')
  assert _read(workdir)['history'][-1]['changed_versions'] == {
    'dm-env': [None, '1.6'],
    'gone': ['1', None],
    'tensorflow': ['2.7.0', '2.8.4'],
  }


@pytest.mark.parametrize('missing', [['history'], ['history', 'command', 'versions']])
def test_config_without_a_history_goes_on(describe, workdir, missing):
  """Those of earlier versions are."""
  stored = _read(workdir)
  removed = {name: stored.pop(name) for name in missing}
  (workdir / 'config.json').write_text(json.dumps(stored))
  os.utime(workdir / 'config.json', (0, 0))
  describe('--workdir=run')
  first, second = _read(workdir)['history']
  assert first['time'] == '1970-01-01T00:00:00+00:00'
  expected = None if 'command' in removed else stored['command']
  assert first['command'] == expected
  assert second['changed_fields'] == {}


def test_refused_start_leaves_the_history_alone(refuse, workdir):
  before = (workdir / 'config.json').read_bytes()
  refuse('--workdir=run', '--config.learning_rate=0.5', '--config.n_step=2')
  assert (workdir / 'config.json').read_bytes() == before


_VALID = {'environment': {'env': 'CartPole-v1'}, 'config': {}}


@pytest.mark.parametrize(
  'content',
  [
    *('[]', 'null', '"x"', '\0', '[' * 100_000, '{"config": {}, "environment": {}}'),
    *(
      json.dumps({**_VALID, **changed})
      for changed in (
        {'environment': {'env': 'CartPole-v1', 'game': 'pong'}},
        {'environment': {'env': 3}},
        {'environment': {'game': ['pong']}},
        {'environment': {'play': 'pong'}},
        {'environment': None},
        {'config': None},
        {'config': {'seed': 1.5}},
        {'config': {'batch_size': 16.0}},
        {'config': {'batch_size': True}},
        {'config': {'recurrent': 'false'}},
        {'config': {'torso_dtype': None}},
        {'config': {'conv_channels': [1, 2.0, 3]}},
        {'config': {'discount': float('nan')}},
        {'config': {'discount': 10**400}},
        {'history': None},
        {'history': [3]},
        {'versions': []},
        {'versions': None},
      )
    ),
  ],
  ids=lambda content: content[:9] + content[-30:],
)
def test_damaged_config_is_refused(tmp_path, content):
  path = tmp_path / 'config.json'
  path.write_text(content)
  line = f'{path} is not a config of this version '
  for read, kind in (
    (experiment.from_workdir, experiment.BadInput),
    (lambda workdir: plotting.read_runs([workdir]), plotting.NoRun),
  ):
    with pytest.raises(kind) as error:
      read(str(tmp_path))
    assert line in str(error.value)
    assert '\n' not in str(error.value)
    assert str(error.value).endswith('restore it, or give another --workdir')


@pytest.mark.parametrize(
  'make', [os.mkfifo, os.mkdir, lambda path: path.symlink_to(path)]
)
def test_config_that_is_no_file_is_refused(tmp_path, make):
  make(tmp_path / 'config.json')
  with pytest.raises(experiment.BadInput, match='config.json is not a config of'):
    experiment.from_workdir(str(tmp_path))


def test_start_with_a_damaged_checkpoint_leaves_the_history_alone(refuse, workdir):
  before = (workdir / 'config.json').read_bytes()
  _damage(workdir, 'ckpt-9')
  line = refuse('--workdir=run', '--config.learning_rate=0.5')
  assert 'ckpt-9 is damaged' in line
  assert (workdir / 'config.json').read_bytes() == before


def test_checkpoints_without_a_config_are_refused(refuse, workdir):
  """What they are of, nobody knows: the flags might say anything."""
  (workdir / 'config.json').unlink()
  _damage(workdir, 'ckpt-9')
  before = sorted(workdir.rglob('*'))
  line = refuse('--workdir=run')
  assert f'{workdir} has checkpoints but no config.json' in line
  assert 'restore it, or give another --workdir' in line
  assert sorted(workdir.rglob('*')) == before


def test_half_written_config_is_no_harm(describe, workdir):
  """A start that died in the middle of it."""
  before = _read(workdir)
  (workdir / 'config.json.new').write_text('{"config": {')
  describe('--workdir=run')
  assert _read(workdir)['history'][:-1] == before['history']
  assert not (workdir / 'config.json.new').exists()


def test_second_start_cannot_change_the_preset(refuse, workdir):
  assert 'burn_in_length=20, not 40' in refuse('--workdir=run', '--preset=paper')


@pytest.mark.parametrize('flag', ['--game=pong', '--env=Acrobot-v1'])
def test_second_start_cannot_change_the_environment(refuse, workdir, flag):
  line = refuse('--workdir=run', flag)
  assert f'{workdir} is a run of --env=CartPole-v1, not {flag}' in line


@pytest.mark.parametrize(
  'content', ['', '{}', '{"environment": {}, "config": {"of_yore": 1}}']
)
def test_config_of_another_version_is_refused(refuse, workdir, content):
  (workdir / 'config.json').write_text(content)
  assert f'{workdir}/config.json is not a config of this version' in refuse(
    '--workdir=run'
  )


def _damage(workdir: pathlib.Path, *names: str):
  """Puts checkpoints there that cannot be read."""
  folder = workdir / 'checkpoints' / 'learner'
  folder.mkdir(parents=True)
  for name in names:
    (folder / f'{name}.index').write_bytes(b'\0')


def test_start_without_a_sound_checkpoint_is_refused(refuse, workdir):
  folder = workdir / 'checkpoints' / 'learner'
  _damage(workdir, 'ckpt-8', 'ckpt-9')
  line = refuse('--workdir=run')
  assert f'{folder}/ckpt-9 is damaged, and there is no sound one' in line
  assert 'start in another --workdir, or bring back a copy' in line


@pytest.mark.parametrize('name', ['ckpt-8', 'best'])
def test_going_back_to_a_damaged_checkpoint_is_refused(refuse, workdir, name):
  folder = workdir / 'checkpoints' / 'learner'
  _damage(workdir, 'ckpt-8', 'ckpt-9')
  if name == 'best':
    assert 'no best checkpoint' in refuse('--workdir=run', '--checkpoint=best')
    best = {'checkpoint': 'ckpt-8', 'mean_return': 1, 'episodes': 1, 'learner_steps': 1}
    (folder / 'best.json').write_text(json.dumps(best))
  before = sorted(workdir.rglob('*'))
  line = refuse('--workdir=run', f'--checkpoint={name}')
  assert f'{folder}/ckpt-8 is damaged; name another with --checkpoint' in line
  assert line.endswith('there are: ckpt-9')
  assert sorted(workdir.rglob('*')) == before


def test_unknown_checkpoint_is_refused(refuse, workdir):
  line = refuse('--workdir=run', '--checkpoint=ckpt-3')
  assert line.endswith('there are: none')


# Bad input.


@pytest.mark.parametrize(
  ('flags', 'expected'),
  [
    (['--game=pnog'], ["'pnog'", 'did you mean', 'pong']),
    (['--env=CartPol-v1'], ["'CartPol-v1'", 'CartPole']),
    (['--env=no_such_module:Env-v0'], ['no_such_module', 'neither installed nor in']),
    (['--env=Pong-v5'], ['Pong-v5', 'use --game=pong']),
    (['--env=pong'], ["'pong'", 'use --game=pong']),
    (['--env=PongDeterministic-v4'], ['use --game=pong']),
    (['--env=memory/maze'], ["'maze'", 'cue_recall', 't_maze']),
    (['--env=bsuite/memory_len/23'], ["'memory_len/23'", 'memory_len/0 … 22']),
    (['--env=Pendulum-v1'], ['Pendulum-v1', 'continuous actions']),
    (['--game=pong', '--env=CartPole-v1'], ['--game', '--env', 'not both']),
    (
      ['--env=CartPole-v1', '--atari=sticky'],
      ['sticky_actions=0.25, max_noops=0 is for Atari games', 'leave it out'],
    ),
    (['--env=memory/t_maze', '--config.max_noops=3'], ['max_noops=3 is for Atari']),
    (['--atari=machado'], ['machado', 'dqn', 'sticky']),
    (
      ['--config.frame_skip=9', '--config.max_episode_frames=8'],
      ['frame_skip=9', 'max_episode_frames=8'],
    ),
    (['--env=CartPole-v1', '--env_kwargs={size: 9}'], ['{size: 9}', '\'{"size": 9}\'']),
    (['--env=CartPole-v1', '--env_kwargs=[9]'], ['[9]', '\'{"size": 9}\'']),
    (['--env=CartPole-v1', '--env_kwargs={"a": NaN}'], ['NaN is not a number']),
    (['--env=CartPole-v1', '--env_kwargs={"size": 9}'], ['CartPole-v1', "'size'"]),
    (['--env=memory/t_maze', '--env_kwargs={"size": 9}'], ['Gymnasium ids']),
    (['--game=pong', '--env_kwargs={"mode": 1}'], ['--env_kwargs is for --env']),
    (
      ['--env=ALE/Pong-v5', '--env_kwargs={"frameskip": 2}'],
      ['frameskip of an Atari game is --config.frame_skip'],
    ),
    (['pong'], ["'pong'"]),
    (['--gmae=pong'], ["'gmae'", 'game']),
    (['--preset=papre'], ['papre', 'paper']),
    (['--track=comet'], ['comet', 'mlflow', 'wandb']),
    (['--config.bacth_size=8'], ['bacth_size', 'batch_size']),
    (['--config.batch_size=many'], ['batch_size', 'many']),
    (['--config.sequence_period=41'], ['sequence_period=41', 'trace_length=40']),
    (['--config.n_step=41'], ['n_step=41', 'trace_length=40']),
    (
      ['--config.min_replay_size=9'],
      ['min_replay_size=9', 'samples_per_insert=8.0', 'samples_per_insert_tolerance'],
    ),
    (
      ['--config.min_replay_size=10001'],
      ['min_replay_size=10001', 'max_replay_size=10000'],
    ),
    (
      ['--config.max_replay_size=1000000000'],
      ['GiB of memory', 'max_replay_size=1000000000 windows', 'processes', 'lower'],
    ),
    (['--num_actors=100000'], ['GiB for 100003 processes', '--num_actors']),
    (['--max_actor_steps=0'], ['max_actor_steps', '0']),
    (['--max_learner_steps=-1'], ['max_learner_steps', '-1']),
    (['--lp_launch_type=vertex_ai'], ['vertex_ai', 'local_mp, local_mt']),
    (['--checkpoint=ckpt-3'], ['no checkpoint ckpt-3', 'there are: none']),
  ],
  ids=lambda value: ' '.join(value) if value[0].startswith('--') else None,
)
def test_bad_input_is_one_line_that_names_it(refuse, tmp_path, flags, expected):
  line = refuse(*flags)
  assert all(words in line for words in expected), line
  assert not (tmp_path / 'runs').exists()


@pytest.mark.parametrize('kind', tracking.KINDS)
def test_tracker_that_is_not_installed_is_refused(refuse, tmp_path, kind):
  try:
    process.check(kind)
  except ValueError as error:
    assert str(error) in refuse('--env=CartPole-v1', f'--track={kind}')
    assert not (tmp_path / 'runs').exists()
  else:
    pytest.skip('it is installed')


def test_workdir_in_use_is_refused_and_left_as_it_is(refuse, describe, workdir):
  before = (workdir / 'config.json').read_bytes()
  with open(workdir / 'lock', 'r+') as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    line = refuse('--workdir=run')
  assert f'another program runs in {workdir} (process {os.getpid()}): ' in line
  assert (workdir / 'config.json').read_bytes() == before
  describe('--workdir=run')  # free again


def test_ctrl_c_is_no_traceback(start, tmp_path):
  script = tmp_path / 'interrupted.py'
  script.write_text(
    'import os, signal\n'
    'import experiment_flags\n'
    'signal.signal(signal.SIGINT, signal.default_int_handler)\n'
    'experiment_flags.run(lambda: os.kill(os.getpid(), signal.SIGINT))\n'
  )
  assert start(script=script) == Ended(130, '', '')


def test_one_process_is_for_one_actor(start, tmp_path):
  ended = start('--num_actors=2', script=_LAUNCH / 'single_process.py')
  assert ended.code == 2
  assert ended.err == 'error: this program is for num_actors=1, not 2\n'
  assert not (tmp_path / 'runs').exists()


@pytest.mark.parametrize('workdir', ['a_file/run', '/proc/run'])
def test_unwritable_workdir_is_refused(refuse, tmp_path, workdir):
  (tmp_path / 'a_file').touch()
  line = refuse(f'--workdir={workdir}')
  assert f'cannot write in {tmp_path / workdir}' in line


@pytest.mark.parametrize(
  'path',
  [
    *('checkpoints', 'checkpoints/learner', 'logs', 'tb'),
    *('logs/learner', 'logs/actor_1', 'logs/evaluator', 'tb/actor'),
  ],
)
def test_file_in_the_place_of_a_folder_is_refused(refuse, workdir, path):
  before = (workdir / 'config.json').read_bytes()
  shutil.rmtree(workdir / path, ignore_errors=True)
  (workdir / path).parent.mkdir(parents=True, exist_ok=True)
  (workdir / path).touch()
  line = refuse('--workdir=run', '--config.learning_rate=0.5')
  assert f'{workdir / path}' in line
  assert 'Not a directory' in line
  assert (workdir / 'config.json').read_bytes() == before


@pytest.mark.parametrize('make', [os.mkdir, os.mkfifo])
@pytest.mark.parametrize('path', ['sittings.csv', 'actor/logs.csv', 'learner/logs.csv'])
def test_log_that_cannot_be_written_is_refused(refuse, workdir, path, make):
  path = workdir / 'logs' / path
  path.parent.mkdir(exist_ok=True)
  path.unlink(missing_ok=True)
  make(path)
  assert f'cannot write in {path}' in refuse('--workdir=run')


def test_check_of_the_workdir_leaves_nothing(describe, workdir):
  for path in ('checkpoints/learner', 'logs/actor', 'tb/actor'):
    (workdir / path).mkdir(parents=True)
  (workdir / 'logs/actor/logs.csv').write_text('a\n')

  def files() -> list[str]:  # TensorBoard's copy of the config is written again
    return sorted(re.sub(r'tfevents.*', '', str(path)) for path in workdir.rglob('*'))

  before = files()
  describe('--workdir=run')
  assert files() == before
  assert (workdir / 'logs/actor/logs.csv').read_text() == 'a\n'


def test_empty_paths_are_refused(refuse):
  assert "'' cannot be the path of a folder" in refuse('--workdir=')
  assert '--checkpoint= is empty' in refuse('--checkpoint=')


@pytest.mark.parametrize(
  ('workdir', 'expected'),
  [
    ('~no_such_user/run', './~no_such_user/run if that is the name of a folder'),
    ('x/' * 2500, 'give a shorter path'),
    ('x' * 256, 'File name too long'),
  ],
  ids=lambda text: text[:20],
)
def test_workdir_that_cannot_be_is_refused(refuse, tmp_path, workdir, expected):
  before = set(tmp_path.iterdir())
  assert expected in refuse(f'--workdir={workdir}')
  assert {path.name for path in set(tmp_path.iterdir()) - before} <= {'1', '2'}


@pytest.mark.parametrize('name', ['~/[run]*', 'a\nb', '-x\\', 'a\udcffb', '$HOME'])
def test_workdir_may_have_any_name(describe, home, tmp_path, name):
  workdir = describe(f'--workdir={tmp_path}/{name}', '--env=CartPole-v1').workdir
  assert workdir == f'{tmp_path}/{name}'
  assert (pathlib.Path(workdir) / 'config.json').exists()
  assert describe(f'--workdir={name}', '--env=CartPole-v1').workdir == (
    f'{tmp_path}/{name}' if name[0] != '~' else f'{home}{name[1:]}'
  )


def test_a_program_of_its_own_refuses_the_same_way(tmp_path):
  ended = subprocess.run(
    [sys.executable, _LAUNCH / 'single_process.py', '--game=pnog'],
    cwd=tmp_path,
    env=ENVIRON,
    capture_output=True,
    text=True,
  )
  assert ended.returncode == 2
  assert ended.stderr.startswith("error: unknown Atari game 'pnog': did you mean pong")
  assert ended.stderr.count('\n') == 1
  assert ended.stdout == ''
