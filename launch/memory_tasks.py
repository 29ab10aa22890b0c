"""Trains R2D2 on tasks that need memory, and beside it R2D2 without memory.

python launch/memory_tasks.py [--tasks=memory/cue_recall/10,...] [--seeds=0,1,2]

Each seed is one process. It is done when the mean return of an evaluation, and of the
next, reaches the task's threshold; the first of the two counts. The baseline is the
same agent with `recurrent=False` and as many steps. It still sees its previous action
and reward, as R2D2 does.
"""

import argparse
import csv
import dataclasses
import json
import multiprocessing
import os
import pathlib
import signal
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any

try:
  from r2d2_acme.system import doctor, stopping
except ModuleNotFoundError:
  sys.exit('r2d2_acme is not in this Python: run `make install`, then .venv/bin/python')
if __name__ == '__main__':
  stopping.end_at_once(
    message='Stopped. Start again to go on after the last finished run.\n'
  )
doctor.check_installation()

import acme  # noqa: E402
import dm_env  # noqa: E402
from acme.utils import counting, loggers  # noqa: E402
from rich import console, table  # noqa: E402

from r2d2_acme import builder as builder_lib  # noqa: E402
from r2d2_acme import config as config_lib  # noqa: E402
from r2d2_acme import environments  # noqa: E402
from r2d2_acme.acting.loop import VectorEnvironmentLoop  # noqa: E402
from r2d2_acme.acting.policy import BatchedActor  # noqa: E402
from r2d2_acme.agent import R2D2  # noqa: E402
from r2d2_acme.config import R2D2Config  # noqa: E402
from r2d2_acme.results import evaluation, plotting  # noqa: E402
from r2d2_acme.system import machine, processes, runtime  # noqa: E402
from r2d2_acme.workdir import description, paths  # noqa: E402

_SHARE_OF_MAX = 0.95  # of the maximal return, where the task knows it


@dataclasses.dataclass(frozen=True)
class Task:
  """What is trained, until when.

  Attributes:
    env: as `environments.make` takes it.
    max_steps: of the environments, together; then it is given up.
    evaluation_period: steps between evaluations.
    num_episodes: of one evaluation, all at once.
    threshold: mean return that solves it; None for 0.95 of the maximum.
    overrides: fields of the preset `memory` that this task needs otherwise.
  """

  env: str
  max_steps: int
  evaluation_period: int
  num_episodes: int = 100
  threshold: float | None = None
  overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def goal(self) -> float:
    """The threshold, a number."""
    if self.threshold is not None:
      return self.threshold
    return _SHARE_OF_MAX * environments.make(self.env).max_return  # type: ignore

  def config(self, seed: int, recurrent: bool) -> R2D2Config:
    return dataclasses.replace(
      config_lib.memory(), seed=seed, recurrent=recurrent, **self.overrides
    )


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


_COLUMNS = ('actor_steps', 'learner_steps', 'mean_return', 'seconds')


@dataclasses.dataclass(frozen=True)
class Curve:
  """What one run came to.

  Attributes:
    task: its `env`.
    recurrent: or the baseline.
    seed: of the run.
    goal: the task's.
    rows: one for each evaluation: `actor_steps`, `learner_steps`, `mean_return`,
      `seconds`.
  """

  task: str
  recurrent: bool
  seed: int
  goal: float
  rows: Sequence[Mapping[str, float]]

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
  def last_return(self) -> float:
    """The mean of the last two evaluations."""
    return statistics.mean(row['mean_return'] for row in self.rows[-2:])


class RunFailed(Exception):
  """A run's process died; it has said why."""


class _Evaluator:
  """Plays many episodes at once, each to its end, nearly greedily."""

  def __init__(
    self, config: R2D2Config, evaluated: Sequence[dm_env.Environment], seeds: list[int]
  ):
    """`evaluated` are the environments to play in, `seeds` those of the policies."""
    self._max_steps = config.max_evaluation_steps
    self._environments = evaluated
    spec = acme.make_environment_spec(self._environments[0])
    self._actor = BatchedActor(
      builder_lib.R2D2Builder(config, spec).make_network(),
      config,
      spec,
      epsilons=[config.evaluator_epsilon] * len(seeds),
      seeds=seeds,
    )

  def mean_return(self, source: acme.VariableSource) -> float:
    """Of one episode of each environment, with the source's parameters."""
    self._actor.fetch(source)
    episodes = evaluation.play(
      self._actor,
      self._environments,
      len(self._environments),
      max_steps=self._max_steps,
    )
    return statistics.mean(episode.total for episode in episodes)


