"""Does R2D2 solve tasks that need memory, and does it without its memory?

python launch/study.py memory_tasks [--tasks=memory/cue_recall/10,...] [--seeds=0,1,2]

A run ends when its task is solved: when the mean return of an evaluation, and of the
next, reaches the task's threshold. The first of the two counts. The baseline is the
same agent with `recurrent=False` and as many steps. It still sees its previous action
and reward, as R2D2 does.
"""

import argparse
import contextlib
import dataclasses
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import acme
import numpy as np
from acme.utils import loggers
from rich import console, table

from r2d2_acme import agent as agent_lib
from r2d2_acme import builder as builder_lib
from r2d2_acme import config as config_lib
from r2d2_acme import environments
from r2d2_acme.acting.policy import BatchedActor
from r2d2_acme.agent import R2D2
from r2d2_acme.environments import NamedFactory
from r2d2_acme.experiment import Experiment
from r2d2_acme.results import evaluation, plotting, tables
from r2d2_acme.system import runtime
from r2d2_acme.workdir import paths
from studies import drawing, runner
from studies.runner import Case, Study

_SHARE_OF_MAX = 0.95  # of the maximal return, where the task knows it
_AGENTS = {True: 'memory', False: 'memoryless'}  # by whether it is recurrent
_EVALUATIONS = 'evaluations.csv'
_COLUMNS = ('actor_steps', 'learner_steps', 'mean_return', 'positive', 'seconds')


@dataclasses.dataclass(frozen=True)
class Task:
  """What is trained, and until when.

  Attributes:
    env: the environment, as `environments.make` takes it.
    max_steps: steps of all environments together after which a run ends, solved or not.
    evaluation_period: steps between evaluations.
    num_episodes: episodes of an evaluation, which are played at the same time.
    threshold: the mean return that solves the task; None for 0.95 of the maximum, and
      infinity where runs shall train to their end.
    overrides: fields of the preset `memory` that have other values for this task.
  """

  env: str
  max_steps: int
  evaluation_period: int
  num_episodes: int = 100
  threshold: float | None = None
  overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def goal(self) -> float:
    """The threshold as a number."""
    if self.threshold is not None:
      return self.threshold
    return _SHARE_OF_MAX * environments.make(self.env).max_return  # type: ignore


TASKS = (
  Task('memory/cue_recall/10', max_steps=200_000, evaluation_period=5_000),
  Task('memory/cue_recall/30', max_steps=1_000_000, evaluation_period=10_000),
  Task('memory/t_maze/10', max_steps=500_000, evaluation_period=10_000),
  Task('bsuite/memory_len/9', max_steps=500_000, evaluation_period=5_000),
  Task('bsuite/memory_len/15', max_steps=1_000_000, evaluation_period=10_000),
  Task('bsuite/memory_size/1', max_steps=200_000, evaluation_period=5_000),
  Task(
    environments.VELOCITYLESS_CARTPOLE,
    max_steps=1_000_000,
    evaluation_period=20_000,
    num_episodes=50,
    threshold=150.0,  # RLlib's, whose agent also trains without burn-in
    overrides={'samples_per_insert': 32.0},
  ),
)
# Trains only if it is named, as it needs `make install EXTRAS=envs`.
MINIGRID = Task(
  'minigrid:MiniGrid-MemoryS7-v0',
  max_steps=1_000_000,
  evaluation_period=25_000,
  # Each step costs a little, so that who goes the right way gets 0.95 to 0.98. The
  # column `positive` says in which share of the episodes.
  threshold=0.92,
  # Four of seven actions do nothing. With a discount near 1 they are worth nearly as
  # much as a step towards the goal.
  overrides={'discount': 0.95, 'n_step': 5},
)


