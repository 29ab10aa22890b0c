"""Bad input is one line that names it, and code 2; what was saved stays as it is."""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests import helpers

# Begins a run, and would return at once if that were not refused.
_BEGIN = """
import experiment_flags
from r2d2_acme import program
def main():
  program.make_program(experiment_flags.from_flags())
  return 0
experiment_flags.run(main)
"""
_TASK = """
import sys
import dm_env, gymnasium, numpy as np
from gymnasium import spaces
not_callable = 3
def raises(seed): raise OSError(f'no simulator\\nat port {seed}')
def exits(seed): sys.exit(3)
def takes_nothing(): pass
def nothing(seed): return None
def number(seed): return 7
class Task(gymnasium.Env):
  def __init__(self, observations, actions):
    self.observation_space, self.action_space = observations, actions
BOX = spaces.Box(0, 1, [3])
def continuous(seed): return Task(BOX, spaces.Box(-1, 1, [2]))
def tuple_actions(seed): return Task(BOX, spaces.Tuple([spaces.Discrete(2)]))
def many_actions(seed): return Task(BOX, spaces.MultiDiscrete([200, 300]))
def binary_actions(seed): return Task(BOX, spaces.MultiBinary(99))
def sequence(seed): return Task(spaces.Dict(a=spaces.Sequence(BOX)), spaces.Discrete(2))
def text(seed): return Task(spaces.Text(5), spaces.Discrete(2))
def empty(seed): return Task(spaces.Box(0, 1, [0]), spaces.Discrete(2))
def no_spaces(seed):
  class Bare(gymnasium.Env): pass
  return Bare()
"""

_FIELDS = {
  **dict.fromkeys(('burn_in_length', 'importance_sampling_exponent'), '-1'),
  **dict.fromkeys(('priority_exponent', 'epsilon_alpha', 'evaluation_period'), '-1'),
  **dict.fromkeys(('checkpoint_keep_period', 'value_rescaling_epsilon'), '-1'),
  **dict.fromkeys(('seed', 'max_restarts', 'max_environment_failures'), '-1'),
  'learner_devices': '-1',
  'max_actions': '0',
  **dict.fromkeys(('trace_length', 'sequence_period', 'frame_stack', 'n_step'), '0'),
  **dict.fromkeys(('batch_size', 'target_update_period', 'max_replay_size'), '0'),
  **dict.fromkeys(('num_actors', 'envs_per_actor', 'variable_update_period'), '0'),
  **dict.fromkeys(('torso_size', 'core_size', 'head_size'), '0'),
  **dict.fromkeys(('max_evaluation_steps', 'num_checkpoints'), '0'),
  **dict.fromkeys(('num_best_episodes', 'max_bad_batches'), '0'),
  **dict.fromkeys(('learning_rate', 'adam_epsilon', 'max_gradient_norm'), 'nan'),
  **dict.fromkeys(('checkpoint_period', 'replay_checkpoint_period'), '0'),
  **dict.fromkeys(('restart_period', 'progress_timeout'), '0'),
  **dict.fromkeys(('discount', 'priority_eta', 'epsilon_base'), '1.5'),
  **dict.fromkeys(('sticky_actions', 'life_loss_discount'), '1.5'),
  **dict.fromkeys(('frame_skip', 'max_episode_frames'), '0'),
  **dict.fromkeys(('max_noops', 'video_period'), '-1'),
  'clip_rewards': 'perhaps',
  'samples_per_insert': '0',
  'actors_per_cacher': '-1',
  'evaluator_epsilon': 'nan',
  'torso_dtype': 'float64',
  'state_strategy': 'learned',
  'conv_channels': '(8,8,0)',
  'recurrent': 'maybe',
}

_FLAGS = [
  ('--seed=one', 'seed'),
  ('--num_actors=1.5', 'num_actors'),
  ('--max_actor_steps=1e6', 'max_actor_steps'),
  ('--config=paper', 'config'),
  ('--config.batch_size=1.5', 'batch_size'),
  ('--config.learner_devices=16', 'lower --config.learner_devices'),
  ('--environment=task', 'write it as my_module:make_environment'),
  ('--environment=task:', 'write it as my_module:make_environment'),
  ('--environment=nowhere:make', 'nowhere'),
  ('--environment=task:none', "no function 'none'"),
  ('--environment=task:not_callable', "no function 'not_callable'"),
  ('--environment=task:raises', 'no simulator at port'),
  ('--environment=task:exits', 'task:exits'),
  ('--environment=task:takes_nothing', 'takes_nothing'),
  ('--environment=task:nothing', 'None'),
  ('--environment=task:number', 'int'),
  ('--environment=task:continuous', 'continuous actions'),
  ('--environment=task:tuple_actions', 'Tuple actions'),
  ('--environment=task:many_actions', '60,000 actions'),
  ('--environment=task:binary_actions', '99 actions at a time'),
  ('--environment=task:sequence', "observations['a'] of a Sequence space"),
  ('--environment=task:text', 'text'),
  ('--environment=task:empty', 'observation'),
  ('--environment=task:no_spaces', 'has no action_space'),
  ('--environment=broken:make', 'SyntaxError'),
  ('--environment=needs:make', 'no_such_package'),
  ('--checkpoint=', 'checkpoint'),
  ('--game=', '--game= is empty'),
  ('--env=', '--env= is empty'),
  ('--environment=', '--environment= is empty'),
  ('--workdir=~nobody-here/run', 'no home folder'),
]


