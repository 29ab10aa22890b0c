"""`launch/studies/memory_tasks.py`: what counts as solved, and what is written."""

import csv
import dataclasses
import sys

import pytest
import study
from studies import memory_tasks, runner

from r2d2_acme import environments
from r2d2_acme.environments import NamedFactory
from tests.launch.studies import study_helpers

_TASK = memory_tasks.Task(
  'memory/cue_recall/1',
  max_steps=30_000,
  evaluation_period=1_000,
  overrides={'trace_length': 3, 'sequence_period': 3},
)


def _curve(*returns, task='memory/cue_recall/1', **of_run):
  return study_helpers.make_curve(task, 0.95, *returns, **of_run)


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
  cases = memory_tasks.make_cases(task).values()
  assert all(case.describe(3)['config']['seed'] == 3 for case in cases)
  agent, baseline = (case.config for case in cases)
  assert dataclasses.replace(baseline, recurrent=True) == agent
  assert not baseline.recurrent
  environments.make(task.env).close()


_HEADER = 'actor_steps,learner_steps,mean_return,positive,seconds'


@pytest.mark.parametrize(
  'text',
  ['', '\0', _HEADER, 'actor_steps\n3', f'{_HEADER}\n3', f'{_HEADER}\n3,4,x,5,6'],
)
def test_run_with_damaged_curve_is_not_whole(tmp_path, text):
  (agent, _) = memory_tasks.make_cases(_TASK).values()
  path = tmp_path / 'evaluations.csv'
  assert not agent.is_whole(tmp_path)
  path.write_text(f'{_HEADER}\n1000,1,0.5,1,0.5\n')
  assert agent.is_whole(tmp_path)
  path.write_text(text)
  assert not agent.is_whole(tmp_path)


def test_table_says_who_solved_what_and_when():
  lines = study_helpers.read_cells(memory_tasks.make_table(_CURVES))
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
    'positive': '0.25',
    'seconds': '0.5',
  }


def test_plot_is_a_png(tmp_path):
  pytest.importorskip('matplotlib')
  path = tmp_path / 'curves.png'
  memory_tasks.plot(_CURVES, path)
  assert path.read_bytes()[1:4] == b'PNG'


def _train(tmp_path, max_steps=None):
  """Trains the agent in this process; returns its curve and its `finished.json`."""
  (agent, _) = memory_tasks.make_cases(_TASK, max_steps).values()
  workdir = study_helpers.train(agent, tmp_path)
  curve = agent.curve(0, memory_tasks.read_rows(workdir))
  return curve, runner.read_finished(workdir)


def test_run_evaluates_at_its_period_and_learns_meanwhile(tmp_path):
  curve, finished = _train(tmp_path, max_steps=3_000)
  assert [row['actor_steps'] for row in curve.rows] == [1_000, 2_000, 3_000]
  learner_steps = [row['learner_steps'] for row in curve.rows]
  config = memory_tasks.make_cases(_TASK)['memory/cue_recall/1/memory'].config
  num_windows = 3_000 / 3  # an episode of delay 1 has 3 steps
  expected = (num_windows - config.min_replay_size) * config.samples_per_insert
  assert learner_steps[-1] == pytest.approx(expected / config.batch_size, rel=0.05)
  assert learner_steps == sorted(set(learner_steps))
  for row in curve.rows:  # returns are -1 or 1
    assert row['positive'] == pytest.approx((row['mean_return'] + 1) / 2, abs=1e-6)
  assert finished['max_steps'] == 3_000
  assert finished['solved_after'] == (None if curve.solved_at is None else 3_000)


@pytest.mark.slow
def test_memory_solves_it_and_the_run_ends(tmp_path):
  curve, finished = _train(tmp_path)
  assert curve.solved_at is not None
  assert curve.num_steps == curve.solved_at + _TASK.evaluation_period
  assert finished['solved_after'] == curve.num_steps