@dataclasses.dataclass(frozen=True)
class Curve:
  """The evaluations of one run.

  Attributes:
    task: the task's `env`.
    recurrent: whether the agent has a memory; the baseline has none.
    seed: the seed of the run.
    goal: the mean return that solves the task.
    rows: one for each evaluation, with `actor_steps`, `learner_steps`, `mean_return`,
      `positive` (the share of episodes whose return is above 0) and `seconds`.
  """

  task: str
  recurrent: bool
  seed: int
  goal: float
  rows: list[dict[str, float]]

  @property
  def agent(self) -> str:
    return _AGENTS[self.recurrent]

  @property
  def solved_at(self) -> int | None:
    """Steps until the first of two evaluations in a row that reach the goal."""
    reached = [row['mean_return'] >= self.goal for row in self.rows]
    for row, this, following in zip(self.rows, reached, reached[1:], strict=False):
      if this and following:
        return int(row['actor_steps'])
    return None

  @property
  def num_steps(self) -> int:
    return int(self.rows[-1]['actor_steps']) if self.rows else 0

  @property
  def best_return(self) -> float:
    """The highest mean return of an evaluation."""
    return max(row['mean_return'] for row in self.rows)

  @property
  def last_return(self) -> float:
    """The mean of the last two evaluations."""
    return statistics.mean(row['mean_return'] for row in self.rows[-2:])


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskCase(Case):
  """R2D2, or its baseline without memory, on a task."""

  task: Task

  def describe(self, seed: int) -> dict[str, Any]:
    """Returns what a run depends on; see `Case.describe`."""
    return {**super().describe(seed), 'task': dataclasses.asdict(self.task)}

  def train(self, experiment: Experiment, workdir: pathlib.Path) -> int | None:
    """Trains R2D2 until it has solved the task, and its baseline to the last step.

    Writes the evaluations to the workdir; see `Case.train`.
    """
    task = self.task
    curve = self.curve(experiment.config.seed, rows=[])
    solved_after = None
    start = time.monotonic()

    def observe(agent: R2D2, steps: int):
      nonlocal solved_after
      if steps < curve.num_steps + task.evaluation_period:
        return
      returns = evaluate(agent)
      row = {
        'actor_steps': curve.num_steps + task.evaluation_period,
        'learner_steps': agent.learner.num_steps,
        'mean_return': float(np.mean(returns)),
        'positive': float(np.mean(returns > 0)),
        'seconds': round(time.monotonic() - start, 1),
      }
      curve.rows.append(row)
      numbers = ' | '.join(f'{k} {v:,.6g}' for k, v in row.items())
      runner.say(f'[{task.env} {curve.agent} seed {curve.seed}] {numbers}')
      if curve.recurrent and curve.solved_at is not None:
        solved_after = curve.num_steps

    with _evaluator(experiment, task.num_episodes) as evaluate:
      agent_lib.run_experiment(
        dataclasses.replace(experiment, logger_factory=_make_no_logger),
        observe=observe,
        should_stop=lambda: solved_after is not None,
      )
    rows = (tuple(row.values()) for row in curve.rows)
    tables.write_csv(workdir / _EVALUATIONS, _COLUMNS, rows)
    return solved_after

  def is_whole(self, workdir: pathlib.Path) -> bool:
    """Returns whether the evaluations of a finished run can be read."""
    return bool(read_rows(workdir))

  def curve(self, seed: int, rows: list[dict[str, float]]) -> Curve:
    """Returns the curve of the run with this seed, from the rows of its evaluations."""
    return Curve(self.task.env, self.config.recurrent, seed, self.task.goal, rows)


@contextlib.contextmanager
def _evaluator(
  experiment: Experiment, num_episodes: int
) -> Iterator[Callable[[acme.VariableSource], np.ndarray]]:
  """Yields a function that returns the returns with an agent's parameters.

  It plays its episodes at the same time, nearly greedily.
  """
  config = experiment.config
  pairs = [builder_lib.evaluation_seeds(config.seed, i) for i in range(num_episodes)]
  seeds, policy_seeds = zip(*pairs, strict=True)
  with environments.opened(experiment.environment_factory, seeds) as evaluated:
    spec = acme.make_environment_spec(evaluated[0])
    network = builder_lib.R2D2Builder(config, spec).make_network()
    epsilons = [config.evaluator_epsilon] * num_episodes
    actor = BatchedActor(network, config, spec, epsilons=epsilons, seeds=policy_seeds)

    def evaluate(source: acme.VariableSource) -> np.ndarray:
      actor.fetch(source)
      episodes = evaluation.play(
        actor, evaluated, num_episodes, max_steps=config.max_evaluation_steps
      )
      return np.array([episode.total for episode in episodes])

    yield evaluate


