"""For the tests of `launch/studies.py` and of the studies: fake runs."""

import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence

import studies

from r2d2_acme.system import processes
from tests import helpers


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

  def run(unused_family, unused_name, command, **unused_keywords) -> int:
    flags, sys.argv = sys.argv, command[1:]
    try:
      return main()
    except RuntimeError:
      return 1
    finally:
      sys.argv = flags

  monkeypatch.setattr(processes.Family, 'run', run)


def run_program(name: str, *flags: str) -> subprocess.CompletedProcess:
  """A program of `launch/`, with its output."""
  command = [sys.executable, str(helpers.LAUNCH / name), *flags]
  return subprocess.run(command, capture_output=True, text=True)
