"""`launch/initial_state_study.py`: its cases, its arithmetic, and that it resumes."""

import csv
import dataclasses
import pathlib
import subprocess
import sys

import numpy as np
import pytest

_ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(_ROOT / 'launch'))

import initial_state_study as study  # noqa: E402


def test_cases_are_the_specs_strategies_and_differ_in_nothing_else():
  task = study.cue_recall()
  cases = dict(task.cases)
  trajectory = cases.pop('trajectory')
  assert {(c.state_strategy, c.burn_in_length) for c in cases.values()} == {
    (state, burn_in) for state in ('zero', 'stored') for burn_in in (0, 1, 2)
  }
  for case in cases.values():
    fields = {'state_strategy': 'stored', 'burn_in_length': 40}
    assert dataclasses.replace(case, **fields) == dataclasses.replace(
      task.config, **fields
    )
  assert (trajectory.state_strategy, trajectory.burn_in_length) == ('zero', 0)


def test_no_window_of_cue_recall_has_both_the_cue_and_its_question():
  """Or a zero state would do."""
  task = study.cue_recall()
  environment = task.make_environment(0)
  length, timestep = 0, environment.reset()
  while not timestep.last():
    timestep = environment.step(0)
    length += 1
  config = task.config
  starts = range(0, length - config.trace_length + 1, config.sequence_period)
  assert starts[-1] + config.trace_length == length  # no padding
  assert starts[-1] - max(task.burn_ins) > 0
  assert task.cases['trajectory'].trace_length == length


def test_trajectories_get_as_many_updates_and_trained_transitions():
  task = study.cue_recall()
  windows, trajectory = task.cases['zero_0'], task.cases['trajectory']
  per_episode = {'zero_0': 3, 'trajectory': 1}
  updates = [
    task.cases[name].samples_per_insert * n / task.cases[name].batch_size
    for name, n in per_episode.items()
  ]
  assert updates[0] == updates[1]
  assert (
    windows.batch_size * windows.trace_length
    == trajectory.batch_size * trajectory.trace_length
  )


def test_bins_are_open_at_their_start():
  x, y = np.array([1.0, 10.0, 11.0, 35.0]), np.array([2.0, 4.0, 5.0, 7.0])
  assert study.in_bins(x, y, 10, np.mean) == {5.0: 3.0, 15.0: 5.0, 35.0: 7.0}


def _run(delta_q, returns, ages=(10.0, 10.0, 10.0, 59.0)):
  """Four items and four episodes, at steps 25, 50, 75, 100."""
  steps = np.array([25.0, 50.0, 75.0, 100.0])
  items = {
    'actor_steps': steps,
    'learner_steps': steps,
    'parameter_age': np.array(ages),
    'delta_q_initial': np.array(delta_q),
    'delta_q_final': 10 * np.array(delta_q),
  }
  episodes = {
    'actor_steps': steps,
    'epsilon': np.array([0.4, 0.01, 0.01, 0.01]),
    'episode_return': np.array(returns),
  }
  return study.Run(items, episodes)


def test_summary_is_the_mean_over_seeds_of_each_seeds_value():
  runs = {
    'zero_0': [
      _run([9.0, 9.0, 1.0, 3.0], [100.0, 1.0, 2.0, 3.0]),
      _run([7.0, 9.0, 5.0, 7.0], [100.0, 3.0, 4.0, 5.0]),
    ]
  }
  rows = {row[1:4]: row[4:] for row in study.summarize(runs, max_steps=100)}
  # Of the second half: seeds 2 and 6.
  assert rows['delta_q_initial', 'all', 0.0] == (4.0, 2.0, 2)
  assert rows['delta_q_final', 'all', 0.0] == (40.0, 20.0, 2)
  # 20 bins of 5 steps.
  assert rows['delta_q_initial', 'steps', 22.5] == (8.0, 1.0, 2)
  assert rows['delta_q_initial', 'steps', 97.5] == (5.0, 2.0, 2)
  # 6 bins of 10 learner steps, of the second half.
  assert rows['delta_q_initial', 'age', 5.0] == (3.0, 2.0, 2)
  assert rows['delta_q_initial', 'age', 55.0] == (5.0, 2.0, 2)
  # Returns under a large epsilon do not count.
  assert ('episode_return', 'steps', 22.5) not in rows
  assert rows['episode_return', 'steps', 47.5] == (2.0, 1.0, 2)


def test_delta_q_is_the_median_and_the_return_the_mean_of_a_bin():
  steps = np.arange(96.0, 101.0)  # one bin
  items = dict.fromkeys(study._ITEM_COLUMNS, np.array([1.0, 2.0, 3.0, 4.0, 1000.0]))
  episodes = {'epsilon': np.zeros(5), 'episode_return': items['delta_q_final']}
  runs = {
    'zero_0': [
      study.Run({**items, 'actor_steps': steps}, {**episodes, 'actor_steps': steps})
    ]
  }
  rows = {row[1:3]: row[4] for row in study.summarize(runs, max_steps=100)}
  assert rows['delta_q_final', 'steps'] == 3.0
  assert rows['episode_return', 'steps'] == 202.0


