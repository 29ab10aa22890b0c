"""`launch/memory_tasks.py`: what counts as solved, what is written, how it fails."""

import csv
import dataclasses
import json
import os
import subprocess
import sys

import memory_tasks
import pytest
from rich import console

from r2d2_acme import environments
from tests import helpers

_ROOT = helpers.ROOT
_PROGRAM = _ROOT / 'launch' / 'memory_tasks.py'

_TASK = memory_tasks.Task(
  'memory/cue_recall/1',
  max_steps=30_000,
  evaluation_period=1_000,
  overrides={'trace_length': 3, 'sequence_period': 3},
)


def _curve(*returns, recurrent=True, seed=0, task='memory/cue_recall/1'):
  rows = [
    {
      'actor_steps': 1000 * (i + 1),
      'learner_steps': i,
      'mean_return': mean_return,
      'seconds': 0.5,
    }
    for i, mean_return in enumerate(returns)
  ]
  return memory_tasks.Curve(task, recurrent, seed, 0.95, rows)


_CURVES = (
  _curve(-0.5, 0.95, 1.0),
  _curve(-0.5, -0.4, -0.6, recurrent=False),
  _curve(0.0, 0.5, seed=1),
  _curve(0.0, -0.5, recurrent=False, seed=1),
  _curve(0.25, 0.75, task='bsuite/memory_len/15'),
)


@pytest.mark.parametrize(
  ('returns', 'solved_at'),
  [
    ((), None),
    ((0.95,), None),
    ((0.949, 1.0), None),
    ((0.95, 0.949, 1.0), None),
    ((0.95, 1.0), 1000),
    ((0.0, 1.0, 0.0, 0.95, 0.95, 0.0), 4000),
  ],
)
def test_two_evaluations_in_a_row_solve_it_and_the_first_counts(returns, solved_at):
  assert _curve(*returns).solved_at == solved_at


def test_thresholds_are_those_promised():
  goals = {task.env: task.goal for task in memory_tasks.TASKS}
  assert goals.pop('VelocitylessCartPole-v1') == 150
  assert set(goals.values()) == {0.95}
  assert {'memory/cue_recall/30', 'memory/t_maze/10', 'bsuite/memory_len/15'} <= set(
    goals
  )
  assert all(task.max_steps <= 1_000_000 for task in memory_tasks.TASKS)


@pytest.mark.parametrize('task', memory_tasks.TASKS, ids=lambda task: task.env)
def test_configs_are_valid_and_differ_in_recurrence_only(task):
  agent, baseline = task.config(3, True), task.config(3, False)
  assert agent.seed == 3
  assert dataclasses.replace(baseline, recurrent=True) == agent
  assert not baseline.recurrent
  environments.make(task.env).close()


@pytest.mark.parametrize(
  'rows', [[{}], [{'actor_steps': 3}], [3], 3, None, [{'mean_return': None}]]
)
def test_damaged_curve_is_none(tmp_path, rows):
  path = tmp_path / 'curve.json'
  curve = dataclasses.asdict(_curve(0.5, 1.0))

  def read(curve):
    path.write_text(json.dumps({'curve': curve, 'setup': {}}))
    return memory_tasks._read(path, {})

  assert read(curve) == _curve(0.5, 1.0)
  assert read({**curve, 'rows': rows}) is None


def test_table_says_who_solved_what_and_when():
  terminal = console.Console(width=120, record=True, file=open(os.devnull, 'w'))
  terminal.print(memory_tasks.make_table(_CURVES))
  lines = [
    [cell.strip() for cell in line.split('│')[1:-1]]
    for line in terminal.export_text().splitlines()
    if line.startswith('│')
  ]
  assert lines == [
    ['memory/cue_recall/1', '0.95', 'memory', '1 of 2', '2,000 -', '0.975 0.25'],
    ['', '', 'memoryless', '0 of 2', '- -', '-0.5 -0.25'],
    ['bsuite/memory_len/15', '0.95', 'memory', '0 of 1', '-', '0.5'],
  ]


def test_csv_has_a_row_for_each_evaluation(tmp_path):
  path = tmp_path / 'curves.csv'
  memory_tasks.write_csv(_CURVES, path)
  rows = list(csv.DictReader(path.open()))
  assert len(rows) == sum(len(curve.rows) for curve in _CURVES)
  assert rows[3] == {
    'task': 'memory/cue_recall/1',
    'agent': 'memoryless',
    'seed': '0',
    'threshold': '0.95',
    'actor_steps': '1000',
    'learner_steps': '0',
    'mean_return': '-0.5',
    'seconds': '0.5',
  }


def test_plot_is_a_png(tmp_path):
  pytest.importorskip('matplotlib')
  path = tmp_path / 'curves.png'
  memory_tasks.plot(_CURVES, path)
  assert path.read_bytes()[1:4] == b'PNG'