@pytest.fixture
def begin(start, tmp_path):
  """`begin(*flags)` is the one line that a start is refused with."""
  (tmp_path / 'begin.py').write_text(_BEGIN)
  (tmp_path / 'task.py').write_text(_TASK)
  (tmp_path / 'broken.py').write_text('def make(:')
  (tmp_path / 'needs.py').write_text('import no_such_package')

  def begin(*flags: str) -> str:
    ended = start(*flags, script=tmp_path / 'begin.py')
    assert ended.err.startswith('error: '), ended
    assert ended.err.count('\n') == 1, ended
    assert ended.out == ''
    assert ended.code == 2
    return ended.err

  return begin


@pytest.mark.parametrize(('field', 'value'), _FIELDS.items())
def test_value_out_of_bounds_is_refused(begin, tmp_path, field, value):
  assert field in begin(f'--config.{field}={value}')
  assert not (tmp_path / 'runs').exists()


@pytest.mark.parametrize(('flag', 'words'), _FLAGS)
def test_flag_is_refused(begin, tmp_path, flag, words):
  assert words in begin(flag)
  assert not (tmp_path / 'runs').exists()


@pytest.mark.parametrize('name', ['seed', 'num_actors', 'envs_per_actor'])
def test_flags_that_contradict_each_other_are_refused(begin, tmp_path, name):
  line = begin(f'--{name}=1', f'--config.{name}=2')
  assert f'--{name}=1 and --config.{name}=2 contradict each other' in line
  assert not (tmp_path / 'runs').exists()


def test_current_folder_that_was_removed_is_named(tmp_path):
  folder = tmp_path / 'folder'
  folder.mkdir()
  ended = subprocess.run(
    ['sh', '-c', f'rmdir {folder} && exec "$@"', 'sh', sys.executable]
    + [str(helpers.LAUNCH / 'status.py'), f'--workdir={tmp_path}'],
    cwd=folder,
    env={**os.environ, 'PYTHONPATH': f'{helpers.ROOT}:{helpers.LAUNCH}'},
    capture_output=True,
    text=True,
  )
  assert ended.returncode == 2
  assert ended.stderr.splitlines()[-1].startswith('error: the current folder was')
  assert 'Traceback' not in ended.stderr


@pytest.mark.parametrize(
  ('program', 'flag'),
  [
    ('atari_distributed', '--lp_launch_type'),
    ('atari_distributed', '--num_actors'),
    ('single_process', '--env'),
    ('evaluate', '--workdir'),
    ('export', '--checkpoint'),
  ],
)
def test_help_names_the_flags_and_ends_with_0(start, program, flag):
  ended = start('--help', script=helpers.LAUNCH / f'{program}.py')
  assert ended.code == 0
  assert f'  {flag}:' in ended.out
  assert '--track' not in ended.out or program.endswith(('distributed', 'process'))


def _hashes(folder: pathlib.Path) -> dict[str, str]:
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }


def _write(name: str, content: str | bytes):
  data = content if isinstance(content, bytes) else content.encode()

  def write(run: pathlib.Path):
    path = run / name
    if path.is_dir():
      shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)

  return write


def _instead(name: str, make):
  """Puts something else in the place of a file or folder."""

  def replace(run: pathlib.Path):
    path = run / name
    if path.is_dir():
      shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)

  return replace


def _with(**changes):
  """Changes the config of `config.json`; None removes a field."""

  def change(run: pathlib.Path):
    stored = json.loads((run / 'config.json').read_text())
    config = {**stored['config'], **changes}
    stored['config'] = {name: x for name, x in config.items() if x is not None}
    (run / 'config.json').write_text(json.dumps(stored))

  return change


