"""`launch/sweep.py`: which runs it starts, skips and resumes, and its table."""

import csv
import dataclasses
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import acme
import numpy as np
import pytest
import sweep
from studies import scoring, sweep_flags, sweeping

from r2d2_acme import tracking
from r2d2_acme.builder import R2D2Builder
from r2d2_acme.environments import make_atari
from r2d2_acme.results import atari_scores, score_table
from r2d2_acme.tracking import process
from r2d2_acme.workdir import checkpointing, saving
from tests import helpers

_LAUNCH = helpers.LAUNCH

# Replaces launch/atari_distributed.py: records its arguments and leaves a checkpoint
# with the given number of steps.
_PROGRAM = """
import json, os, shutil, signal, sys, time
flags = dict(flag.lstrip('-').split('=', 1) for flag in sys.argv[1:])
os.makedirs(flags['workdir'], exist_ok=True)
if not os.path.exists(os.path.join(flags['workdir'], 'config.json')):
  with open(os.path.join(flags['workdir'], 'config.json'), 'w') as file:
    json.dump(dict(environment=dict(game=flags['game']), config=dict()), file)
def log(*words):
  with open({log!r}, 'a') as file:
    print(*words, file=file)
varied = [flags[x] for x in ('config.n_step', 'num_actors') if x in flags]
log(flags['game'], flags['max_actor_steps'], flags['seed'], *varied)
if flags['game'] in {slow!r}:
  def stop(*_):
    log('asked')
    time.sleep(1.5)
    log('saved')
    sys.exit(0)
  signal.signal(signal.SIGTERM, stop)
  log('playing')
  for _ in range(600):
    time.sleep(0.1)  # a signal just before a sleep is handled after it
code = {codes!r}.get(flags['game'], 0)
if code != 2:
  steps = {steps!r}.get(flags['game'], 0 if code else int(flags['max_actor_steps']))
  checkpoints = os.path.join(flags['workdir'], 'checkpoints')
  shutil.rmtree(checkpoints, ignore_errors=True)
  shutil.copytree(os.path.join({saved!r}, str(steps), 'checkpoints'), checkpoints)
sys.exit(code)
"""


@pytest.fixture(scope='module')
def saved(tmp_path_factory) -> pathlib.Path:
  """Workdirs with a checkpoint each; a workdir's name is the actor steps in it."""
  folder = tmp_path_factory.mktemp('saved')
  config = helpers.make_config()
  learner = R2D2Builder(config, helpers.make_spec(image=False)).make_learner(iter(()))
  for steps in (0, 1, 9, 99, 100, 200):
    checkpointer = saving.Checkpointer(str(folder / str(steps)), learner, {}, config)
    checkpointer.save({'actor_steps': steps}, force=True)
  return folder


@pytest.fixture
def run(saved, tmp_path, monkeypatch):
  """`run(*flags, codes=…)` runs the sweep; returns its code and what its runs log.

  A run's program ends with code 0 and a checkpoint at the limit, unless its game has
  an entry in `codes` or `steps`. The programs of `slow` games wait to be stopped.
  """
  log = tmp_path / 'log'
  monkeypatch.setattr(sweeping, 'PROGRAMS', tmp_path)
  monkeypatch.setattr(sweeping, 'check', lambda runs, training: 0)
  monkeypatch.setattr(scoring, 'play', lambda *unused: ([], []))
  # Runs in this process, which has already imported TensorFlow.
  monkeypatch.setattr(sweeping, '_in_process', lambda read, argument: read(argument))

  def run(*flags: str, codes=(), steps=(), slow=()):
    log.write_text('')
    (tmp_path / 'atari_distributed.py').write_text(
      _PROGRAM.format(
        log=str(log),
        codes=dict(codes),
        steps=dict(steps),
        slow=slow,
        saved=str(saved),
      )
    )
    try:
      code = sweep.main([f'--workdir={tmp_path}/sweep', *flags])
    except SystemExit as error:
      code = error.code
    return code, log.read_text().splitlines()

  return run


def _log(tmp_path: pathlib.Path) -> list[str]:
  return (tmp_path / 'log').read_text().splitlines()