def test_bin_that_a_seed_lacks_is_the_others_mean():
  runs = {
    'stored_0': [
      _run([1.0] * 4, [0.0] * 4),
      _run([3.0] * 4, [0.0] * 4, ages=[10.0, 10.0, 10.0, 10.0]),
    ]
  }
  rows = {row[1:4]: row[4:] for row in study.summarize(runs, max_steps=100)}
  assert rows['delta_q_initial', 'age', 5.0] == (2.0, 1.0, 2)
  assert rows['delta_q_initial', 'age', 55.0] == (1.0, 0.0, 1)


@pytest.fixture
def run_main(monkeypatch, tmp_path):
  """`main` with these flags; its programs are fakes that it appends to `started`."""

  def run(*flags, fail=''):
    started = []

    def fake(command, stdout, stderr):
      name = command[-1].removeprefix('--run=')
      started.append(name)
      if name == fail:
        return subprocess.CompletedProcess(command, 3)
      workdir = tmp_path / 'work' / 'cue_recall_100' / name
      (workdir / 'logs' / 'actor').mkdir(parents=True)
      data = _run([1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 1.0, 1.0])
      for path, columns in (
        (workdir / 'logs' / 'actor' / 'logs.csv', data.episodes),
        (workdir / 'items.csv', data.items),
      ):
        np.savetxt(
          path,
          np.stack(list(columns.values()), axis=1),
          delimiter=',',
          header=','.join(columns),
          comments='',
        )
      return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(study.subprocess, 'run', fake)
    monkeypatch.setattr(study.experiment, 'revision', lambda: 'abc')
    argv = [
      'study',
      '--max_steps=100',
      f'--workdir={tmp_path / "work"}',
      f'--out={tmp_path / "out"}',
      *flags,
    ]
    monkeypatch.setattr(sys, 'argv', argv)
    return study.main(), started

  return run


def test_finished_runs_are_skipped_and_all_are_in_the_figures(run_main, tmp_path):
  code, started = run_main('--seeds=1', '--cases=zero_0,stored_1,trajectory')
  assert (code, started) == (0, ['zero_0/0', 'stored_1/0', 'trajectory/0'])
  code, started = run_main('--seeds=2', '--cases=zero_0,stored_1,trajectory')
  assert (code, started) == (0, ['zero_0/1', 'stored_1/1', 'trajectory/1'])
  out = tmp_path / 'out' / 'cue_recall'
  with open(out / 'curves.csv') as file:
    rows = list(csv.DictReader(file))
  assert {row['case'] for row in rows} == {'zero_0', 'stored_1', 'trajectory'}
  assert {row['seeds'] for row in rows} == {'2'}
  for name in ('delta_q.png', 'returns.png', 'about.json'):
    assert (out / name).stat().st_size > 500


def test_failed_run_fails_the_program_and_is_tried_again(run_main, tmp_path, capsys):
  code, _ = run_main('--seeds=1', '--cases=zero_0,stored_0', fail='zero_0/0')
  assert code == 1
  assert 'zero_0/0: code 3, see ' in capsys.readouterr().out
  assert not (tmp_path / 'out').exists()
  code, started = run_main('--seeds=1', '--cases=zero_0,stored_0')
  assert (code, started) == (0, ['zero_0/0'])


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--cases=zero_0,zero_7', "'zero_7' is not a case: give some of zero_0"),
    ('--seeds=0', '--seeds must be at least 1'),
    ('--processes=3', 'invalid choice'),
    ('--game=no_such_game', 'no_such_game'),
  ],
)
def test_bad_input_is_one_line_and_code_2(run_main, capsys, flag, message):
  with pytest.raises(SystemExit) as exit_:
    run_main(flag)
  assert exit_.value.code == 2
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1 and message in lines[0]


def test_a_run_learns_and_keeps_what_it_learned_from(tmp_path):
  task = study.cue_recall()
  config = dataclasses.replace(task.cases['stored_1'], min_replay_size=50)
  study.train(task, config, 800, tmp_path)
  run = study.Run.read(tmp_path)
  steps, items = run.items['actor_steps'], run.items
  # 3 windows in an episode of 8 steps, 4 windows an update.
  assert items['learner_steps'][-1] == pytest.approx((300 - 50) / 4, abs=6)
  assert 54 / 3 * 8 <= steps[0] < steps[-1] <= 800 + config.envs_per_actor
  assert len(steps) == config.batch_size * len(np.unique(items['learner_steps']))
  assert np.all(items['parameter_age'] >= 1)
  # A third of the windows start an episode.
  starts = items['delta_q_initial'] < 1e-4
  assert 0.1 < starts.mean() < 0.7
  assert len(run.episodes['epsilon']) == pytest.approx(100, abs=8)
