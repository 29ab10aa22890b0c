"""Runs programs, several at once, and skips those whose work is done."""

import contextlib
import dataclasses
import itertools
import pathlib
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from r2d2_acme.system import processes, stopping
from r2d2_acme.workdir import paths

_POLL_PERIOD = 0.1  # seconds
_ENDED = object()


@dataclasses.dataclass(frozen=True)
class Job:
  """A program to run.

  Attributes:
    name: for the lines about it, unlike that of any other.
    command: the program and its arguments.
    is_done: returns whether its work is done. It is called before the program would be
      started, and when it has ended.
    output: the file for what it prints on stderr; None for the terminal.
    is_quiet: whether the file gets what it prints on stdout, too. Then a line tells
      where that is.
  """

  name: str
  command: Sequence[str]
  is_done: Callable[[], bool]
  output: pathlib.Path | None = None
  is_quiet: bool = False


def run(
  chains: Iterable[Sequence[Job]],
  num_at_once: int,
  *,
  patience: float = 0.0,
  requests: stopping.Requests | None = None,
) -> list[str]:
  """Runs the jobs that are not done; a line tells how each one ended.

  Args:
    chains: the jobs of a chain run one after the other, until one fails.
    num_at_once: how many chains run at the same time.
    patience: seconds that the programs may take to stop if this one is killed.
    requests: requests to stop this program, which are passed on to the others.

  Returns:
    The names of the jobs that ended but are not done.
  """
  failed: list[str] = []
  children: dict[str, subprocess.Popen] = {}

  def work(chain: Sequence[Job]) -> Iterator[None]:
    for job in chain:
      if requests is not None and requests.stop:
        return
      if job.is_done():
        continue
      child = children[job.name] = _start(family, job)
      while child.poll() is None:
        yield
      del children[job.name]
      if requests is not None and requests.stop:
        return
      if not _tell(job, child.returncode):
        failed.append(job.name)
        return

  with processes.Family(patience) as family:
    waiting = map(work, chains)
    active: list[Iterator[None]] = []
    num_passed_on = 0
    while True:
      if requests is not None and requests.num > num_passed_on:
        num_passed_on += 1
        for child in children.values():
          with contextlib.suppress(ProcessLookupError):
            processes.ask(child.pid)
      active += itertools.islice(waiting, num_at_once - len(active))
      running = [x for x in active if next(x, _ENDED) is not _ENDED]
      if len(running) == len(active):
        if not active:
          return failed
        time.sleep(_POLL_PERIOD)
      active = running


def _start(family: processes.Family, job: Job) -> subprocess.Popen:
  if job.is_quiet:
    where = job.output and f', its output is in {paths.shown(str(job.output))}'
    print(f'{job.name}: started{where or ""}', flush=True)
  if job.output is None:
    return family.start(job.name, job.command)
  with open(job.output, 'w') as file:
    streams: dict[str, Any] = {'stdout': file} if job.is_quiet else {}
    return family.start(job.name, job.command, stderr=file, **streams)


def _tell(job: Job, code: int) -> bool:
  """Prints how a job ended; returns whether it is done."""
  is_done = job.is_done()
  line = f'{job.name}: {"finished" if is_done else f"not finished, code {code}"}'
  if not is_done and job.output is not None:
    line += f', see {paths.shown(str(job.output))}'
  print(line, flush=True)
  return is_done