def train(
  task: Task,
  seed: int,
  *,
  recurrent: bool = True,
  max_steps: int | None = None,
  stop_when_solved: bool = True,
) -> Curve:
  """One run, in this process; `max_steps` overrules the task's."""
  config = task.config(seed, recurrent)
  seeds = [
    builder_lib.environment_seed(config, i) for i in range(config.envs_per_actor)
  ]
  evaluated_seeds, policy_seeds = zip(
    *(builder_lib.evaluation_seeds(seed, i) for i in range(task.num_episodes)),
    strict=True,
  )

  def make(environment_seed: int) -> dm_env.Environment:
    return environments.make(task.env, seed=environment_seed)

  with (
    environments.opened(make, seeds) as fleet,
    environments.opened(make, evaluated_seeds) as evaluated,
  ):
    agent = R2D2(acme.make_environment_spec(fleet[0]), config)
    loop = VectorEnvironmentLoop(fleet, agent, counting.Counter(), loggers.NoOpLogger())
    evaluator = _Evaluator(config, evaluated, list(policy_seeds))
    rows: list[dict[str, float]] = []
    curve = Curve(task.env, recurrent, seed, task.goal, rows)
    start = time.monotonic()
    steps = 0
    while steps < (max_steps or task.max_steps):
      loop.run(num_steps=task.evaluation_period)
      steps += task.evaluation_period
      rows.append(
        {
          'actor_steps': steps,
          'learner_steps': agent.learner.num_steps,
          'mean_return': evaluator.mean_return(agent),
          'seconds': round(time.monotonic() - start, 1),
        }
      )
      label = f'{task.env} {_agent(recurrent)} seed {seed}'
      print(f'[{label}] ' + ' | '.join(f'{k} {v:,.6g}' for k, v in rows[-1].items()))
      if stop_when_solved and curve.solved_at is not None:
        break
  return curve


def train_in_process(
  task: Task, seed: int, *, recurrent: bool, max_steps: int, workdir: str, threads: int
) -> Curve:
  """As `train`, in a process of its own; a finished run in `workdir` is taken over.

  The baseline runs to its end, solved or not.

  Raises:
    RunFailed: the process died.
  """
  path = pathlib.Path(workdir, f'{_agent(recurrent)}_{seed}.json')
  path = path.parent / task.env.replace('/', '_') / path.name
  setup = {
    'task': dataclasses.asdict(task),
    'config': dataclasses.asdict(task.config(seed, recurrent)),
  }
  setup = json.loads(json.dumps(setup))
  found = _read(path, setup)
  if found and (found.num_steps >= max_steps or (recurrent and found.solved_at)):
    return found
  path.parent.mkdir(parents=True, exist_ok=True)
  process = multiprocessing.get_context('spawn').Process(
    target=_train_and_write,
    args=(task, seed, recurrent, max_steps, path, setup, threads),
    daemon=True,
  )
  process.start()
  process.join()
  curve = _read(path, setup)
  if process.exitcode or curve is None:
    raise RunFailed(
      f'{task.env} {_agent(recurrent)} seed {seed}: exit code {process.exitcode}'
    )
  return curve


def _train_and_write(task, seed, recurrent, max_steps, path, setup, threads):
  signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C: the program says so
  runtime.limit_threads(threads)
  curve = train(
    task, seed, recurrent=recurrent, max_steps=max_steps, stop_when_solved=recurrent
  )
  new = path.with_suffix('.new')
  stored = {
    'revision': description.revision(),
    'setup': setup,
    'curve': dataclasses.asdict(curve),
  }
  new.write_text(json.dumps(stored))
  os.replace(new, path)
  runtime.exit_now(0)


def _read(path: pathlib.Path, setup: Mapping[str, Any]) -> Curve | None:
  """The curve of a finished run of this task with this config, if it is whole."""
  try:
    stored = json.loads(path.read_text())
    curve = Curve(**stored['curve'])
    is_whole = all(
      isinstance(row[name], int | float) for row in curve.rows for name in _COLUMNS
    )
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    return None
  return curve if is_whole and stored['setup'] == setup else None


def train_both(
  task: Task, seed: int, *, max_steps: int, workdir: str, threads: int
) -> tuple[Curve, Curve]:
  """The agent, and the baseline for as many steps."""

  def run(recurrent: bool, max_steps: int) -> Curve:
    return train_in_process(
      task,
      seed,
      recurrent=recurrent,
      max_steps=max_steps,
      workdir=workdir,
      threads=threads,
    )

  agent = run(True, max_steps)
  return agent, run(False, agent.num_steps)


def make_table(curves: Sequence[Curve]) -> table.Table:
  """A line for each task and agent."""
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
        _agent(recurrent),
        f'{sum(s is not None for s in solved_at)} of {len(group)}',
        ' '.join('-' if s is None else f'{s:,}' for s in solved_at),
        ' '.join(f'{curve.last_return:.3g}' for curve in group),
      )
    grid.add_section()
  return grid


def write_csv(curves: Sequence[Curve], path: pathlib.Path):
  """A row for each evaluation of each run."""
  with open(path, 'w', newline='') as file:
    writer = csv.writer(file, lineterminator='\n')
    names = ('actor_steps', 'learner_steps', 'mean_return', 'seconds')
    writer.writerow(('task', 'agent', 'seed', 'threshold', *names))
    for curve in curves:
      for row in curve.rows:
        values = [row[name] for name in names]
        writer.writerow(
          (curve.task, _agent(curve.recurrent), curve.seed, curve.goal, *values)
        )


