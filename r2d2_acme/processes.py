"""Child processes that end when their parent does, however that happens.

Each child carries a mark in its environment, which its own children inherit: so all
that a child leaves behind is found, in whatever session and of whatever parent it is. A
guard, one small process beside the parent, waits for the parent's end, which may be by
SIGKILL, and then ends all that carry the mark. It asks nothing of them: they may hang
in C++ with Python's lock, ignore signals or be suspended. (PR_SET_PDEATHSIG is bound to
one thread of the parent, does not reach a child's children and can be ignored, and a
watching thread in the child needs Python's lock.)

The guard runs this file as a script: the standard library only.
"""

from __future__ import annotations  # loads on any Python, as `doctor` does

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence

_MARK = 'R2D2_PROCESS'  # an environment variable: <family>:<name>
_POLL_PERIOD = 0.1  # seconds
_KILL_TIMEOUT = 5.0  # seconds until the system must have ended what was killed
# The parent answers for a lost terminal. `exec` keeps the process.
_WITHOUT_HANGUP = ('/bin/sh', '-c', 'trap "" HUP; exec "$@"')


class Family:
  """This process's children: they end with it, and so do their own.

  Use it in `with`: at the end, what is left of all children is killed.
  """

  def __init__(self, patience: float):
    """Starts the guard.

    Args:
      patience: seconds between SIGTERM and SIGKILL, once this process has died.
    """
    self._id = os.urandom(16).hex()
    self._guard = subprocess.Popen(
      # -I: not this folder in sys.path, where our types.py is.
      [
        *(sys.executable, '-I', '-S', os.path.abspath(__file__)),
        *(self._id, str(os.getpid()), str(patience)),
      ],
      stdin=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      env={k: v for k, v in os.environ.items() if k != _MARK},
      cwd='/',
      start_new_session=True,
    )

  def __enter__(self) -> Family:
    return self

  def __exit__(self, *unused_exception):
    self.kill()
    self._guard.kill()
    self._guard.communicate()

  def mark(self, name: str) -> dict[str, str]:
    """Returns the environment variable that makes a process the child `name`."""
    return {_MARK: f'{self._id}:{name}'}

  def start(
    self,
    name: str,
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    **keywords,
  ) -> subprocess.Popen:
    """Starts a child in a session of its own: a terminal's Ctrl-C does not reach it.

    Args:
      name: unlike that of other children.
      command: as `subprocess.Popen` takes it.
      env: what to add to this process's environment variables.
      **keywords: handed on to `subprocess.Popen`.
    """
    return subprocess.Popen(
      [*_WITHOUT_HANGUP, name, *command],
      env={**os.environ, **(env or {}), **self.mark(name)},
      stdin=subprocess.DEVNULL,
      start_new_session=True,
      **keywords,
    )

  def run(self, name: str, command: Sequence[str], **keywords) -> int:
    """Starts a child as `start` does, waits for its end and returns its exit code."""
    return self.start(name, command, **keywords).wait()

  def send(self, number: int):
    """Sends a signal to all children, and to all that they have started."""
    _send(number, _marked(self._id))

  def kill(self, name: str | None = None):
    """Kills a child and all that it has started, or what is left of them.

    Args:
      name: of the child; all children by default.
    """
    deadline = time.monotonic() + _KILL_TIMEOUT
    while pids := _marked(self._id, name):
      _send(signal.SIGKILL, pids)
      if time.monotonic() > deadline:
        return  # the system cannot end it: it waits for a device
      time.sleep(0.01)


def kill_descendants():
  """Kills the children of this process, and theirs, without waiting for their end."""
  _send(signal.SIGKILL, _descendants(os.getpid()))


def _marked(family: str, name: str | None = None) -> set[int]:
  """Returns the processes of a family, or of one child of it."""
  prefix = f'{_MARK}={family}:'.encode()
  wanted = None if name is None else prefix + name.encode()
  found = set()
  for pid in _pids():
    with contextlib.suppress(OSError):  # ended meanwhile, or another user's
      with open(f'/proc/{pid}/environ', 'rb') as file:
        marks = [x for x in file.read().split(b'\0') if x.startswith(prefix)]
      if marks and wanted in (None, marks[0]):
        found.add(pid)
  return found


def _descendants(pid: int) -> set[int]:
  parents = {child: _parent(child) for child in _pids()}
  found: set[int] = set()
  new = {pid}
  while new:
    new = {child for child, parent in parents.items() if parent in new} - found
    found |= new
  return found


def _pids() -> list[int]:
  return [int(name) for name in os.listdir('/proc') if name.isdigit()]


def _parent(pid: int) -> int:
  """Returns a process's parent; 0 if there is no such process any more."""
  try:
    with open(f'/proc/{pid}/stat') as file:
      # After the name, which may hold anything: state, parent, ...
      return int(file.read().rpartition(')')[2].split()[1])
  except OSError:
    return 0


def _send(number: int, pids: Iterable[int]):
  for pid in pids:
    with contextlib.suppress(ProcessLookupError):
      os.kill(pid, number)


def _guard(family: str, parent: int, patience: float):
  """Waits for the parent's end, then ends its family: first asks, then kills."""
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
    signal.signal(number, signal.SIG_IGN)  # they may be sent to all processes
  # The pipe's end comes at once, unless a fork of the parent still holds it.
  while os.getppid() == parent and not select.select([0], [], [], 1.0)[0]:
    pass
  time.sleep(_POLL_PERIOD)  # a child that is being started gets its mark meanwhile
  asked: set[int] = set()
  deadline = time.monotonic() + patience
  while pids := _marked(family):
    if time.monotonic() < deadline:
      # To its own children each child speaks itself.
      asking = {pid for pid in pids if _parent(pid) not in pids} - asked
      _send(signal.SIGTERM, asking)
      asked |= asking
    else:
      _send(signal.SIGKILL, pids)
    if time.monotonic() > deadline + _KILL_TIMEOUT:
      return
    time.sleep(_POLL_PERIOD)


if __name__ == '__main__':
  _guard(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