def _make_no_logger(*unused_node) -> loggers.Logger:
  return loggers.NoOpLogger()


def read_rows(workdir: pathlib.Path) -> list[dict[str, float]]:
  """Reads the evaluations of a finished run; empty if the file is damaged."""
  try:
    columns = tables.read_csv(workdir / _EVALUATIONS)
  except (OSError, ValueError):
    return []
  rows = zip(*(columns[name] for name in _COLUMNS), strict=False)
  return [dict(zip(_COLUMNS, row, strict=True)) for row in rows]


def add_flags(parser: argparse.ArgumentParser):
  add_task_flags(parser, TASKS, 'memory_tasks', 'results/memory_tasks.png')


def add_task_flags(
  parser: argparse.ArgumentParser, tasks: Sequence[Task], name: str, out: str
):
  """Adds the flags of a study of tasks.

  Args:
    parser: of the study.
    tasks: what trains by default.
    name: of the study, for its default folder in `runs/`.
    out: the default path of the plot.
  """
  names = [task.env for task in tasks]
  runner.add_flags(parser, name)
  parser.add_argument(
    '--tasks', default=','.join(names), help='by default ' + ',\n'.join(names)
  )
  parser.add_argument('--seeds', default='0,1,2', help='by default 0,1,2')
  parser.add_argument(
    '--out',
    type=paths.argument,
    default=out,
    help=f'the plot; its CSV lies beside it. By default {out}',
  )


def make_study(args: argparse.Namespace) -> Study:
  """Makes the study that the flags describe; exits if they cannot work."""
  return make_task_study(args, (*TASKS, MINIGRID), _report)


def make_task_study(
  args: argparse.Namespace,
  tasks: Sequence[Task],
  report: Callable[[Sequence[Curve], pathlib.Path], int],
) -> Study:
  """Makes a study of the tasks that the flags name; exits if they cannot work.

  Args:
    args: the parsed flags, see `add_task_flags`.
    tasks: those that may be named.
    report: writes what came of all runs, the plot to that path; returns the exit code.
  """
  by_name = {task.env: task for task in tasks}
  names = list(dict.fromkeys(args.tasks.split(',')))
  for name in names:
    if name not in by_name:
      runtime.exit_with_error(f'--tasks: {name!r} is none of {", ".join(by_name)}')
  if not all(seed.isdecimal() for seed in args.seeds.split(',')):
    runtime.exit_with_error(f'--seeds={args.seeds} must be numbers, such as 0,1,2')
  out = pathlib.Path(args.out)
  if out.suffix != '.png':
    runtime.exit_with_error(f'--out={paths.shown(args.out)} must end in .png')
  try:
    for name in names:
      environments.make(name).close()
  except ValueError as error:
    runtime.exit_with_error(str(error))
  cases: dict[str, TaskCase] = {}
  for task in tasks:
    if task.env in names:
      cases |= make_cases(task, args.max_steps)

  def report_runs(runs: Mapping[str, Sequence[pathlib.Path]]) -> int:
    curves = [
      cases[name].curve(int(workdir.name), read_rows(workdir))
      for name, workdirs in runs.items()
      for workdir in workdirs
    ]
    order = list(by_name)
    curves.sort(key=lambda c: (order.index(c.task), c.seed, not c.recurrent))
    out.parent.mkdir(parents=True, exist_ok=True)
    return report(curves, out)

  return Study(
    cases,
    seeds=list(dict.fromkeys(map(int, args.seeds.split(',')))),
    workdir=pathlib.Path(args.workdir),
    report=report_runs,
  )