def plot(curves: Sequence[Curve], path: pathlib.Path):
  """A panel for each task: return against steps, a line for each run."""
  pyplot = plotting.pyplot()
  tasks = list(dict.fromkeys(curve.task for curve in curves))
  columns = min(len(tasks), 3)
  rows = -(-len(tasks) // columns)
  figure, axes = pyplot.subplots(
    rows, columns, figsize=(4.2 * columns, 3 * rows), squeeze=False
  )
  for axis in axes.flat[len(tasks) :]:
    axis.set_axis_off()
  for task, axis in zip(tasks, axes.flat, strict=False):
    group = [curve for curve in curves if curve.task == task]
    for i, curve in enumerate(sorted(group, key=lambda curve: not curve.recurrent)):
      is_first = i == 0 or (
        not curve.recurrent and sum(c.recurrent for c in group) == i
      )
      axis.plot(
        [row['actor_steps'] for row in curve.rows],
        [row['mean_return'] for row in curve.rows],
        color='tab:blue' if curve.recurrent else 'tab:gray',
        alpha=0.8,
        label=_agent(curve.recurrent) if is_first else None,
      )
    axis.axhline(group[0].goal, color='tab:red', linestyle='--', linewidth=1)
    axis.set_title(task, fontsize=9)
    axis.set_xlabel('steps of all environments')
    axis.set_ylabel('mean return of an evaluation')
    axis.grid(True, alpha=0.3)
    axis.legend(fontsize=7)
  figure.tight_layout()
  figure.savefig(path, dpi=110)
  pyplot.close(figure)


def _agent(recurrent: bool) -> str:
  return 'memory' if recurrent else 'memoryless'


def main() -> int:
  """0 if every task was solved on every seed, 1 if not, or if a run failed."""
  args = _parse()
  try:
    curves = _train_all(args)
  except RunFailed as error:
    print(f'error: {error}', file=sys.stderr, flush=True)
    return 1
  terminal = console.Console()
  if not terminal.is_terminal:
    terminal = console.Console(width=120)
  terminal.print(make_table(curves))
  args.out.parent.mkdir(parents=True, exist_ok=True)
  plot(curves, args.out)
  write_csv(curves, args.out.with_suffix('.csv'))
  names = [paths.shown(str(args.out.with_suffix(x))) for x in ('.png', '.csv')]
  print(f'{" and ".join(names)} have the curves.')
  return int(any(c.recurrent and c.solved_at is None for c in curves))


def _train_all(args: argparse.Namespace) -> list[Curve]:
  threads = max(1, machine.num_cores() // args.processes)
  with (
    processes.Family(patience=0.0) as family,  # a run keeps nothing but its end
    family.marking('run'),
    futures.ThreadPoolExecutor(args.processes) as pool,
  ):
    try:
      waiting = [
        pool.submit(
          train_both,
          task,
          seed,
          max_steps=min(task.max_steps, args.max_steps or task.max_steps),
          workdir=args.workdir,
          threads=threads,
        )
        for task in TASKS
        if task.env in args.tasks
        for seed in args.seeds
      ]
      return [curve for future in waiting for curve in future.result()]
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    'memory_tasks.py',
    description=__doc__,
    formatter_class=argparse.RawTextHelpFormatter,
  )
  parser.error = runtime.exit_with_error  # type: ignore[method-assign]
  names = [task.env for task in TASKS]
  parser.add_argument(
    '--tasks', default=','.join(names), help='by default ' + ',\n'.join(names)
  )
  parser.add_argument('--seeds', default='0,1,2', help='by default 0,1,2')
  parser.add_argument(
    '--max_steps', type=int, help='of all environments together, for each run'
  )
  parser.add_argument(
    '--processes', type=int, default=1, help='runs at once; by default 1'
  )
  parser.add_argument(
    '--workdir',
    type=paths.argument,
    default=os.path.join('runs', 'memory_tasks'),
    help='finished runs, which are not run again; by default runs/memory_tasks',
  )
  parser.add_argument(
    '--out',
    type=lambda path: pathlib.Path(paths.argument(path)),
    default=pathlib.Path('results', 'memory_tasks.png'),
    help='the plot; its CSV lies beside it. By default results/memory_tasks.png',
  )
  args = parser.parse_args()
  args.tasks = args.tasks.split(',')
  unknown = [name for name in args.tasks if name not in names]
  if unknown:
    runtime.exit_with_error(f'--tasks: {unknown[0]!r} is none of {", ".join(names)}')
  if not all(seed.isdecimal() for seed in args.seeds.split(',')):
    runtime.exit_with_error(f'--seeds={args.seeds} must be numbers, such as 0,1,2')
  args.seeds = [int(seed) for seed in args.seeds.split(',')]
  for name in ('max_steps', 'processes'):
    value = getattr(args, name)
    if value is not None and value < 1:
      runtime.exit_with_error(f'--{name} must be at least 1')
  if args.out.suffix != '.png':
    runtime.exit_with_error(f'--out={paths.shown(str(args.out))} must end in .png')
  try:
    for name in args.tasks:
      environments.make(name).close()
  except ValueError as error:
    runtime.exit_with_error(str(error))
  return args


if __name__ == '__main__':
  code = main()
  runtime.exit_now(code)
