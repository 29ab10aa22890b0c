"""A node of a program, most often a process, which can be started again."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from r2d2_acme.running.outputs import Output
from r2d2_acme.system import forking, heartbeats, processes

ENTRY = 'r2d2_acme.running.entry:main'  # where the process of a node begins
SAVES = 'learner/0'  # the node whose failure at the end matters, too
STOP_LIMIT = 18  # seconds for all to stop: one long learner step, and two saves
FINAL_CODE = 3  # of a node that would only fail again
# An environment variable: how often a node was started again.
RESTARTS = 'R2D2_RESTARTS'

_TRACE_TIME = 0.3  # seconds for a stuck process to print where it is
UNASKED = 'ended although nobody asked it to'

# Of a process that was asked to stop, the latter two before it could handle that.
_STOPPED_CODES = (0, -signal.SIGTERM, 128 + signal.SIGTERM)


class Heartbeat(Protocol):
  """What `heartbeats.Watched` tells of the beats of a node."""

  @property
  def is_announced(self) -> bool: ...

  @property
  def has_beaten(self) -> bool: ...

  @property
  def seconds_since(self) -> float: ...

  def look(self): ...

  def excuse(self, seconds: float): ...


class Worker(Protocol):
  """A node of the program; it can be started again once it has ended.

  Attributes:
    name: such as 'actor/0'.
    pid: of the process that it runs in; None before its first start.
    host: the address of the machine that it runs on; empty for this one.
    num_starts: how often it was started.
    is_asked: whether it was asked to stop.
    stop_order: those with smaller numbers are stopped first.
  """

  name: str
  pid: int | None
  host: str
  num_starts: int
  is_asked: bool
  stop_order: int

  @property
  def heartbeat(self) -> Heartbeat | None:
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

  host = ''

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
    return f'failed with exit code {code}' if code else UNASKED

  def describe_failure(self, cause: str = '') -> str:
    return describe_failure(self.name, cause or self.describe_end(), self._output)


def describe_failure(name: str, how: str, output: Output) -> str:
  """Returns what a node printed last, and then how it ended."""
  last = f'{name} {how}; full output: {output.path}'
  return '\n'.join([*output.last_lines(), last])


def is_running(worker: Worker) -> bool:
  """Returns whether a worker was started and has not ended."""
  return bool(worker.num_starts) and worker.poll() is None


def is_failed(worker: Worker) -> bool:
  """Returns whether a worker has ended in another way than those that are asked to."""
  if not worker.num_starts or worker.poll() is None:
    return False
  return not worker.is_asked or worker.poll() not in _STOPPED_CODES
