"""For the tests of `launch/studies.py` and of the studies: fake runs."""

import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence

import studies

_LAUNCH = pathlib.Path(__file__).parent.parent / 'launch'


def write_actor_log(
  workdir: pathlib.Path,
  steps: Sequence[float],
  epsilons: Sequence[float],
  returns: Sequence[float],
):
  """An episode at each of these steps."""
  path = workdir / 'logs' / 'actor' / 'logs.csv'
  path.parent.mkdir(parents=True, exist_ok=True)
  columns = ('actor_steps', 'epsilon', 'episode_return')
  studies.write_csv(path, columns, zip(steps, epsilons, returns, strict=True))


def run_in_this_process(monkeypatch, main: Callable[[], int]):
  """In place of a process for each run, `main` with that process's flags.

  If it raises, the process counts as failed.
  """
  really_run = subprocess.run

  def run(command, **kwargs):
    if not command[-1].startswith('--run='):
      return really_run(command, **kwargs)
    flags, sys.argv = sys.argv, command[1:]
    try:
      return subprocess.CompletedProcess(command, main())
    except RuntimeError:
      return subprocess.CompletedProcess(command, 1)
    finally:
      sys.argv = flags

  monkeypatch.setattr(studies.subprocess, 'run', run)


def run_program(name: str, *flags: str) -> subprocess.CompletedProcess:
  """A program of `launch/`, with its output."""
  command = [sys.executable, str(_LAUNCH / name), *flags]
  return subprocess.run(command, capture_output=True, text=True)
