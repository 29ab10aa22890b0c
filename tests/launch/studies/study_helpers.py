"""Fake runs for the tests of the studies."""

import argparse
import pathlib
import subprocess
import sys
import types
from collections.abc import Callable, Sequence

import study
from studies import runner

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
