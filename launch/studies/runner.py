"""Trains the runs of a study, each in a process of its own, and each only once.

A run is one case with one seed. Its name is `<case>/<seed>`, and its files are in the
folder of that name in the study's workdir. A finished run is not trained again, unless
its config has changed. A run that was interrupted starts from nothing.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from r2d2_acme import agent
from r2d2_acme.config import R2D2Config
from r2d2_acme.environments import EnvironmentFactory
from r2d2_acme.experiment import Experiment
from r2d2_acme.system import machine, runtime, stopping
from r2d2_acme.workdir import description, loggers, paths
from studies import arguments, jobs

_FINISHED = 'finished.json'  # the last file that a run writes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """What the runs of one case train; studies that measure more override `train`.

  Attributes:
    config: the hyperparameters. A run replaces the seed by its own.
    environment_factory: makes an environment from a seed.
    max_steps: environment steps of a run, unless it is solved before.
    as_long_as: the name of another case. A run is then as long as the run of that case
      with the same seed was, and starts after it.
  """

  config: R2D2Config
  environment_factory: EnvironmentFactory
  max_steps: int
  as_long_as: str | None = None

  def describe(self, seed: int) -> dict[str, Any]:
    """Returns what a run depends on. When it changes, the run is trained again."""
    config = dataclasses.replace(self.config, seed=seed)
    return {'config': dataclasses.asdict(config)}

  def train(self, experiment: Experiment, workdir: pathlib.Path) -> int | None:
    """Trains a run in this process.

    Args:
      experiment: what to train until when. Its loggers write in the workdir.
      workdir: an empty folder for the files of the run.

    Returns:
      The environment steps after which it was solved and ended; None if it was not.
    """
    del workdir
    agent.run_experiment(experiment)
    return None

  def is_whole(self, workdir: pathlib.Path) -> bool:
    """Returns whether the files of a finished run can be read."""
    del workdir
    return True


@dataclasses.dataclass(frozen=True)
class Study:
  """Cases to train and to compare.

  Attributes:
    cases: the cases by their names.
    seeds: the seeds with which each case is trained.
    workdir: the folder that has a folder for each run.
    report: writes tables and figures and returns the exit code of the program. Its
      argument has the workdirs of each case's runs, one for each seed.
  """

  cases: Mapping[str, Case]
  seeds: Sequence[int]
  workdir: pathlib.Path
  report: Callable[[Mapping[str, Sequence[pathlib.Path]]], int]


def add_flags(parser: argparse.ArgumentParser, results: str):
  """Adds the flags of all studies; by default runs are in the folder `runs/results`."""
  parser.add_argument(
    '--max_steps', type=arguments.positive_int, help='environment steps of each run'
  )
  parser.add_argument(
    '--processes',
    type=arguments.positive_int,
    default=1,
    help='runs at once; by default 1',
  )
  parser.add_argument(
    '--workdir',
    type=paths.argument,
    default=f'runs/{results}',
    help=f'where finished runs stay; by default runs/{results}',
  )
  parser.add_argument('--run', help=argparse.SUPPRESS)  # trains one, in this process


def main(study: Study, args: argparse.Namespace) -> int:
  """Trains the runs that are not finished, then reports; returns the exit code.

  The process of a run is this program with the same flags and with `--run=<name>`.
  """
  if args.run:
    runtime.limit_threads(max(1, machine.num_cores() // args.processes))
    # The terminal is for what `say` prints. The rest goes to the run's own file.
    with contextlib.redirect_stdout(sys.stderr):
      train_one(study, args.run)
    return 0
  study.workdir.mkdir(parents=True, exist_ok=True)
  if jobs.run(_chains(study), args.processes):
    return 1
  return study.report(
    {
      case: [study.workdir / case / str(seed) for seed in study.seeds]
      for case in study.cases
    }
  )


def say(line: str):
  """Prints a line from the process of a run on the terminal of the study."""
  terminal = stopping.Forgiving(sys.__stdout__)
  terminal.write(f'{line}\n')
  terminal.flush()


def read_finished(workdir: pathlib.Path) -> dict[str, Any]:
  """Reads the note of a finished run; empty if it has not finished or is damaged.

  The note has `revision`, what `Case.describe` and `Case.train` returned, the latter as
  `solved_after`, and `max_steps`.
  """
  try:
    finished = json.loads((workdir / _FINISHED).read_text())
  except (OSError, ValueError, RecursionError):
    return {}
  return finished if isinstance(finished, dict) else {}


def _split(study: Study, run: str) -> tuple[Case, int]:
  case, _, seed = run.rpartition('/')
  return study.cases[case], int(seed)


def _max_steps(study: Study, run: str) -> int:
  case, seed = _split(study, run)
  if case.as_long_as is None:
    return case.max_steps
  before = read_finished(study.workdir / case.as_long_as / str(seed))
  return before['solved_after'] or before['max_steps']


def _is_finished(study: Study, run: str) -> bool:
  """Returns whether a run of the same description was long enough, or solved."""
  (case, seed), workdir = _split(study, run), study.workdir / run
  finished = read_finished(workdir)
  described = json.loads(json.dumps(case.describe(seed)))
  if any(finished.get(name) != value for name, value in described.items()):
    return False
  is_solved = finished.get('solved_after') is not None
  # Earlier versions noted none: the folder's name says it.
  is_long = finished.get('max_steps', case.max_steps) >= _max_steps(study, run)
  return (is_solved or is_long) and case.is_whole(workdir)


def train_one(study: Study, run: str):
  """Trains a run in this process and notes that it has finished."""
  (case, seed), workdir = _split(study, run), study.workdir / run
  shutil.rmtree(workdir, ignore_errors=True)
  workdir.mkdir(parents=True, exist_ok=True)
  experiment = Experiment(
    dataclasses.replace(case.config, seed=seed),
    case.environment_factory,
    logger_factory=lambda _, *node: loggers.make_logger(str(workdir), *node),
    evaluator=False,
    max_actor_steps=_max_steps(study, run),
  )
  finished = {
    'solved_after': case.train(experiment, workdir),
    'max_steps': experiment.max_actor_steps,
    'revision': description.revision(),
    **case.describe(seed),
  }
  new = workdir / f'{_FINISHED}.new'
  new.write_text(json.dumps(finished))
  os.replace(new, workdir / _FINISHED)


def _chains(study: Study) -> Iterator[list[jobs.Job]]:
  """Yields runs of which each waits for the first.

  Seed follows seed, so that an interrupted study compares all cases.
  """

  def make_job(run: str) -> jobs.Job:
    return jobs.Job(
      run,
      [sys.executable, *sys.argv, f'--run={run}'],
      functools.partial(_is_finished, study, run),
      study.workdir / f'{run.replace("/", "_")}.txt',
    )

  for seed in study.seeds:
    for name, case in study.cases.items():
      if case.as_long_as is None:
        others = [n for n, c in study.cases.items() if c.as_long_as == name]
        yield [make_job(f'{case_name}/{seed}') for case_name in (name, *others)]
