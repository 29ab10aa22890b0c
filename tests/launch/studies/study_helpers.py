"""Fake runs for the tests of the studies."""

import argparse
import os
import pathlib
import subprocess
import sys
import types
from collections.abc import Callable, Sequence

import study
from rich import console, table
from studies import memory_tasks, runner

from r2d2_acme.results import tables
from r2d2_acme.system import processes
from tests import helpers


def write_actor_log(
  workdir: pathlib.Path,
  steps: Sequence[float],
  epsilons: Sequence[float],
  returns: Sequence[float],
):
  """Writes a log with an episode at each of these steps."""
  path = workdir / 'logs' / 'actor' / 'logs.csv'
  path.parent.mkdir(parents=True, exist_ok=True)
  columns = ('actor_steps', 'epsilon', 'episode_return')
  tables.write_csv(path, columns, zip(steps, epsilons, returns, strict=True))


def make_curve(task: str, goal: float, *returns: float, recurrent=True, seed=0):
  """Makes the curve of a run that was evaluated every 1,000 steps."""
  rows = [
    {
      'actor_steps': 1000 * (i + 1),
      'learner_steps': i,
      'mean_return': mean_return,
      'positive': 0.25,
      'seconds': 0.5,
    }
    for i, mean_return in enumerate(returns)
  ]
  return memory_tasks.Curve(task, recurrent, seed, goal, rows)


def read_cells(grid: table.Table) -> list[list[str]]:
  """Returns the cells of a table as it is printed, line by line."""
  terminal = console.Console(width=120, record=True, file=open(os.devnull, 'w'))
  terminal.print(grid)
  return [
    [cell.strip() for cell in line.split('│')[1:-1]]
    for line in terminal.export_text().splitlines()
    if line.startswith('│')
  ]


def parse(name: str, *flags: str) -> argparse.Namespace:
  """Parses the flags of a study as `launch/study.py` does."""
  return study.make_parser().parse_args([name, *flags])


def run_in_this_process(monkeypatch, main: Callable[[], int]):
  """Replaces the process of each run by a call of `main` with that process's flags.

  If it raises, the process counts as failed.
  """

  def start(unused_family, unused_name, command, **unused_keywords):
    flags, sys.argv = sys.argv, command[1:]
    try:
      code = main()
    except RuntimeError:
      code = 1
    finally:
      sys.argv = flags
    return types.SimpleNamespace(poll=lambda: code, returncode=code)

  monkeypatch.setattr(processes.Family, 'start', start)


def run_program(*flags: str, cwd: str | None = None) -> subprocess.CompletedProcess:
  """Runs `launch/study.py` and returns its output."""
  command = [sys.executable, str(helpers.LAUNCH / 'study.py'), *flags]
  return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def train(case: runner.Case, workdir: pathlib.Path, seed: int = 0) -> pathlib.Path:
  """Trains a run of a case in this process; returns the folder of its files."""
  study = runner.Study({'case': case}, [seed], workdir, report=lambda runs: 0)
  runner.train_one(study, f'case/{seed}')
  return workdir / 'case' / str(seed)
