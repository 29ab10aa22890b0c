"""`launch/studies.py`: which runs start, what stays, and the arithmetic of curves."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import studies

from r2d2_acme import config as config_lib
from r2d2_acme.workdir import loggers
from tests.launch import study_helpers

# It learns after 20 windows of a step each.
_CONFIG = dataclasses.replace(
  config_lib.memory(),
  trace_length=2,
  sequence_period=1,
  n_step=1,
  min_replay_size=20,
)


@pytest.fixture
def run(monkeypatch, tmp_path):
  """`studies.main` with these flags: its code, and the runs that it trained.

  `fail` is a run that fails; `config` what both cases have.
  """

  def run(*flags, fail='', config=None):
    config = config or _CONFIG
    trained = []
    study = studies.Study(
      'task', studies.make_cue_recall, {'a': config, 'b': config}, 100
    )

    def train(study, case, seed, max_steps, workdir):
      trained.append(f'{case}/{seed}')
      if trained[-1] == fail:
        raise RuntimeError('no')
      workdir.mkdir(parents=True, exist_ok=True)

    def summarize(runs, max_steps):
      return [
        (case, 'metric', 'steps', max_steps, i, 0, len(workdirs))
        for case, workdirs in runs.items()
        for i, workdir in enumerate(workdirs)
        if workdir.is_dir()
      ]

    def plot(rows, title, path):
      path.write_text(f'{title}, {len(rows)} rows')

    def main():
      args = studies.make_parser('study.py', None, 'study').parse_args()
      return studies.main(study, args, train, summarize, {'plot.png': plot})

    study_helpers.run_in_this_process(monkeypatch, main)
    out = f'--out={tmp_path / "out"}'
    monkeypatch.setattr(sys, 'argv', ['study', f'--workdir={tmp_path}', out, *flags])
    return main(), trained

  return run


def test_only_the_first_window_of_cue_recall_has_the_cue_and_all_have_questions():
  environment, config = studies.make_cue_recall(0), studies.CUE_RECALL
  timesteps = [environment.reset()]
  while not timesteps[-1].last():
    timesteps.append(environment.step(0))
  num_transitions = len(timesteps) - 1
  questions = [t for t, x in enumerate(timesteps) if x.observation[-1]]
  starts = range(0, num_transitions - config.trace_length + 1, config.sequence_period)
  assert starts[-1] + config.trace_length == num_transitions  # no padding
  trained = [
    [t for t in questions if start <= t < start + config.trace_length]
    for start in starts
  ]
  assert trained == [[5], [10], [15], [20, 25]]
  # The cue is in row 0.
  assert all(start - config.burn_in_length > 0 for start in starts[1:])


def test_finished_runs_are_skipped_seed_by_seed(run, tmp_path):
  assert run('--seeds=1') == (0, ['a/0', 'b/0'])
  code, trained = run('--seeds=3', '--cases=b,a,b')
  assert (code, trained) == (0, ['b/1', 'a/1', 'b/2', 'a/2'])
  out = tmp_path / 'out' / 'task'
  assert (out / 'plot.png').read_text().endswith('of 3 seeds, 6 rows')
  rows = (out / 'curves.csv').read_text().split()
  assert rows[0] == 'case,metric,over,x,mean,std,seeds'
  assert rows[1:4] == [f'b,metric,steps,100,{i},0,3' for i in range(3)]


def test_runs_of_another_config_are_trained_again(run, tmp_path):
  run('--seeds=1')
  other = dataclasses.replace(_CONFIG, n_step=2)
  assert run('--seeds=1', config=other)[1] == ['a/0', 'b/0']
  assert run('--seeds=1', config=other)[1] == []
  about = json.loads((tmp_path / 'out' / 'task' / 'about.json').read_text())
  assert about['command'] == ['study', '--seeds=1']
  assert about['runs'].keys() == {'a/0', 'b/0'}
  assert about['runs']['a/0']['config']['n_step'] == 2
  assert about['runs']['a/0']['revision']


def test_runs_of_another_length_are_others(run):
  run('--seeds=1')
  assert run('--seeds=1', '--max_steps=50') == (0, ['a/0', 'b/0'])


def test_failed_run_is_said_and_tried_again(run, tmp_path, capsys):
  assert run('--seeds=1', fail='a/0') == (1, ['a/0', 'b/0'])
  assert 'a/0: code 1, see ' in capsys.readouterr().out
  assert not (tmp_path / 'out').exists()
  assert run('--seeds=1') == (0, ['a/0'])


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--cases=a,c', "'c' is not a case: give some of a, b"),
    ('--seeds=0', '--seeds: must be a number, at least 1'),
    ('--max_steps=x', '--max_steps: must be a number, at least 1'),
    ('--processes=0', '--processes: must be a number, at least 1'),
    ('--max_steps=39', 'learning begins after some 20; give at least 40'),
  ],
)
def test_bad_input_is_one_line_and_code_2(run, capsys, flag, message):
  with pytest.raises(SystemExit) as exit_:
    run(flag)
  assert exit_.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert message in line


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--game=no_such_game'], 'no_such_game'),
    (['--env=memory/maze'], 'maze'),
    (['--game=pong', '--env=CartPole-v1'], 'give --game or --env, not both'),
  ],
)
def test_unknown_environment_is_one_line_and_code_2(capsys, flags, message):
  args = studies.make_parser('study.py', None, 'study').parse_args(flags)
  with pytest.raises(SystemExit) as exit_:
    studies.make_environment_from(args)
  assert exit_.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert message in line


def test_environments_are_called_what_may_be_a_folder():
  parser = studies.make_parser('study.py', None, 'study')
  assert studies.make_environment_from(parser.parse_args([])) is None
  names = {
    '--game=ALE/Pong-v5': 'ALE_Pong-v5',
    '--env=memory/t_maze/3': 'memory_t_maze_3',
  }
  for flag, name in names.items():
    found, make = studies.make_environment_from(parser.parse_args([flag]))
    assert found == name
    assert make(1).reset().first()


def test_bins_are_open_at_their_start():
  x, y = np.array([1.0, 10.0, 11.0, 35.0]), np.array([2.0, 4.0, 5.0, 7.0])
  assert studies.in_bins(x, y, 10, np.mean) == {5.0: 3.0, 15.0: 5.0, 35.0: 7.0}


def test_returns_are_those_of_nearly_greedy_environments(tmp_path):
  study_helpers.write_actor_log(
    tmp_path,
    steps=[3, 4, 5, 100],
    epsilons=[0.4, 0.05, 0.01, 0.051],
    returns=[9, 1, 2, 9],
  )
  assert studies.returns_by_steps(tmp_path, max_steps=100) == {2.5: 1.5}


def test_returns_of_an_abandoned_timeline_do_not_count(tmp_path):
  for steps, value in ((40, 1.0), (15, 3.0)):
    counts = {'actor_steps': steps - 10, 'wall_time': steps - 10}
    sitting = loggers.begin_sitting(str(tmp_path), counts)
    logger = loggers.make_logger(str(tmp_path), 'actor', sitting=sitting)
    logger.write({'epsilon': 0.01, 'episode_return': value, 'actor_steps': steps})
    logger.close()
  assert studies.returns_by_steps(tmp_path, max_steps=100) == {12.5: 3.0}


def test_no_nearly_greedy_episode_is_one_line_and_code_2(tmp_path, capsys):
  study_helpers.write_actor_log(tmp_path, steps=[3], epsilons=[0.4], returns=[9])
  for _ in range(2):
    with pytest.raises(SystemExit) as exit_:
      studies.returns_by_steps(tmp_path, max_steps=100)
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'raise --max_steps' in line
    (tmp_path / 'logs' / 'actor' / 'logs.csv').write_text('')  # no episode at all


def test_a_curve_is_mean_and_spread_of_the_seeds_that_are_there():
  rows = studies.over_seeds('a', 'm', 'steps', [{1.0: 2.0, 3.0: 5.0}, {1.0: 4.0}])
  assert rows == [
    ('a', 'm', 'steps', 1.0, 3.0, pytest.approx(2**0.5), 2),
    ('a', 'm', 'steps', 3.0, 5.0, pytest.approx(np.nan, nan_ok=True), 1),
  ]
  ((first, second),) = studies.by_curve(rows)['m', 'steps'].values()
  assert first == (1.0, 3.0, pytest.approx(2**0.5))
  assert second[:2] == (3.0, 5.0)


@pytest.mark.parametrize('content', ['[]', 'null', '3', '"x"', '[' * 100_000, '\0'])
def test_damaged_note_of_a_finished_run_is_none(tmp_path, content):
  (tmp_path / studies._FINISHED).write_text(content)
  assert studies.read_finished(tmp_path) == {}
