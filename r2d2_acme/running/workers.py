"""A node of a program as a process or a thread, which can be started again."""

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from launchpad.launch import worker_manager

from r2d2_acme.running.outputs import Output
from r2d2_acme.system import forking, heartbeats, processes

SAVES = 'learner/0'  # the node whose failure at the end matters, too
FINAL_CODE = 3  # of a node that would only fail again
# An environment variable: how often a node was started again.
RESTARTS = 'R2D2_RESTARTS'

_TRACE_TIME = 0.3  # seconds for a stuck process to print where it is
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
    stop_order: those with smaller numbers are stopped first.
  """

  name: str
  pid: int | None
  num_starts: int
  is_asked: bool
  stop_order: int

  @property
  def heartbeat(self) -> heartbeats.Watched | None:
    """How it shows progress; None if it cannot."""

  def start(self):
    """Starts it."""

  def poll(self) -> int | None:
    """Returns its exit code, or None while it runs."""

  def ask(self):
    """Asks it to stop, if it runs."""

  def interrupt(self):
    """Lets it print where it is, if it can: it is stuck, and will be killed."""

  def kill(self):
    """Ends it, if it runs and that can be done, and what it leaves behind."""

  def describe_end(self) -> str:
    """Returns how it ended, such as 'was killed by signal 9'."""

  def describe_failure(self, cause: str = '') -> str:
    """Returns what it printed last, and how it ended, or another cause."""


class ProcessWorker:
  """A node in a process of its own, which ends when this one does."""

  def __init__(
    self,
    name: str,
    start: Callable[[Mapping[str, str]], processes.Child],
    family: processes.Family,
    output: Output,
    heartbeat: heartbeats.Watched,
    *,
    stop_order: int = 0,
  ):
    """Does not start it yet.

    Args:
      name: of the node, and of the process in its family.
      start: starts the process with these environment variables.
      family: that it belongs to.
      output: where it prints to.
      heartbeat: what it shows progress with.
      stop_order: see `Worker`.
    """
    self.name = name
    self.pid: int | None = None
    self.num_starts = 0
    self.is_asked = False
    self.stop_order = stop_order
    self.heartbeat = heartbeat
    self._start = start
    self._family = family
    self._output = output
    self._child: processes.Child
    self._obstacle = ''  # why the last start failed

  def start(self):
    self.is_asked = False
    self.heartbeat.start()
    env = {heartbeats.VARIABLE: self.heartbeat.path, RESTARTS: str(self.num_starts)}
    try:
      self._child = self._start(env)
    except forking.ForkServerFailed as error:
      if not self.num_starts:
        raise
      self._obstacle = str(error)  # the earlier process stays, which has ended
    else:
      self.pid = self._child.pid
      self._obstacle = ''
    self.num_starts += 1

  def poll(self) -> int | None:
    return self._child.poll()

  def ask(self):
    self.is_asked = True
    if self.poll() is None:
      processes.ask(self._child.pid)

  def interrupt(self):
    if self.poll() is None:
      os.kill(self._child.pid, signal.SIGUSR2)  # see `entry.main`
      time.sleep(_TRACE_TIME)

  def kill(self):
    if self.poll() is None:
      os.kill(self._child.pid, signal.SIGKILL)
    self._family.kill(self.name)
    self._child.wait()

  def describe_end(self) -> str:
    code = self._child.poll()
    if code is None:
      return 'runs'
    if self._obstacle:
      return f'could not be started: {self._obstacle}'
    if code < 0:
      hint = ', perhaps for want of memory' if code == -signal.SIGKILL else ''
      return f'was killed by signal {-code}{hint}'
    if code == FINAL_CODE:
      return 'failed for good'
    return f'failed with exit code {code}' if code else _UNASKED

  def describe_failure(self, cause: str = '') -> str:
    how = cause or self.describe_end()
    last = f'{self.name} {how}; full output: {self._output.path}'
    return '\n'.join([*self._output.last_lines(), last])


class ThreadWorker:
  """A node in a thread of this process, where Launchpad's functions work."""

  def __init__(self, name: str, function: Callable[[], Any], *, stop_order: int = 0):
    """Does not start it yet. Launchpad may set handlers of signals.

    Args:
      name: of the node.
      function: runs it until Launchpad's stop event is set.
      stop_order: see `Worker`.
    """
    self.name = name
    self.pid: int | None = os.getpid()
    self.num_starts = 0
    self.is_asked = False
    self.stop_order = stop_order
    self.heartbeat = None  # nobody could end it
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

  def interrupt(self):
    """Does nothing, as `kill`."""

  def kill(self):
    """Does nothing: a thread ends by itself, or with the process."""

  def describe_end(self) -> str:
    return _UNASKED if self._error is None else f'failed: {self._error}'

  def describe_failure(self, cause: str = '') -> str:
    last = f'{self.name} {cause or self.describe_end()}'
    if self._error is None:
      return last
    return ''.join(traceback.format_exception(self._error)) + last


def is_running(worker: Worker) -> bool:
  """Returns whether a worker was started and has not ended."""
  return bool(worker.num_starts) and worker.poll() is None


def is_failed(worker: Worker) -> bool:
  """Returns whether a worker has ended in another way than those that are asked to."""
  if not worker.num_starts or worker.poll() is None:
    return False
  return not worker.is_asked or worker.poll() not in _STOPPED_CODES
