"""`launch/studies/initial_states.py`: its cases, its arithmetic, and what it writes."""

import csv
import dataclasses
import sys

import numpy as np
import pytest
import study
from studies import cue_recall, initial_states

from r2d2_acme.results import tables
from tests.launch.studies import study_helpers


def test_cases_are_the_papers_strategies_and_differ_in_nothing_else():
  cases = initial_states.make_cue_recall_configs()
  trajectory = cases.pop('trajectory')
  assert {(c.state_strategy, c.burn_in_length) for c in cases.values()} == {
    (state, burn_in) for state in ('zero', 'stored') for burn_in in (0, 2, 4)
  }
  for case in cases.values():
    fields = {'state_strategy': 'stored', 'burn_in_length': 4}
    assert dataclasses.replace(case, **fields) == cue_recall.CONFIG
  assert (trajectory.state_strategy, trajectory.burn_in_length) == ('zero', 0)


def test_trajectories_get_as_many_updates_and_trained_transitions():
  cases = initial_states.make_cue_recall_configs()
  windows, trajectory = cases['zero_0'], cases['trajectory']
  per_episode = {'zero_0': 4, 'trajectory': 1}
  updates = [
    cases[name].samples_per_insert * n / cases[name].batch_size
    for name, n in per_episode.items()
  ]
  assert updates[0] == updates[1]
  transitions = [
    config.batch_size * config.trace_length for config in (windows, trajectory)
  ]
  assert transitions[1] == pytest.approx(transitions[0], rel=0.02)
  environment = cue_recall.make_cue_recall(0)
  length, timestep = 0, environment.reset()
  while not timestep.last():
    timestep = environment.step(0)
    length += 1
  assert trajectory.trace_length == length


def _write_run(workdir, delta_q, returns, ages=(10.0, 10.0, 10.0, 59.0), scale=1):
  """Items, of steps 25, 50, 75, 100 or all of 100, and episodes of the same steps.

  `scale` multiplies the steps.
  """
  steps = np.linspace(25, 100, 4) if len(delta_q) == 4 else np.full(len(delta_q), 100)
  steps = scale * steps
  columns = [steps, steps, ages, delta_q, 10 * np.array(delta_q)]
  workdir.mkdir(parents=True, exist_ok=True)
  tables.write_csv(
    workdir / 'items.csv',
    initial_states.ITEM_COLUMNS,
    zip(*columns, strict=True),
  )
  study_helpers.write_actor_log(
    workdir, steps, [0.4] + [0.01] * (len(steps) - 1), returns
  )
  return workdir


def _nan():
  return pytest.approx(np.nan, nan_ok=True)


def _summarize(*workdirs):
  rows = initial_states.summarize({'stored_0': workdirs}, max_steps=100)
  assert {row[0] for row in rows} == {'stored_0'}
  return {row[1:4]: row[4:] for row in rows}


def test_summary_is_the_mean_over_seeds_of_each_seeds_value(tmp_path):
  rows = _summarize(
    _write_run(tmp_path / '0', [9.0, 9.0, 1.0, 3.0], [100.0, 1.0, 2.0, 3.0]),
    _write_run(tmp_path / '1', [7.0, 9.0, 5.0, 7.0], [100.0, 3.0, 4.0, 5.0]),
  )
  # Of the second half: seeds 2 and 6.
  assert rows['delta_q_initial', 'all', 0.0] == (4.0, 2, 6, 2)
  assert rows['delta_q_final', 'all', 0.0] == (40.0, 20, 60, 2)
  # 20 bins of 5 steps.
  assert rows['delta_q_initial', 'steps', 22.5] == (8.0, 7, 9, 2)
  assert rows['delta_q_initial', 'steps', 97.5] == (5.0, 3, 7, 2)
  # 6 bins of 10 learner steps, of the second half.
  assert rows['delta_q_initial', 'age', 5.0] == (3.0, 1, 5, 2)
  assert rows['delta_q_initial', 'age', 55.0] == (5.0, 3, 7, 2)
  # Returns under a large epsilon do not count.
  assert ('episode_return', 'steps', 22.5) not in rows
  assert rows['episode_return', 'steps', 47.5] == (2.0, 1, 3, 2)


def test_delta_q_is_the_median_and_the_return_the_mean_of_a_bin(tmp_path):
  values = [1.0, 2.0, 3.0, 4.0, 1000.0]
  rows = _summarize(_write_run(tmp_path, values, [9.0, *values[1:]], ages=[10.0] * 5))
  assert rows['delta_q_final', 'steps', 97.5][0] == 30.0
  assert rows['episode_return', 'steps', 97.5][0] == np.mean(values[1:])


def test_bin_that_a_seed_lacks_is_the_others_mean(tmp_path):
  rows = _summarize(
    _write_run(tmp_path / '0', [1.0] * 4, [0.0] * 4),
    _write_run(tmp_path / '1', [3.0] * 4, [0.0] * 4, ages=[10.0, 10.0, 10.0, 10.0]),
  )
  assert rows['delta_q_initial', 'age', 5.0] == (2.0, 1, 3, 2)
  assert rows['delta_q_initial', 'age', 55.0] == (1.0, _nan(), _nan(), 1)


def test_figures_have_all_cases(monkeypatch, tmp_path):
  def train(case, experiment, workdir):
    last = 4.0 + experiment.config.seed
    _write_run(workdir, [1.0, 2.0, 3.0, last], [0.0, 1.0, 1.0, 1.0], scale=20)

  monkeypatch.setattr(initial_states.DeltaQCase, 'train', train)
  study_helpers.run_in_this_process(monkeypatch, study.main)
  cases = ['zero_0', 'stored_2', 'trajectory']
  flags = ['--max_steps=2000', f'--workdir={tmp_path}', f'--out={tmp_path / "out"}']
  flags += ['--seeds=2', f'--cases={",".join(cases)}']
  monkeypatch.setattr(sys, 'argv', ['study.py', 'initial_states', *flags])
  assert study.main() == 0
  out = tmp_path / 'out' / 'cue_recall'
  with open(out / 'curves.csv') as file:
    rows = list(csv.DictReader(file))
  assert list(dict.fromkeys(row['case'] for row in rows)) == cases
  assert {row['seeds'] for row in rows} == {'2'}
  for name in ('delta_q.png', 'returns.png'):
    assert (out / name).stat().st_size > 500


def test_a_run_learns_and_keeps_what_it_learned_from(tmp_path):
  config = dataclasses.replace(
    initial_states.make_cue_recall_configs()['stored_2'], min_replay_size=50
  )
  case = initial_states.DeltaQCase(
    config=config, environment_factory=cue_recall.make_cue_recall, max_steps=1_950
  )
  workdir = study_helpers.train(case, tmp_path)
  items = tables.read_csv(workdir / 'items.csv')
  steps = items['actor_steps']
  # 4 windows in an episode of 26 steps, 4 windows an update.
  assert items['learner_steps'][-1] == pytest.approx((300 - 50) / 4, abs=6)
  assert 54 / 4 * 26 <= steps[0] < steps[-1] <= 1_950 + config.envs_per_actor
  assert len(steps) == config.batch_size * len(np.unique(items['learner_steps']))
  assert np.all(items['parameter_age'] >= 1)
  # A quarter of the windows start an episode.
  starts = items['delta_q_initial'] < 1e-4
  assert 0.1 < starts.mean() < 0.7
  episodes = tables.read_csv(workdir / 'logs' / 'actor' / 'logs.csv')
  assert len(episodes['epsilon']) == pytest.approx(75, abs=8)
