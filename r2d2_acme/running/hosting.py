"""The part of a cluster's launcher that runs beside a node, on the node's host.

It starts the node's process, starts it again, watches it and stops it, as the launcher
of one machine does, but each step is called for from far away. Nothing here knows by
what means. It imports nothing beside the package and the standard library, so that it
can tell which packages the host lacks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence

from r2d2_acme.running import MODULES, outputs, workers
from r2d2_acme.system import doctor, forking, heartbeats, processes
from r2d2_acme.workdir import locking

_STOP_FILE = 'R2D2_STOP_FILE'  # an environment variable of nodes
_POLL_PERIOD = 0.1  # seconds
_MAX_LINES = 10_000  # that are kept for a launcher that does not ask
_LAUNCHER_TIMEOUT = 90.0  # seconds without a call, after which the launcher is lost
_SHARING_TIMEOUT = 5.0  # seconds until a shared file must be seen here
_FIRST_PORT, _LAST_PORT = 15_000, 24_999  # below those that the system gives away


@dataclasses.dataclass(frozen=True)
class Facts:
  """What a host is.

  Attributes:
    hostname: its name.
    port: a free one for the node's server.
    versions: of packages, by name, and of 'python'; None where there is none.
    sees_workdir: whether the workdir there is that of the launcher.
  """

  hostname: str
  port: int
  versions: Mapping[str, str | None]
  sees_workdir: bool


@dataclasses.dataclass(frozen=True)
class Report:
  """How a node is doing on its host.

  Attributes:
    start: the number of the start that this is about; 0 before the first.
    pid: of the process, if there was one.
    code: its exit code; None while it runs.
    end: how it ended, such as 'was killed by signal 9'.
    is_announced, has_beaten, seconds_since: of its heartbeats, see `Watched`.
    stops_program: whether the node asks for the program's end.
    lines: what it printed since the last report.
    num_lines: the number of lines in all reports until now.
  """

  start: int
  pid: int | None
  code: int | None
  end: str
  is_announced: bool
  has_beaten: bool
  seconds_since: float
  stops_program: bool
  lines: Sequence[str]
  num_lines: int

  @property
  def news(self) -> tuple:
    """What is worth a report at once."""
    return self.start, self.code, self.has_beaten, self.stops_program, self.num_lines


class NodeHost:
  """Runs the process of one node. It ends with this process, or without a launcher.

  Any thread may call it.
  """

  def __init__(self, name: str, function: bytes, *, fresh: bool):
    """Starts to import what nodes need, and no node yet.

    Args:
      name: of the node.
      function: what Launchpad runs as the node, pickled in a list.
      fresh: whether its process must not be a fork of another one.
    """
    self._fresh = fresh
    self._folder = tempfile.mkdtemp(prefix='r2d2-')
    self._function = os.path.join(self._folder, 'function')
    with open(self._function, 'wb') as file:
      file.write(function)
    self._stop_file = os.path.join(self._folder, 'stop')
    self._env: Mapping[str, str] = {}
    self._start = 0
    self._obstacle = ''
    self._lines: list[str] = []
    self._num_lines = 0
    self._family = processes.Family(workers.STOP_LIMIT)
    self._at_close = contextlib.ExitStack()
    self._server = self._at_close.enter_context(
      forking.ForkServer(MODULES, private=False)
    )
    self._output = outputs.Output(os.path.join(self._folder, 'output'))
    self._worker = workers.ProcessWorker(
      name,
      self._fork,
      self._family,
      self._output,
      heartbeats.Watched(os.path.join(self._folder, 'heartbeat')),
    )
    self._changed = threading.Condition(threading.RLock())
    self._report = self._look()
    self._called_at = time.monotonic()
    self._is_closed = False
    threading.Thread(target=self._watch, daemon=True).start()

  def describe(
    self, packages: Sequence[str], workdir: str | None, env: Mapping[str, str]
  ) -> Facts:
    """Returns what the launcher must know before it starts the node here.

    Args:
      packages: whose versions to tell.
      workdir: of the launcher, if it has one.
      env: environment variables of the launcher that nodes need.
    """
    os.environ.update(env)
    deadline = time.monotonic() + _SHARING_TIMEOUT
    sees = workdir is None or locking.is_ours(workdir)
    while not sees and time.monotonic() < deadline:
      time.sleep(_POLL_PERIOD)
      sees = workdir is None or locking.is_ours(workdir)
    versions = {name: doctor.installed_version(name) for name in packages}
    versions['python'] = python_version()
    return Facts(socket.gethostname(), pick_port(), versions, sees)

  def start(self, number: int, env: Mapping[str, str]):
    """Starts the node.

    Args:
      number: of the start, from 1.
      env: environment variables of this start.
    """
    with contextlib.suppress(forking.ForkServerFailed):
      self._server.wait()  # here, without the lock, so that reports go on
    with self._changed:
      if self._worker.num_starts:
        self._worker.kill()  # what is left of the start before
      self._start, self._env, self._obstacle = number, env, ''
      try:
        self._worker.start()
      except forking.ForkServerFailed as error:
        self._obstacle = f'could not be started: {error}'

  def ask(self):
    """Asks the node to stop."""
    with self._changed:
      if self._runs():
        self._worker.ask()

  def interrupt(self):
    """Lets the node print where it is: it is stuck, and will be killed."""
    with self._changed:
      if self._runs():
        self._worker.interrupt()

  def kill(self):
    """Kills the node, and what it leaves behind."""
    with self._changed:
      if self._worker.num_starts:
        self._worker.kill()

  def stop(self, patience: float):
    """Asks the node to stop, and kills it if it does not within `patience` seconds."""
    self.ask()
    deadline = time.monotonic() + patience
    while self._runs() and time.monotonic() < deadline:
      time.sleep(_POLL_PERIOD)
    self.kill()

  def watch(self, num_lines: int, news: tuple, period: float) -> Report:
    """Waits for news, or for the end of a period; then reports.

    Args:
      num_lines: of the last report that the launcher got.
      news: of that report.
      period: seconds.
    """
    self._called_at = time.monotonic()
    with self._changed:
      del self._lines[: max(0, num_lines - self._num_lines + len(self._lines))]
      self._changed.wait_for(lambda: self._report.news != news, period)
      self._called_at = time.monotonic()
      return dataclasses.replace(self._report, lines=list(self._lines))

  def close(self):
    """Kills what runs, and removes the files of this host."""
    with self._changed:
      self._is_closed = True
      self.kill()
      self._family.kill()
      self._at_close.close()
      shutil.rmtree(self._folder, ignore_errors=True)

  def _runs(self) -> bool:
    with self._changed:
      return bool(self._worker.num_starts) and self._worker.poll() is None

  def _fork(self, env: Mapping[str, str]) -> processes.Child:
    return self._server.fork(
      self._worker.name,
      self._family,
      workers.ENTRY,
      [self._function, '0'],
      env={**env, **self._env, _STOP_FILE: self._stop_file},
      output=self._output.path,
      fresh=self._fresh,
    )

  def _watch(self):
    """Keeps the report up to date; ends this process if the launcher is lost."""
    while not self._is_closed:
      time.sleep(_POLL_PERIOD)
      with self._changed, contextlib.suppress(OSError):  # such as of a full disk
        self._report = self._look()
        self._changed.notify_all()
      if time.monotonic() > self._called_at + _LAUNCHER_TIMEOUT:
        print('The launcher is lost: the node stops.', flush=True)
        self.stop(workers.STOP_LIMIT)
        self.close()
        os._exit(1)

  def _look(self) -> Report:
    worker, code, end = self._worker, None, ''
    if self._obstacle:
      code, end = 1, self._obstacle
    elif worker.num_starts:
      code = worker.poll()
      end = worker.describe_end()
    new = list(self._output.new_lines())  # after the code: none is printed later
    if new:
      outputs.print_lines(new)  # for the cluster's own logs
      self._num_lines += len(new)
      self._lines = [*self._lines, *new][-_MAX_LINES:]
    worker.heartbeat.look()
    return Report(
      start=self._start,
      pid=worker.pid,
      code=code,
      end=end,
      is_announced=worker.heartbeat.is_announced,
      has_beaten=worker.heartbeat.has_beaten,
      seconds_since=worker.heartbeat.seconds_since,
      stops_program=os.path.exists(self._stop_file),
      lines=(),
      num_lines=self._num_lines,
    )


def python_version() -> str:
  """Returns the version of Python, such as '3.10'."""
  return '.'.join(platform.python_version_tuple()[:2])


def stop_program():
  """Is `lp.stop` in a node on a host."""
  with open(os.environ[_STOP_FILE], 'w'):
    pass


def pick_port() -> int:
  """Returns a port that nobody here listens on, in a range that a firewall can open.

  Raises:
    OSError: none is free.
  """
  ports = list(range(_FIRST_PORT, _LAST_PORT + 1))
  offset = int.from_bytes(os.urandom(2), 'big') % len(ports)
  for port in ports[offset:] + ports[:offset]:
    with socket.socket() as any_socket:
      try:
        any_socket.bind(('', port))
      except OSError:
        continue
      return port
  raise OSError(f'no port between {_FIRST_PORT} and {_LAST_PORT} is free')