def test_run_evaluates_at_its_period_and_learns_meanwhile():
  curve = memory_tasks.train(_TASK, 0, max_steps=3_000)
  assert [row['actor_steps'] for row in curve.rows] == [1_000, 2_000, 3_000]
  learner_steps = [row['learner_steps'] for row in curve.rows]
  config = _TASK.config(0, True)
  num_windows = 3_000 / 3  # an episode of delay 1 has 3 steps
  expected = (num_windows - config.min_replay_size) * config.samples_per_insert
  assert learner_steps[-1] == pytest.approx(expected / config.batch_size, rel=0.05)
  assert learner_steps == sorted(set(learner_steps))
  assert all(-1 <= row['mean_return'] <= 1 for row in curve.rows)


@pytest.mark.slow
def test_memory_solves_it_and_the_run_ends():
  curve = memory_tasks.train(_TASK, 0)
  assert curve.solved_at is not None
  assert curve.num_steps == curve.solved_at + _TASK.evaluation_period


@pytest.fixture
def trained(monkeypatch, tmp_path):
  """`train_in_process` without the process; counts the runs that it needed."""
  runs = []

  class Process:
    exitcode = 0

    def __init__(self, target, args, daemon):
      self.args = args

    def start(self):
      task, seed, recurrent, max_steps, path, setup, _ = self.args
      runs.append((recurrent, max_steps))
      returns = [0.0] * (max_steps // 1000)
      if recurrent:
        returns = [0.0, 1.0, 1.0][: len(returns)]
      curve = _curve(*returns, recurrent=recurrent, seed=seed, task=task.env)
      text = json.dumps({'setup': setup, 'curve': dataclasses.asdict(curve)})
      path.write_text(text)

    def join(self):
      pass

  class Context:
    pass

  Context.Process = Process
  monkeypatch.setattr(memory_tasks.multiprocessing, 'get_context', lambda _: Context)

  def train_both(max_steps=10_000, task=_TASK):
    runs.clear()
    curves = memory_tasks.train_both(
      task, 0, max_steps=max_steps, workdir=str(tmp_path), threads=1
    )
    return runs.copy(), curves

  return train_both


def test_baseline_gets_as_many_steps_as_the_agent_took(trained):
  runs, (agent, baseline) = trained()
  assert runs == [(True, 10_000), (False, 3_000)]
  assert (agent.solved_at, agent.num_steps) == (2_000, 3_000)
  assert (baseline.solved_at, baseline.num_steps) == (None, 3_000)


def test_finished_runs_are_not_run_again(trained):
  _, curves = trained()
  runs, again = trained()
  assert runs == []
  assert again == curves


def test_unfinished_runs_and_those_of_another_config_are(trained):
  trained(max_steps=2_000)  # too few to solve it
  runs, _ = trained(max_steps=5_000)
  assert runs == [(True, 5_000), (False, 3_000)]
  other = dataclasses.replace(_TASK, overrides={'learning_rate': 0.5})
  runs, _ = trained(max_steps=5_000, task=other)
  assert runs == [(True, 5_000), (False, 3_000)]


def test_a_process_that_dies_is_an_error_that_names_the_run(tmp_path):
  task = dataclasses.replace(_TASK, env='memory/no_such_task')
  with pytest.raises(memory_tasks.RunFailed, match='no_such_task memory seed 4'):
    memory_tasks.train_in_process(
      task, 4, recurrent=True, max_steps=1, workdir=str(tmp_path), threads=1
    )


@pytest.mark.parametrize(
  ('flags', 'expected'),
  [
    (['--tasks=memory/maze'], "'memory/maze' is none of memory/cue_recall/10"),
    (['--seeds=0,x'], '--seeds=0,x must be numbers'),
    (['--max_steps=0'], '--max_steps must be at least 1'),
    (['--processes=0'], '--processes must be at least 1'),
    (['--out=curves.pdf'], 'must end in .png'),
    (['--no_such_flag'], '--no_such_flag'),
  ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, flags, expected):
  monkeypatch.setattr(sys, 'argv', [str(_PROGRAM), *flags])
  with pytest.raises(SystemExit) as ended:
    memory_tasks.main()
  error = capsys.readouterr().err
  assert ended.value.code == 2
  assert error.startswith('error: ')
  assert expected in error
  assert error.count('\n') == 1


@pytest.mark.slow
def test_it_all_comes_together(tmp_path):
  pytest.importorskip('matplotlib')
  ended = subprocess.run(
    [
      *(sys.executable, _PROGRAM, '--tasks=memory/cue_recall/10', '--seeds=0'),
      *('--max_steps=1', '--workdir=work', '--out=out/curves.png'),
    ],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert ended.returncode == 1, ended.stderr  # one evaluation cannot solve it
  assert 'memory/cue_recall/10' in ended.stdout
  assert '0 of 1' in ended.stdout
  assert (tmp_path / 'out' / 'curves.png').exists()
  rows = list(csv.DictReader((tmp_path / 'out' / 'curves.csv').open()))
  assert [row['agent'] for row in rows] == ['memory', 'memoryless']
  assert {row['actor_steps'] for row in rows} == {'5000'}