def test_each_game_seed_and_setting_has_a_run_of_its_own(run, tmp_path):
  flags = ('--games=MsPacman,pong', '--seeds=2', '--max_actor_steps=100')
  settings = ('--set=config.n_step=3,5', '--set=num_actors=1')
  _, started = run(*flags, *settings)
  assert started == [
    f'{game} 100 {seed} {n_step} 1'
    for seed in (0, 1)
    for game in ('ms_pacman', 'pong')
    for n_step in (3, 5)
  ]
  workdirs = {x.parent.relative_to(tmp_path) for x in tmp_path.rglob('config.json')}
  assert pathlib.Path('sweep/pong/n_step=5,num_actors=1/1') in workdirs
  assert len(workdirs) == 8


def test_values_are_split_at_the_commas_between_tuples():
  args, flags = sweep_flags._make_parser('sweep', None).parse_known_args(
    ['--max_actor_steps=1', '--set', 'config.conv_channels=(8,8,8),(4,4,4)']
  )
  sweep_flags._check(args, flags)
  assert args.set == {'config.conv_channels': ['(8,8,8)', '(4,4,4)']}


def test_several_runs_at_once(run, tmp_path, capfd):
  flags = ('--games=pong,qbert,hero', '--max_actor_steps=9', '--jobs=3')
  code, started = run(*flags, codes={'qbert': 1})
  assert code == 1
  assert sorted(started) == ['hero 9 0', 'pong 9 0', 'qbert 9 0']
  out, err = capfd.readouterr()
  assert f'qbert/0: not finished, code 1, see {tmp_path}/sweep/qbert_0.txt' in out
  assert err == 'error: failed: qbert/0\n'


def test_run_whose_program_refuses_ends_no_other(run, capfd):
  flags = ('--games=pong,breakout', '--max_actor_steps=100')
  code, started = run(*flags, codes={'pong': 2})
  assert (code, started) == (1, ['pong 100 0', 'breakout 100 0'])
  assert capfd.readouterr().err == 'error: failed: pong/0\n'


@pytest.mark.parametrize('name', scoring.FILES)
def test_table_that_cannot_be_written_is_refused_before_training(
  run, tmp_path, capsys, name
):
  (tmp_path / 'sweep' / name).mkdir(parents=True)
  assert run('--games=pong', '--max_actor_steps=100') == (2, [])
  assert f'cannot write in {tmp_path}/sweep/{name}' in capsys.readouterr().err


def test_run_that_has_its_steps_is_skipped_until_more_are_asked_for(run):
  games = '--games=pong,breakout'
  code, _ = run(games, '--max_actor_steps=100', codes={'breakout': 1})
  assert code == 1
  assert run(games, '--max_actor_steps=100')[1] == ['breakout 100 0']
  assert run(games, '--max_actor_steps=100')[1] == []
  assert run(games, '--max_actor_steps=50')[1] == []
  assert run(games, '--max_actor_steps=200')[1] == ['pong 200 0', 'breakout 200 0']
  assert run(games, '--max_actor_steps=200', '--seeds=2')[1] == [
    'pong 200 1',
    'breakout 200 1',
  ]


@pytest.mark.parametrize('steps', [0, 99])
def test_run_whose_program_was_merely_stopped_is_not_done(run, capfd, steps):
  flags = ('--games=pong', '--max_actor_steps=100')
  code, _ = run(*flags, steps={'pong': steps})  # with code 0
  assert code == 1
  assert capfd.readouterr().err == 'error: failed: pong/0\n'
  assert run(*flags)[1] == ['pong 100 0']


def test_run_is_done_by_its_steps_however_its_program_ended(run, capfd):
  flags = ('--games=pong', '--max_actor_steps=100')
  run(*flags, codes={'pong': 1}, steps={'pong': 100})
  out, err = capfd.readouterr()
  assert 'pong/0: finished' in out
  assert 'failed' not in err
  assert run(*flags)[1] == []


def test_run_whose_checkpoints_are_gone_is_not_done(run, tmp_path):
  flags = ('--games=pong', '--max_actor_steps=100')
  run(*flags)
  shutil.rmtree(tmp_path / 'sweep/pong/0/checkpoints')
  assert run(*flags)[1] == ['pong 100 0']