def _of_environment(run: pathlib.Path):
  stored = json.loads((run / 'config.json').read_text())
  stored['environment'] = {'game': 'pong'}
  (run / 'config.json').write_text(json.dumps(stored))


_WORKDIRS = {
  'empty config': (_write('config.json', ''), 'config.json'),
  'half a config': (_write('config.json', '{"config": {"batch'), 'config.json'),
  'binary config': (_write('config.json', b'\xff\xfe\0'), 'config.json'),
  'config of null': (_write('config.json', 'null'), 'config.json'),
  'config of a list': (_write('config.json', '[1]'), 'config.json'),
  'config without parts': (_write('config.json', '{}'), 'config.json'),
  'deep config': (_write('config.json', '[' * 100_000), 'config.json'),
  'config is a folder': (_instead('config.json', os.mkdir), 'config.json'),
  'config is a pipe': (_instead('config.json', os.mkfifo), 'config.json'),
  'config leads nowhere': (
    _instead('config.json', lambda path: path.symlink_to('nowhere')),
    'config.json',
  ),
  'config is gone': (lambda run: (run / 'config.json').unlink(), 'no config.json'),
  'config of another version': (_with(new_field=1), 'new_field'),
  'config with a text': (_with(batch_size='many'), 'batch_size'),
  'config out of bounds': (_with(batch_size=-1), 'batch_size'),
  'config with NaN': (_with(discount=float('nan')), 'discount'),
  'config of another run': (_with(core_size=32), 'core_size=32'),
  'config of another game': (_of_environment, 'game=pong'),
  'logs is a file': (_write('logs', 'x'), 'logs'),
  'a log is a folder': (_instead('logs/actor/logs.csv', os.mkdir), 'logs.csv'),
  'a log is a pipe': (_instead('logs/learner/logs.csv', os.mkfifo), 'logs.csv'),
  'sittings is a folder': (_instead('logs/sittings.csv', os.mkdir), 'sittings.csv'),
  'tb is a file': (_write('tb', 'x'), 'tb'),
  'tb of a node is a file': (_write('tb/learner', 'x'), 'tb/learner'),
  'lock is a folder': (_instead('lock', os.mkdir), 'lock'),
  'status is a folder': (_instead('status.json', os.mkdir), 'status.json'),
  'new config is a folder': (_instead('config.json.new', os.mkdir), 'config.json'),
}
# Found once the checkpoints have been read: these must be sound, or not there.
_AFTER_THE_CHECKPOINTS = ('new config is a folder',)
_RUN = ('--env=memory/cue_recall/5', '--preset=memory', '--workdir=run')


@pytest.fixture
def run(start, tmp_path) -> pathlib.Path:
  """The workdir of a run."""
  (tmp_path / 'begin.py').write_text(_BEGIN)
  ended = start(*_RUN, script=tmp_path / 'begin.py')
  assert (ended.code, ended.err) == (0, '')
  return tmp_path / 'run'


@pytest.mark.parametrize('case', _WORKDIRS)
def test_workdir_is_refused_and_keeps_its_checkpoints(begin, run, case):
  damage, words = _WORKDIRS[case]
  if case not in _AFTER_THE_CHECKPOINTS:
    folder = run / 'checkpoints' / 'learner'
    folder.mkdir(parents=True, exist_ok=True)
    for name in ('checkpoint', 'ckpt-1.index', 'ckpt-1.data-00000-of-00001'):
      (folder / name).write_text(f'that of {name}')
  damage(run)
  before = _hashes(run / 'checkpoints')
  line = begin(*_RUN)
  assert words in line, line
  assert _hashes(run / 'checkpoints') == before


@pytest.mark.parametrize('case', ['full', 'read-only'])
def test_file_system_that_takes_nothing_is_refused(begin, run, case):
  kept = run.rename(run.with_name('kept'))
  run.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'none', str(run)]
  if subprocess.run(mount, capture_output=True).returncode:
    pytest.skip('may not mount')
  try:
    shutil.copytree(kept, run, dirs_exist_ok=True)
    before = _hashes(run)
    if case == 'full':
      with pytest.raises(OSError, match='No space'):
        (run / 'filler').write_bytes(bytes(1 << 20))
    else:
      subprocess.run(['mount', '-o', 'remount,ro', str(run)], check=True)
    line = begin(*_RUN)
    assert {'full': 'but there are 0 MiB', 'read-only': 'Read-only'}[case] in line
    assert 'give another --workdir' in line
    if case == 'full':
      (run / 'filler').unlink()
    assert _hashes(run) == before
  finally:
    subprocess.run(['umount', '--lazy', str(run)], check=True)
