"""`launch/studies.py`: which runs start, what stays, and the arithmetic of curves."""

import json

import numpy as np
import pytest
import studies

from r2d2_acme import config as config_lib
from tests import study_helpers


@pytest.fixture
def study():
  config = config_lib.memory()
  return studies.Study('task', studies.make_cue_recall, {'a': config, 'b': config}, 100)


@pytest.fixture
def run(monkeypatch, tmp_path, study):
  """`studies.run` with these flags: its result, and the runs that it started."""

  def run(*flags, fail=''):
    started = []

    def fake(case, seed, workdir):
      started.append(f'{case}/{seed}')
      if started[-1] == fail:
        raise RuntimeError('no')
      workdir.mkdir(parents=True)

    study_helpers.fake_runs(monkeypatch, fake)
    args = studies.make_parser('study.py', None, 'study').parse_args(
      [f'--workdir={tmp_path}', *flags]
    )
    return studies.run(study, args, train_one=None), started

  return run


def test_two_windows_of_cue_recall_have_questions_but_no_cue():
  """So a zero state knows nothing there."""
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
  assert trained == [[5], [5, 10], [10, 15]]


def test_finished_runs_are_skipped_seed_by_seed(run, tmp_path):
  workdirs, started = run('--seeds=1')
  assert started == ['a/0', 'b/0']
  assert workdirs == {c: [tmp_path / 'task_100' / c / '0'] for c in 'ab'}
  workdirs, started = run('--seeds=3', '--cases=b,a')
  assert started == ['b/1', 'a/1', 'b/2', 'a/2']
  assert list(map(len, workdirs.values())) == [3, 3]


def test_runs_of_another_length_are_others(run):
  run('--seeds=1')
  _, started = run('--seeds=1', '--max_steps=50')
  assert started == ['a/0', 'b/0']


def test_failed_run_is_said_and_tried_again(run, capsys):
  workdirs, started = run('--seeds=1', fail='a/0')
  assert workdirs is None
  assert started == ['a/0', 'b/0']
  assert 'a/0: code 1, see ' in capsys.readouterr().out
  _, started = run('--seeds=1')
  assert started == ['a/0']


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--cases=a,c', "'c' is not a case: give some of a, b"),
    ('--seeds=0', '--seeds: must be at least 1'),
    ('--max_steps=0', '--max_steps: must be at least 1'),
    ('--processes=3', 'invalid choice'),
  ],
)
def test_bad_input_is_one_line_and_code_2(run, capsys, flag, message):
  with pytest.raises(SystemExit) as exit_:
    run(flag)
  assert exit_.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert message in line


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


def test_a_curve_is_mean_and_spread_of_the_seeds_that_are_there():
  rows = studies.over_seeds('a', 'm', 'steps', [{1.0: 2.0, 3.0: 5.0}, {1.0: 4.0}])
  assert rows == [
    ('a', 'm', 'steps', 1.0, 3.0, 1.0, 2),
    ('a', 'm', 'steps', 3.0, 5.0, 0.0, 1),
  ]
  assert studies.by_curve(rows)['m', 'steps'] == {
    'a': [(1.0, 3.0, 1.0), (3.0, 5.0, 0.0)]
  }


def test_about_says_what_was_compared(study, tmp_path, monkeypatch):
  monkeypatch.setattr(studies.experiment, 'revision', lambda: 'abc')
  args = studies.make_parser('study.py', None, 'study').parse_args(['--cases=b'])
  studies.write_about(study, args, tmp_path / 'about.json')
  about = json.loads((tmp_path / 'about.json').read_text())
  assert about['cases'].keys() == {'b'}
  assert about['cases']['b']['n_step'] == config_lib.memory().n_step
  assert (about['max_steps'], about['seeds'], about['revision']) == (100, 3, 'abc')