@pytest.fixture
def playing(run, tmp_path):
  """A sweep in another process, of which qbert and hero play until it is stopped."""
  run('--games=pong', '--max_actor_steps=1', slow=('qbert', 'hero'))
  code = (
    f'import pathlib, sys; sys.path.insert(0, {str(_LAUNCH)!r})\n'
    'import sweep; from studies import sweeping\n'
    f'sweeping.PROGRAMS = pathlib.Path({str(tmp_path)!r})\n'
    'sweeping.check = lambda runs, training: 0\n'
    'sys.exit(sweep.main(sys.argv[1:]))'
  )
  flags = [f'--workdir={tmp_path}/sweep', '--games=qbert,hero,alien', '--jobs=2']
  with subprocess.Popen(
    [sys.executable, '-c', code, *flags, '--max_actor_steps=1'],
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    helpers.wait_until(lambda: _log(tmp_path).count('playing') == 2, timeout=60)
    yield process
    process.kill()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_stops_the_runs_which_are_resumed_next_time(
  run, playing, tmp_path, number
):
  """The signal arrives once, or twice within a moment as one request."""
  playing.send_signal(number)
  time.sleep(0.05)
  playing.send_signal(number)
  out = playing.stdout.read()
  assert playing.wait() == 0
  assert out.endswith('stopped: start again with the same --workdir to continue\n')
  log = _log(tmp_path)
  assert (log.count('asked'), log.count('saved')) == (2, 2)
  assert 'alien 1 0' not in log
  flags = ('--games=qbert,hero', '--max_actor_steps=1')
  assert run(*flags)[1] == ['qbert 1 0', 'hero 1 0']


def test_second_signal_reaches_the_runs_too(playing, tmp_path):
  playing.send_signal(signal.SIGINT)
  helpers.wait_until(lambda: _log(tmp_path).count('asked') == 2)
  time.sleep(0.4)
  playing.send_signal(signal.SIGINT)
  assert playing.wait() == 130
  assert _log(tmp_path).count('asked') == 4


def test_runs_save_when_the_sweep_is_killed(playing, tmp_path):
  playing.kill()
  helpers.wait_until(lambda: _log(tmp_path).count('saved') == 2)


@pytest.mark.parametrize(
  ('flags', 'expected'),
  [
    (['--games=pong'], '--max_actor_steps='),
    (['--max_actor_steps=5'], 'give --games=, --suite=, --env= or --environment='),
    (['--games=pong', '--env=CartPole-v1'], 'not allowed with'),
    (['--games=pnog', '--collect'], "'pnog' is not one of the 57"),
    (['--suite=atari4', '--collect'], 'atari4'),
    (['--max_actor_steps=5', '--game=pong'], "'--game=pong' cannot be used"),
    (['--max_actor_steps=5', '--seed=5'], "'--seed=5' cannot be used"),
    (['--max_actor_steps=5', '--set=seed=5'], "'seed=5' cannot be used"),
    (['--max_actor_steps=5', '--set=config.n_step'], 'give values, such as'),
    (['--max_actor_steps=5', '--set=config.n_step=1,'], 'give values, such as'),
    (['--collect', '--num_actors=5'], "'--num_actors=5' cannot be used"),
    (
      ['--max_actor_steps=5', '--set=config.n_step=1,2', '--config.n_step=3'],
      'config.n_step is given twice',
    ),
    (
      ['--max_actor_steps=5', '--set=num_actors=1', '--set=config.num_actors=2'],
      'config.num_actors is given twice',
    ),
    (['--max_actor_steps=5', '--env=CartPole-v1,'], '--env has an empty name'),
    (['--max_actor_steps=5', '--max_learner_steps=5'], 'cannot be used here'),
    (['--collect', '--episodes=0'], '--episodes'),
    (['--max_actor_steps=many'], 'max_actor_steps'),
    (['--suite=atari3', '--collect'], 'has a checkpoint yet'),
  ],
)
def test_refusal_is_one_line_and_code_2(run, capfd, flags, expected):
  code, started = run(*flags)
  assert (code, started) == (2, [])
  error = capfd.readouterr().err
  assert error.startswith('error: ')
  assert error.count('\n') == 1
  assert expected in error


def _run_program(name: str, *flags: str, cwd=None) -> subprocess.CompletedProcess:
  command = [sys.executable, str(_LAUNCH / name), *flags]
  return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def _is_installed(kind: str) -> bool:
  try:
    process.check(kind)
  except ValueError:
    return False
  return True


# The first seeds of an evaluation fail, those of training do not.
_FAILING = """
import sys
from r2d2_acme.environments import make_cue_recall

def make_sound(seed):
  return make_cue_recall(1, seed=seed)

def make_failing(seed):
  environment = make_sound(seed)
  if 'sweep.py' in sys.argv[0]:
    step = environment.step
    environment.step = lambda action: step(action) if action is None else 1 / 0
  return environment
"""


def test_value_that_cannot_work_is_refused_before_any_run(tmp_path):
  ended = _run_program(
    'sweep.py',
    '--env=memory/cue_recall/1',
    '--set=config.n_step=3,0',
    '--max_actor_steps=100',
    f'--workdir={tmp_path}',
  )
  assert ended.returncode == 2
  assert ended.stderr.startswith('error: ')
  assert ended.stderr.count('\n') == 1
  assert 'n_step' in ended.stderr
  assert not list(tmp_path.iterdir())


def test_run_of_an_earlier_version_is_not_taken_for_a_folder(run, tmp_path, capfd):
  (tmp_path / 'sweep' / 'pong').mkdir(parents=True)
  (tmp_path / 'sweep' / 'pong' / 'config.json').write_text('{}')
  flags = ('--games=pong', '--max_actor_steps=5', f'--workdir={tmp_path / "sweep"}')
  assert run(*flags) == (2, [])
  assert 'is a run, and not a folder of one run for each seed' in capfd.readouterr().err


@pytest.mark.parametrize('kind', sorted(tracking.KINDS))
def test_tracked_sweep_is_refused_only_where_the_tracker_is_missing(tmp_path, kind):
  if _is_installed(kind):
    pytest.skip(f'{kind} is installed')
  ended = _run_program(
    *('sweep.py', '--env=CartPole-v1', '--single_process', '--max_actor_steps=5'),
    *(f'--track={kind}', f'--workdir={tmp_path}'),
  )
  assert 'is not installed; cure' in ended.stderr


def test_run_whose_environment_fails_costs_no_other_its_score(tmp_path):
  (tmp_path / 'failing.py').write_text(_FAILING)
  flags = (
    *('--single_process', '--environment=failing:make_sound,failing:make_failing'),
    *('--preset=memory', '--max_actor_steps=60', '--episodes=1', '--noevaluator'),
    *(f'--workdir={tmp_path / "sweep"}',),
  )
  ended = _run_program('sweep.py', *flags, cwd=tmp_path)
  assert ended.returncode == 1, (ended.stdout, ended.stderr)
  assert 'failed: failing:make_failing/0' in ended.stderr
  assert 'Traceback' not in ended.stderr
  (row,) = score_table.read(tmp_path / 'sweep' / scoring.SCORES)
  assert row.task == 'failing:make_sound'


def test_environment_is_trained_scored_and_skipped_the_next_time(tmp_path):
  flags = (
    *('--single_process', '--env=memory/cue_recall/1', '--seeds=2', '--jobs=2'),
    *('--preset=memory', '--max_actor_steps=60', '--episodes=2'),
    f'--workdir={tmp_path}',
  )
  ended = _run_program('sweep.py', *flags)
  assert ended.returncode == 0, (ended.stdout, ended.stderr)
  assert '0 of 2 runs are done' in ended.stdout
  rows = score_table.read(tmp_path / scoring.SCORES)
  assert [(r.task, r.setting, r.seed) for r in rows] == [
    ('memory/cue_recall/1', '', seed) for seed in (0, 1)
  ]
  assert np.isnan(rows[0].human_normalized)
  ended = _run_program('sweep.py', *flags)
  assert '2 of 2 runs are done' in ended.stdout
  assert 'playing' not in ended.stdout


def test_suite_of_the_program_is_for_sweeps_that_name_no_tasks():
  parser = sweep_flags._make_parser('atari57', None)
  for flags, games in (
    ([], list(atari_scores.GAMES)),
    (['--games=qbert,Pong,pong'], ['qbert', 'pong']),
    (['--suite=atari3'], ['battle_zone', 'name_this_game', 'phoenix']),
  ):
    args = parser.parse_args(flags)
    assert sweep_flags._tasks(args, 'atari57') == [('game', game) for game in games]
    assert args.workdir.endswith('runs/atari57')


def test_importing_the_program_does_not_import_tensorflow():
  """Its memory is needed while runs train."""
  code = (
    f'import sys; sys.path.insert(0, {str(_LAUNCH)!r}); import sweep\n'
    'assert "tensorflow" not in sys.modules'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


# Scores.


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> pathlib.Path:
  """A sweep in which pong has a checkpoint of an untrained network."""
  folder = tmp_path_factory.mktemp('sweep')
  config = helpers.make_config()
  learner = R2D2Builder(
    config, acme.make_environment_spec(make_atari('pong'))
  ).make_learner(iter(()))
  workdir = folder / 'pong' / '0'
  saving.Checkpointer(str(workdir), learner, {}, config).save(
    {'actor_frames': 12}, force=True
  )
  stored = {'environment': {'game': 'pong'}, 'config': dataclasses.asdict(config)}
  (workdir / 'config.json').write_text(json.dumps(stored))
  return folder


def _collect(folder: pathlib.Path, capsys) -> tuple[str, list[str]]:
  """Returns the whole output and the cells of pong."""
  flags = ['--collect', '--suite=atari57', f'--workdir={folder}', '--episodes=1']
  assert sweep.main(flags) == 0
  out = capsys.readouterr().out
  (line,) = [line for line in out.splitlines() if line.startswith('│ pong')]
  return out, [cell.strip() for cell in line.strip('│').split('│')]


def test_collected_score_is_of_episodes_that_were_played_once(
  trained, capsys, monkeypatch
):
  monkeypatch.setenv('COLUMNS', '200')
  out, cells = _collect(trained, capsys)
  assert 'pong/0: playing 1 episodes' in out
  with open(trained / 'scores.csv', newline='') as file:
    (row,) = csv.DictReader(file)
  value = float(row['mean_return'])
  assert -21 <= value < -10  # the network is untrained
  assert value == int(value)
  normalized = (value + 20.7) / 35.3
  assert float(row['human_normalized']) == pytest.approx(normalized, abs=1e-5)
  assert (row['task'], row['seed'], row['checkpoint'], row['actor_frames']) == (
    *('pong', '0', 'ckpt-1', '12'),
  )
  assert cells == [
    *('pong', '1', f'{value:.1f}', f'{100 * normalized:.1f} %', '21.0', '118.1 %'),
    *('0.0', 'paper'),
  ]
  out, again = _collect(trained, capsys)
  assert again == cells
  assert 'playing' not in out
  assert (trained / 'profiles.png').read_bytes().startswith(b'\x89PNG')


def test_checkpoint_of_the_same_name_is_played_when_it_is_another(trained, capsys):
  path = trained / scoring.SCORES
  _collect(trained, capsys)
  (row,) = score_table.read(path)
  score_table.write(path, [dataclasses.replace(row, learner_steps=5)])
  assert 'pong/0: playing' in _collect(trained, capsys)[0]


def test_score_is_of_the_best_checkpoint_if_asked_for(trained):
  folder = pathlib.Path(checkpointing.directory(str(trained / 'pong/0')))
  for path in folder.glob('ckpt-1.*'):
    shutil.copy(path, folder / path.name.replace('ckpt-1', 'ckpt-2'))
  best = {'checkpoint': 'ckpt-1', 'mean_return': 3.0, 'episodes': 1, 'learner_steps': 0}
  (folder / 'best.json').write_text(json.dumps(best))
  try:
    for flags, name in (([], 'ckpt-2'), (['--checkpoint=best'], 'ckpt-1')):
      arguments = ['--collect', '--games=pong', f'--workdir={trained}', '--episodes=1']
      assert sweep.main([*arguments, *flags]) == 0
      (row,) = score_table.read(trained / scoring.SCORES)
      assert row.checkpoint == name
  finally:
    for path in [folder / 'best.json', *folder.glob('ckpt-2.*')]:
      path.unlink()


def test_corrupt_checkpoint_is_said_and_the_other_games_are_in_the_table(
  trained, capsys
):
  folder = trained / 'alien/0/checkpoints/learner'
  folder.mkdir(parents=True)
  (folder / 'ckpt-1.index').write_bytes(b'corrupt')
  flags = ['--collect', '--suite=atari57', f'--workdir={trained}', '--episodes=1']
  with pytest.raises(SystemExit) as exit_:
    sweep.main(flags)
  assert exit_.value.code == 1
  out, err = capsys.readouterr()
  assert 'pong' in out
  first, last = err.splitlines()
  assert first == f'alien/0: checkpoint {folder}/ckpt-1 is damaged'
  assert last == 'error: failed: alien/0'