def make_cases(task: Task, max_steps: int | None = None) -> dict[str, TaskCase]:
  """Returns the case of R2D2 on a task, and that of the baseline.

  Args:
    task: what both train on.
    max_steps: the number of steps after which a run ends, if it is less than the
      task's; it is rounded up to whole evaluation periods.
  """
  steps = min(task.max_steps, max_steps or task.max_steps)
  agent, baseline = (f'{task.env}/{_AGENTS[x]}' for x in (True, False))
  config = dataclasses.replace(config_lib.memory(), **task.overrides)
  case = TaskCase(
    config=config,
    environment_factory=NamedFactory('env', task.env),
    max_steps=-(-steps // task.evaluation_period) * task.evaluation_period,
    task=task,
  )
  memoryless = dataclasses.replace(config, recurrent=False)
  return {
    agent: case,
    baseline: dataclasses.replace(case, config=memoryless, as_long_as=agent),
  }


def _report(curves: Sequence[Curve], out: pathlib.Path) -> int:
  """Prints a table and writes the plot and its CSV.

  Returns:
    The exit code: 0 if every run with memory solved its task, else 1.
  """
  show(make_table(curves))
  plot(curves, out)
  write_csv(curves, out.with_suffix('.csv'))
  files = [paths.shown(str(out.with_suffix(x))) for x in ('.png', '.csv')]
  print(f'{" and ".join(files)} have the curves.')
  return int(any(c.recurrent and c.solved_at is None for c in curves))


def show(grid: table.Table):
  """Prints a table, not too narrow where there is no terminal."""
  terminal = console.Console()
  if not terminal.is_terminal:
    terminal = console.Console(width=120)
  terminal.print(grid)


def make_table(curves: Sequence[Curve]) -> table.Table:
  """Returns a table with a line for each task and agent."""
  grid = table.Table(title='memory tasks', title_justify='left', title_style='bold')
  for header in ('task', 'threshold', 'agent', 'solved', 'after steps', 'last return'):
    grid.add_column(header, justify='left' if header in ('task', 'agent') else 'right')
  for task in dict.fromkeys(curve.task for curve in curves):
    for recurrent in (True, False):
      group = [c for c in curves if (c.task, c.recurrent) == (task, recurrent)]
      if not group:
        continue
      solved_at = [curve.solved_at for curve in group]
      grid.add_row(
        task if recurrent else '',
        f'{group[0].goal:g}' if recurrent else '',
        _AGENTS[recurrent],
        f'{sum(s is not None for s in solved_at)} of {len(group)}',
        ' '.join('-' if s is None else f'{s:,}' for s in solved_at),
        ' '.join(f'{curve.last_return:.3g}' for curve in group),
      )
    grid.add_section()
  return grid


def write_csv(curves: Sequence[Curve], path: pathlib.Path):
  """Writes a row for each evaluation of each run."""
  tables.write_csv(
    path,
    ('task', 'agent', 'seed', 'threshold', *_COLUMNS),
    (
      (c.task, c.agent, c.seed, c.goal, *(row[name] for name in _COLUMNS))
      for c in curves
      for row in c.rows
    ),
  )


def plot(curves: Sequence[Curve], path: pathlib.Path):
  """Writes a figure of return against steps: tasks have panels, runs have lines."""
  tasks = list(dict.fromkeys(curve.task for curve in curves))
  columns = min(len(tasks), 3)
  rows = -(-len(tasks) // columns)
  size = (4.2 * columns, 3 * rows)
  figure, axes = plotting.pyplot().subplots(rows, columns, figsize=size, squeeze=False)
  for axis in axes.flat[len(tasks) :]:
    axis.set_axis_off()
  for task, axis in zip(tasks, axes.flat, strict=False):
    group = [curve for curve in curves if curve.task == task]
    labels = dict(_AGENTS)  # only the first line of each has one
    for curve in sorted(group, key=lambda curve: not curve.recurrent):
      axis.plot(
        [row['actor_steps'] for row in curve.rows],
        [row['mean_return'] for row in curve.rows],
        color='tab:blue' if curve.recurrent else 'tab:gray',
        alpha=0.8,
        label=labels.pop(curve.recurrent, None),
      )
    if math.isfinite(group[0].goal):
      axis.axhline(group[0].goal, color='tab:red', linestyle='--', linewidth=1)
    axis.set_title(task, fontsize=9)
    axis.set_xlabel('thousand steps of all environments')
    axis.xaxis.set_major_formatter(lambda x, unused_position: f'{x / 1000:g}')
    axis.set_ylabel('mean return of an evaluation')
    axis.grid(True, alpha=0.3)
    axis.legend(fontsize=7)
  drawing.save(figure, path)
