"""How well does R2D2 do on POPGym's tasks, and what is its memory worth there?

python launch/study.py popgym [--tasks=popgym:popgym-RepeatFirstEasy-v0,...]

The tasks of POPGym (Morad et al. 2023) need `make install EXTRAS=envs`. All train with
the preset `memory` as it is, and for as many steps. The score of a run is that of the
paper, the highest mean return during the training: here of its evaluations, of 100
episodes each. The baseline is the same agent with `recurrent=False`; it still sees its
previous action and reward.
"""

import argparse
import math
import pathlib
from collections.abc import Sequence

import numpy as np
from rich import table

from r2d2_acme.results import aggregates, tables
from r2d2_acme.workdir import paths
from studies import memory_tasks
from studies.memory_tasks import Curve, Task
from studies.runner import Study

_NAMES = (
  'RepeatPrevious',
  'RepeatFirst',
  'CountRecall',
  'Autoencode',
  'Battleship',
  'HigherLower',
  'Concentration',
  'PositionOnlyCartPole',
)
TASKS = tuple(
  Task(
    f'popgym:popgym-{name}Easy-v0',
    max_steps=240_000,
    evaluation_period=20_000,
    threshold=math.inf,
  )
  for name in _NAMES
)
_SCORES = 'scores.csv'


def add_flags(parser: argparse.ArgumentParser):
  memory_tasks.add_task_flags(parser, TASKS, 'popgym', 'results/popgym/curves.png')


def make_study(args: argparse.Namespace) -> Study:
  """Makes the study that the flags describe; exits if they cannot work."""
  return memory_tasks.make_task_study(args, TASKS, _report)


def _report(curves: Sequence[Curve], out: pathlib.Path) -> int:
  """Prints a table; writes the plot, its CSV and the scores of all runs."""
  memory_tasks.show(make_table(curves))
  memory_tasks.plot(curves, out)
  memory_tasks.write_csv(curves, out.with_suffix('.csv'))
  write_scores(curves, out.with_name(_SCORES))
  print(f'see {paths.shown(str(out.parent))}')
  return 0


def make_table(curves: Sequence[Curve]) -> table.Table:
  """Returns a table with a line for each task and agent."""
  grid = table.Table(title='POPGym', title_justify='left', title_style='bold')
  for header in ('task', 'steps', 'agent', 'highest mean return', 'last mean return'):
    grid.add_column(header, justify='left' if header in ('task', 'agent') else 'right')
  for task in dict.fromkeys(curve.task for curve in curves):
    for agent in dict.fromkeys(curve.agent for curve in curves):
      group = [c for c in curves if (c.task, c.agent) == (task, agent)]
      grid.add_row(
        task.partition(':')[2],
        ' '.join(f'{n:,}' for n in sorted({curve.num_steps for curve in group})),
        agent,
        _estimate([curve.best_return for curve in group]),
        _estimate([curve.last_return for curve in group]),
      )
    grid.add_section()
  return grid


def write_scores(curves: Sequence[Curve], path: pathlib.Path):
  """Writes a row for each run."""
  tables.write_csv(
    path,
    ('task', 'agent', 'seed', 'actor_steps', 'highest_return', 'last_return'),
    (
      (c.task, c.agent, c.seed, c.num_steps, c.best_return, c.last_return)
      for c in curves
    ),
  )


def _estimate(scores: Sequence[float]) -> str:
  """Returns the interquartile mean and, of several scores, its 95 % interval."""
  value, low, high = aggregates.estimate([np.array(scores)])
  return f'{value:.2f}' if len(scores) == 1 else f'{value:.2f} [{low:.2f}, {high:.2f}]'