@pytest.fixture
def trained(monkeypatch, tmp_path):
  """Runs the study with fake training.

  Returns the runs that were trained, as (recurrent, max_steps), and the agent's and
  the baseline's curve.
  """
  runs = []

  def train(case, experiment, workdir):
    recurrent, max_steps = experiment.config.recurrent, experiment.max_actor_steps
    runs.append((recurrent, max_steps))
    returns = [0.0] * (max_steps // 1000)
    if recurrent:
      returns = [0.0, 1.0, 1.0][: len(returns)]
    curve = _curve(*returns, recurrent=recurrent)
    rows = [','.join(map(str, row.values())) for row in curve.rows]
    (workdir / 'evaluations.csv').write_text('\n'.join([_HEADER, *rows]))
    return curve.num_steps if recurrent and curve.solved_at else None

  monkeypatch.setattr(memory_tasks.TaskCase, 'train', train)

  def train_both(max_steps=10_000, task=_TASK):
    runs.clear()
    out = f'--out={tmp_path / "out.png"}'
    flags = [f'--max_steps={max_steps}', f'--workdir={tmp_path}', '--seeds=0', out]
    monkeypatch.setattr(sys, 'argv', ['study.py', 'memory_tasks', *flags])
    monkeypatch.setattr(memory_tasks, 'TASKS', (task,))
    study_helpers.run_in_this_process(monkeypatch, study.main)
    code = study.main()
    curves = [
      case.curve(0, memory_tasks.read_rows(tmp_path / name / '0'))
      for name, case in memory_tasks.make_cases(task).items()
    ]
    assert code == int(curves[0].solved_at is None)
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
  # It was solved, so that another limit is none.
  assert trained(max_steps=20_000)[0] == []


def test_unfinished_runs_and_those_of_another_config_are(trained):
  trained(max_steps=2_000)  # too few to solve it
  runs, _ = trained(max_steps=5_000)
  assert runs == [(True, 5_000), (False, 3_000)]
  other = dataclasses.replace(_TASK, overrides={'learning_rate': 0.5})
  runs, _ = trained(max_steps=5_000, task=other)
  assert runs == [(True, 5_000), (False, 3_000)]


def test_damaged_runs_are_trained_again(trained, tmp_path):
  trained()
  (tmp_path / 'memory/cue_recall/1/memoryless/0/evaluations.csv').write_text('x')
  assert trained()[0] == [(False, 3_000)]


def test_a_process_that_dies_is_an_error_that_names_the_run(
  monkeypatch, tmp_path, capsys
):
  """The baseline, which needs the agent's steps, is not started."""
  cases = {
    name: dataclasses.replace(
      case, environment_factory=NamedFactory('env', 'memory/no_such_task')
    )
    for name, case in memory_tasks.make_cases(_TASK).items()
  }
  no_report = pytest.fail
  made = runner.Study(cases, [4], tmp_path, no_report)

  def main():
    args = study_helpers.parse('memory_tasks', *sys.argv[1:])
    try:
      return runner.main(made, args)
    except ValueError as error:
      raise RuntimeError from error

  monkeypatch.setattr(sys, 'argv', ['study.py'])
  study_helpers.run_in_this_process(monkeypatch, main)
  assert main() == 1
  out = capsys.readouterr().out
  assert 'memory/cue_recall/1/memory/4: not finished, code 1, see ' in out
  assert 'memoryless' not in out


@pytest.mark.parametrize(
  ('flags', 'expected'),
  [
    (['--tasks=memory/maze'], "'memory/maze' is none of memory/cue_recall/10"),
    (['--seeds=0,x'], '--seeds=0,x must be numbers'),
    (['--max_steps=0'], '--max_steps: must be a number, at least 1'),
    (['--processes=0'], '--processes: must be a number, at least 1'),
    (['--out=curves.pdf'], 'must end in .png'),
    (['--no_such_flag'], '--no_such_flag'),
  ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, flags, expected):
  monkeypatch.setattr(sys, 'argv', ['study.py', 'memory_tasks', *flags])
  with pytest.raises(SystemExit) as ended:
    study.main()
  error = capsys.readouterr().err
  assert ended.value.code == 2
  assert error.startswith('error: ')
  assert expected in error
  assert error.count('\n') == 1


@pytest.mark.slow
def test_it_all_comes_together(tmp_path):
  pytest.importorskip('matplotlib')
  ended = study_helpers.run_program(
    *('memory_tasks', '--tasks=memory/cue_recall/10', '--seeds=0'),
    *('--max_steps=1', '--workdir=work', '--out=out/curves.png'),
    cwd=tmp_path,
  )
  assert ended.returncode == 1, ended.stderr  # one evaluation cannot solve it
  assert 'memory/cue_recall/10' in ended.stdout
  assert '[memory/cue_recall/10 memory seed 0] actor_steps 5,000 | ' in ended.stdout
  assert '0 of 1' in ended.stdout
  assert (tmp_path / 'out' / 'curves.png').exists()
  rows = list(csv.DictReader((tmp_path / 'out' / 'curves.csv').open()))
  assert [row['agent'] for row in rows] == ['memory', 'memoryless']
  assert {row['actor_steps'] for row in rows} == {'5000'}
