"""`launch/atari57.py`: which games it starts, skips and resumes, and its table."""

import csv
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import acme
import atari57
import pytest

from r2d2_acme.builder import R2D2Builder
from r2d2_acme.environments import make_atari
from r2d2_acme.results import atari_scores, atari_table
from r2d2_acme.workdir import checkpointing, saving
from tests import helpers

_LAUNCH = helpers.LAUNCH

# Replaces launch/atari_distributed.py: records its arguments and leaves a checkpoint
# with the given number of steps.
_PROGRAM = """
import json, os, shutil, signal, sys, time
flags = dict(flag.lstrip('-').split('=') for flag in sys.argv[1:])
os.makedirs(flags['workdir'], exist_ok=True)
if not os.path.exists(os.path.join(flags['workdir'], 'config.json')):
  with open(os.path.join(flags['workdir'], 'config.json'), 'w') as file:
    json.dump(dict(environment=dict(game=flags['game']), config=dict()), file)
with open({log!r}, 'a') as file:
  print(flags['game'], flags['max_actor_steps'], flags.get('seed'), file=file)
if flags['game'] in {slow!r}:
  def stop(*_):
    with open({log!r}, 'a') as file:
      print('asked', file=file)
    time.sleep(1.5)
    with open({log!r}, 'a') as file:
      print('saved', file=file)
    sys.exit(0)
  signal.signal(signal.SIGTERM, stop)
  print('playing', flush=True)
  time.sleep(60)
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
def suite(saved, tmp_path, monkeypatch):
  """`suite(*flags, codes=…)` runs the suite; returns its code and the games it started.

  A game's program ends with code 0 and a checkpoint at the limit, unless the game has
  an entry in `codes` or `steps`. The programs of `slow` games wait to be stopped.
  """
  log = tmp_path / 'log'
  monkeypatch.setattr(atari57, '_PROGRAM', tmp_path / 'program.py')
  monkeypatch.setattr(atari57, '_collect', lambda args: ([], []))
  # Runs in this process, which has already imported TensorFlow.
  monkeypatch.setattr(atari57, '_in_process', lambda read, argument: read(argument))

  def suite(*flags: str, codes=(), steps=(), slow=()):
    log.write_text('')
    (tmp_path / 'program.py').write_text(
      _PROGRAM.format(
        log=str(log),
        codes=dict(codes),
        steps=dict(steps),
        slow=slow,
        saved=str(saved),
      )
    )
    try:
      code = atari57.main([f'--workdir={tmp_path}/suite', *flags])
    except SystemExit as error:
      code = error.code
    return code, log.read_text().split('\n')[:-1]

  return suite


def test_games_run_one_after_the_other_with_the_flags_given(suite):
  _, started = suite('--games=MsPacman,pong', '--max_actor_steps=100', '--seed=3')
  assert started == ['ms_pacman 100 3', 'pong 100 3']


def test_all_57_run_by_default(suite):
  _, started = suite('--max_actor_steps=5', codes={'alien': 2})
  assert started == ['alien 5 None']
  arguments, _ = atari57._parse(['--collect'])
  assert arguments.games == list(atari_scores.GAMES)


def _damage(workdir: pathlib.Path):
  folder = workdir / 'checkpoints/learner'
  folder.mkdir(parents=True)
  (folder / 'ckpt-1.index').write_bytes(b'corrupt')


@pytest.mark.parametrize(
  'damage',
  [
    _damage,
    lambda workdir: (workdir / 'config.json').mkdir(parents=True),
    lambda workdir: (workdir / 'logs/sittings.csv').mkdir(parents=True),
  ],
  ids=['checkpoint', 'config', 'log'],
)
def test_game_whose_workdir_is_refused_ends_no_other(suite, tmp_path, capsys, damage):
  damage(tmp_path / 'suite' / 'pong')
  flags = ('--games=pong,breakout', '--max_actor_steps=100')
  code, started = suite(*flags, codes={'pong': 2})
  assert code == 1
  assert started == ['pong 100 None', 'breakout 100 None']
  err = capsys.readouterr().err
  assert f'launch/atari_distributed.py --workdir={tmp_path}/suite/pong' in err
  assert err.endswith('error: failed: pong\n')


def test_bad_flags_end_the_suite_at_once(suite):
  code, started = suite(
    '--games=pong,breakout', '--max_actor_steps=100', codes={'pong': 2, 'breakout': 2}
  )
  assert (code, started) == (2, ['pong 100 None'])


@pytest.mark.parametrize('make', [pathlib.Path.mkdir, lambda path: os.mkfifo(path)])
def test_table_that_cannot_be_written_is_refused_before_training(
  suite, tmp_path, capsys, make
):
  (tmp_path / 'suite').mkdir()
  make(tmp_path / 'suite/scores.csv')
  assert suite('--games=pong', '--max_actor_steps=100') == (2, [])
  assert f'cannot write in {tmp_path}/suite/scores.csv' in capsys.readouterr().err


@pytest.mark.parametrize(
  'damage', [b'\xff\xfe', b'\0', b'x' * 200_000, b'"', b'pong,1'], ids=lambda x: x[:6]
)
def test_damaged_line_of_the_table_is_none(tmp_path, damage):
  path = tmp_path / 'scores.csv'
  rows = [_row('alien', 0.5), _row('pong', 0.25)]
  atari_table.write(str(path), rows)
  header, first, *others = path.read_bytes().splitlines()
  path.write_bytes(b'\r\n'.join([header, first, damage, *others]))
  assert atari_table.read(str(path)) == rows
  path.write_bytes(damage)
  assert atari_table.read(str(path)) == []


def test_game_that_has_its_steps_is_skipped_until_more_are_asked_for(suite):
  games = '--games=pong,breakout'
  code, _ = suite(games, '--max_actor_steps=100', codes={'breakout': 1})
  assert code == 1
  assert suite(games, '--max_actor_steps=100')[1] == ['breakout 100 None']
  assert suite(games, '--max_actor_steps=100')[1] == []
  assert suite(games, '--max_actor_steps=50')[1] == []
  assert suite(games, '--max_actor_steps=200')[1] == [
    'pong 200 None',
    'breakout 200 None',
  ]


@pytest.mark.parametrize('steps', [0, 99])
def test_game_whose_program_was_merely_stopped_is_not_done(suite, capfd, steps):
  flags = ('--games=pong', '--max_actor_steps=100')
  code, _ = suite(*flags, steps={'pong': steps})  # with code 0
  assert code == 1
  assert capfd.readouterr().err.splitlines() == [
    f'pong: was stopped after {steps} steps',
    'error: failed: pong',
  ]
  assert suite(*flags)[1] == ['pong 100 None']


def test_game_is_done_by_its_steps_however_its_program_ended(suite, capfd):
  flags = ('--games=pong', '--max_actor_steps=100')
  suite(*flags, codes={'pong': 1}, steps={'pong': 100})
  assert 'failed' not in capfd.readouterr().err
  assert suite(*flags)[1] == []


def test_game_whose_checkpoints_are_gone_is_not_done(suite, tmp_path):
  flags = ('--games=pong', '--max_actor_steps=100')
  suite(*flags)
  shutil.rmtree(tmp_path / 'suite' / 'pong' / 'checkpoints')
  assert suite(*flags)[1] == ['pong 100 None']


def test_a_games_failure_is_told_at_the_end_and_bad_input_at_once(suite, capfd):
  flags = ('--games=pong,qbert,hero', '--max_actor_steps=9')
  code, started = suite(*flags, codes={'pong': 1, 'hero': 1})
  assert (code, len(started)) == (1, 3)
  assert capfd.readouterr().err.splitlines() == ['error: failed: pong, hero']
  code, started = suite(*flags, codes={'pong': 2})
  assert (code, len(started)) == (2, 1)


@pytest.fixture
def playing(suite, tmp_path):
  """A suite in another process, which plays qbert until it is stopped."""
  suite('--games=pong', '--max_actor_steps=1', slow=('qbert',))
  code = (
    f'import sys; sys.path.insert(0, {str(_LAUNCH)!r}); import atari57\n'
    f'atari57._PROGRAM = {str(tmp_path / "program.py")!r}\n'
    'sys.exit(atari57.main(sys.argv[1:]))'
  )
  flags = [f'--workdir={tmp_path}/suite', '--games=qbert,hero', '--max_actor_steps=1']
  with subprocess.Popen(
    [sys.executable, '-c', code, *flags], stdout=subprocess.PIPE, text=True
  ) as process:
    lines = [process.stdout.readline() for _ in range(2)]
    assert lines[1] == 'playing\n'
    yield process
    process.kill()


def _log(tmp_path: pathlib.Path) -> list[str]:
  return (tmp_path / 'log').read_text().splitlines()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_stops_the_game_which_is_resumed_next_time(
  suite, playing, tmp_path, number
):
  """The signal arrives once, or twice within a moment as one request."""
  playing.send_signal(number)
  time.sleep(0.05)
  playing.send_signal(number)
  out = playing.stdout.read()
  assert playing.wait() == 0
  assert out.startswith('stopped: start again')
  assert _log(tmp_path) == ['pong 1 None', 'qbert 1 None', 'asked', 'saved']
  flags = ('--games=qbert,hero', '--max_actor_steps=1')
  assert suite(*flags)[1] == ['qbert 1 None', 'hero 1 None']


def test_second_signal_reaches_the_game_too(playing, tmp_path):
  playing.send_signal(signal.SIGINT)
  helpers.wait_until(lambda: 'asked' in _log(tmp_path))
  time.sleep(0.4)
  playing.send_signal(signal.SIGINT)
  assert playing.wait() == 130
  assert _log(tmp_path).count('asked') == 2


def test_game_saves_when_the_suite_is_killed(playing, tmp_path):
  playing.kill()
  helpers.wait_until(lambda: 'saved' in _log(tmp_path))


@pytest.mark.parametrize(
  ('flags', 'expected'),
  [
    (['--games=pong'], '--max_actor_steps='),
    (['--games=pnog', '--collect'], "'pnog' is not one of the 57"),
    (['--max_actor_steps=5', '--game=pong'], "'--game=pong' cannot be used"),
    (['--collect', '--num_actors=5'], "'--num_actors=5' cannot be used"),
    (['--max_actor_steps=5', '--max_learner_steps=5'], 'cannot be used here'),
    (['--collect', '--episodes=0'], '--episodes'),
    (['--max_actor_steps=many'], 'many'),
    (['--collect'], 'has a checkpoint yet'),
  ],
)
def test_refusal_is_one_line_and_code_2(suite, capfd, flags, expected):
  code, started = suite(*flags)
  assert (code, started) == (2, [])
  error = capfd.readouterr().err
  assert error.startswith('error: ')
  assert error.count('\n') == 1
  assert expected in error


# The table.


def _row(game: str, normalized: float) -> atari_table.Row:
  scores = atari_scores.GAMES[game]
  value = scores.random + normalized * (scores.human - scores.random)
  return atari_table.Row(
    game,
    value,
    normalized,
    scores.paper,
    atari_scores.human_normalized(game, scores.paper),
    10,
    'paper',
    'ckpt-3',
    7,
    8,
  )


def test_median_and_mean_are_over_the_same_games_for_both():
  summary = atari_table.summarize(
    [_row('pong', 0.5), _row('hero', 3), _row('qbert', 1)]
  )
  paper = [41.7 / 35.3, 38510.1 / 29799.4, 408686.1 / 13291.1]
  assert summary['median'] == pytest.approx((1, paper[1]))
  assert summary['mean'] == pytest.approx((1.5, sum(paper) / 3))


def test_table_comes_back_from_its_file_without_the_summary(tmp_path):
  rows = [_row('pong', 0.5), _row('hero', -1 / 3)]
  path = str(tmp_path / 'scores.csv')
  atari_table.write(path, rows)
  assert atari_table.read(path) == rows
  with open(path, newline='') as file:
    last = list(csv.DictReader(file))[-2:]
  assert [line['game'] for line in last] == ['median', 'mean']
  assert float(last[1]['human_normalized']) == pytest.approx((0.5 - 1 / 3) / 2)
  assert float(last[1]['paper_human_normalized']) == pytest.approx(
    (41.7 / 35.3 + 38510.1 / 29799.4) / 2
  )


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> pathlib.Path:
  """A suite in which pong has a checkpoint of an untrained network."""
  folder = tmp_path_factory.mktemp('suite')
  config = helpers.make_config()
  learner = R2D2Builder(
    config, acme.make_environment_spec(make_atari('pong'))
  ).make_learner(iter(()))
  saving.Checkpointer(str(folder / 'pong'), learner, {}, config).save(
    {'actor_frames': 12}, force=True
  )
  stored = {'environment': {'game': 'pong'}, 'config': dataclasses.asdict(config)}
  (folder / 'pong' / 'config.json').write_text(json.dumps(stored))
  return folder


def _collect(folder: pathlib.Path, capsys) -> tuple[str, list[str]]:
  """Returns the whole output and the cells of pong."""
  assert atari57.main(['--collect', f'--workdir={folder}', '--episodes=1']) == 0
  out = capsys.readouterr().out
  (line,) = [line for line in out.splitlines() if line.startswith('│ pong')]
  return out, [cell.strip() for cell in line.strip('│').split('│')]


def test_collected_score_is_of_episodes_that_were_played_once(
  trained, capsys, monkeypatch
):
  monkeypatch.setenv('COLUMNS', '200')
  out, cells = _collect(trained, capsys)
  assert 'pong: playing 1 episodes' in out
  with open(trained / 'scores.csv', newline='') as file:
    row = next(csv.DictReader(file))
  value = float(row['mean_return'])
  assert -21 <= value < -10  # the network is untrained
  assert value == int(value)
  normalized = (value + 20.7) / 35.3
  assert float(row['human_normalized']) == pytest.approx(normalized)
  assert (row['game'], row['checkpoint'], row['actor_frames']) == (
    'pong',
    'ckpt-1',
    '12',
  )
  assert cells[:5] == [
    'pong',
    f'{value:.1f}',
    f'{100 * normalized:.1f} %',
    '21.0',
    '118.1 %',
  ]
  out, again = _collect(trained, capsys)
  assert again == cells
  assert 'playing' not in out


def test_checkpoint_of_the_same_name_is_played_when_it_is_another(trained, capsys):
  path = str(trained / 'scores.csv')
  _collect(trained, capsys)
  (row,) = atari_table.read(path)
  atari_table.write(path, [dataclasses.replace(row, learner_steps=5)])
  assert 'pong: playing' in _collect(trained, capsys)[0]


def test_score_is_of_the_best_checkpoint_if_asked_for(trained, capsys):
  folder = pathlib.Path(checkpointing.directory(str(trained / 'pong')))
  for path in folder.glob('ckpt-1.*'):
    shutil.copy(path, folder / path.name.replace('ckpt-1', 'ckpt-2'))
  best = {'checkpoint': 'ckpt-1', 'mean_return': 3.0, 'episodes': 1, 'learner_steps': 0}
  (folder / 'best.json').write_text(json.dumps(best))
  try:
    for flags, name in (([], 'ckpt-2'), (['--checkpoint=best'], 'ckpt-1')):
      arguments = ['--collect', '--games=pong', f'--workdir={trained}', '--episodes=1']
      assert atari57.main([*arguments, *flags]) == 0
      (row,) = atari_table.read(str(trained / 'scores.csv'))
      assert row.checkpoint == name
  finally:
    for path in [folder / 'best.json', *folder.glob('ckpt-2.*')]:
      path.unlink()


def test_corrupt_checkpoint_is_said_and_the_other_games_are_in_the_table(
  trained, capsys
):
  folder = trained / 'alien' / 'checkpoints' / 'learner'
  folder.mkdir(parents=True)
  (folder / 'ckpt-1.index').write_bytes(b'corrupt')
  flags = ['--collect', f'--workdir={trained}', '--episodes=1']
  assert atari57.main(flags) == 1
  out, err = capsys.readouterr()
  assert 'pong' in out
  first, last = err.splitlines()
  assert first == f'alien: checkpoint {folder}/ckpt-1 is damaged'
  assert last == 'error: failed: alien'
