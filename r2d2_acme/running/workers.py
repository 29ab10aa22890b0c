"""Runs the nodes of a program as processes or threads, and ends them together."""

import os
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from absl import flags
from launchpad.launch import worker_manager

from r2d2_acme.running.outputs import Output
from r2d2_acme.system import processes, stopping

STOP_LIMIT = 18  # seconds for a node to stop: one long learner step, and a save

_POLL_PERIOD = 0.1  # seconds
_SAVES = 'learner/0'  # the node whose failure at the end matters, too
_UNASKED = 'ended although nobody asked it to'

# Of a process that was asked to stop, the latter two before it could handle that.
_STOPPED_CODES = (0, -signal.SIGTERM, 128 + signal.SIGTERM)


class Worker(Protocol):
  """A node of the program; it can be started again once it has ended.

  Attributes:
    name: such as 'actor/0'.
    pid: of the process that it runs in; None before its first start.
    num_starts: how often it was started.
    is_asked: whether it was asked to stop.
  """

  name: str
  pid: int | None
  num_starts: int
  is_asked: bool

  def start(self):
    """Starts it."""

  def poll(self) -> int | None:
    """Returns its exit code, or None while it runs."""

  def ask(self):
    """Asks it to stop, if it runs."""

  def kill(self):
    """Ends it, if it runs and that can be done, and what it leaves behind."""

  def describe_failure(self) -> str:
    """Returns what it printed last, and how it ended."""


class ProcessWorker:
  """A node in a process of its own, which ends when this one does."""

  def __init__(
    self,
    name: str,
    command: Sequence[str],
    env: Mapping[str, str],
    family: processes.Family,
    output: Output,
  ):
    """Does not start it yet.

    Args:
      name: of the node.
      command: starts it.
      env: environment variables beside those of this process.
      family: what it becomes a child of.
      output: where it prints to.
    """
    self.name = name
    self.pid: int | None = None
    self.num_starts = 0
    self.is_asked = False
    self._command = command
    self._env = env
    self._family = family
    self._output = output
    self._popen: subprocess.Popen

  def start(self):
    self.is_asked = False
    with open(self._output.path, 'ab') as file:  # so that the file may be cut
      self._popen = self._family.start(
        self.name, self._command, env=self._env, stdout=file, stderr=subprocess.STDOUT
      )
    self.pid = self._popen.pid
    self.num_starts += 1

  def poll(self) -> int | None:
    return self._popen.poll()

  def ask(self):
    self.is_asked = True
    if self.poll() is None:
      processes.ask(self._popen.pid)

  def kill(self):
    self._family.kill(self.name)
    self._popen.wait()

  def describe_failure(self) -> str:
    code = self._popen.returncode
    if code < 0:
      how = f'was killed by signal {-code}'
    elif code > 0:
      how = f'failed with exit code {code}'
    else:
      how = _UNASKED
    last = f'{self.name} {how}; full output: {self._output.path}'
    return '\n'.join([*self._output.last_lines(), last])


class ThreadWorker:
  """A node in a thread of this process, where Launchpad's functions work."""

  def __init__(self, name: str, function: Callable[[], Any]):
    """Does not start it yet. Launchpad may set handlers of signals.

    Args:
      name: of the node.
      function: runs it until Launchpad's stop event is set.
    """
    self.name = name
    self.pid: int | None = os.getpid()
    self.num_starts = 0
    self.is_asked = False
    self._function = function
    self._error: BaseException | None = None
    self._ended = threading.Event()
    # What `lp.stop_event` and `lp.wait_for_stop` use in the node's thread.
    self._manager = worker_manager.WorkerManager(
      kill_main_thread=False, register_signals=False
    )

  def start(self):
    self.is_asked = False
    self._error = None
    self._ended.clear()
    self._manager.stop_event().clear()
    self._manager.thread_worker(self.name, self._run)
    self.num_starts += 1

  def _run(self):
    try:
      self._function()
    except BaseException as error:  # for `describe_failure`
      self._error = error
    finally:
      self._ended.set()

  def poll(self) -> int | None:
    return int(self._error is not None) if self._ended.is_set() else None

  def ask(self):
    self.is_asked = True
    self._manager.stop_event().set()

  def kill(self):
    """Does nothing: a thread ends by itself, or with the process."""

  def describe_failure(self) -> str:
    error = self._error
    if error is None:
      return f'{self.name} {_UNASKED}'
    return ''.join(traceback.format_exception(error)) + f'{self.name} failed: {error}'


def watch(
  workers: Sequence[Worker],
  requests: stopping.Requests,
  report: Callable[[], None] = lambda: None,
) -> tuple[int, str]:
  """Waits for the end of all workers; stops them on request, or when one has ended.

  Workers run until they are asked to stop: one that ends before has failed, whatever
  its exit code.

  Args:
    workers: all were started.
    requests: of the user, or of a node at a limit.
    report: called ten times a second.

  Returns:
    The exit code, as `launching.launch` has it, and what to print at the very end.
  """
  flag = flags.FLAGS['lp_termination_notice_secs']
  limit = STOP_LIMIT if flag.using_default_value else int(flag.value or 0)
  running = list(workers)
  failed: Worker | None = None  # the first one: others may end for want of it
  deadline: float | None = None
  while running and not requests.quit:
    ended = [worker for worker in running if worker.poll() is not None]
    running = [worker for worker in running if worker not in ended]
    for worker in ended:
      worker.kill()
    # Read after the workers' codes: a signal may be sent to all processes at once.
    if deadline is None and not requests.stop:
      # Of several, the one that says why.
      failed = max(ended, key=lambda worker: bool(worker.poll()), default=None)
    if deadline is None and (requests.stop or failed):
      # Below 0 there is none, as in Launchpad.
      deadline = time.monotonic() + (limit if limit >= 0 else float('inf'))
      for worker in workers:
        if worker is not failed:
          worker.ask()
    report()
    if deadline is not None and time.monotonic() >= deadline:
      break
    if running:
      time.sleep(_POLL_PERIOD)
  for worker in running:
    worker.kill()
  messages = []
  if running and not requests.quit:
    names = ', '.join(worker.name for worker in running)
    messages.append(
      f'These nodes did not stop within {limit} s and were killed: {names}'
    )
  elif failed is None and not requests.quit:
    # Without its last save the steps since the one before are lost.
    failed = next((x for x in workers if x.name == _SAVES and is_failed(x)), None)
  if failed is not None:
    messages.append(failed.describe_failure())
  code = stopping.QUIT_CODE if requests.quit else int(bool(messages))
  return code, '\n'.join(messages)


def is_failed(worker: Worker) -> bool:
  """Returns whether a worker has ended in another way than those that are asked to."""
  code = worker.poll()
  if code is None:
    return False
  return not worker.is_asked or code not in _STOPPED_CODES
