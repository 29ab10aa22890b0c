"""Child processes that end when their parent does, whatever ends the parent.

Each child carries a mark in an environment variable, which its own children inherit.
So all of its descendants are found, in any session and under any parent. A process that
was started with another environment is found as a descendant of a marked one. If that
one has ended, it is a child of the parent, which adopts orphans.

A guard, a small process beside the parent, watches this family. It waits for the
parent's end, which may be by SIGKILL, and then ends the family. It does not rely on
these processes: they may hang in C++ with Python's lock, ignore signals or be
suspended. (PR_SET_PDEATHSIG would not do: it is bound to one thread of the parent, does
not reach a child's children and can be ignored. Nor would a watching thread in the
child, which needs Python's lock.)

The guard runs this file as a script, so it imports only the standard library.
"""

from __future__ import annotations  # loads on any Python, as `doctor` does

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence

_MARK = 'R2D2_PROCESS'  # an environment variable: <family>:<name>
_MARK_SIZE = 256  # bytes
# For a process whose forks shall call `fill_mark`.
MARK_TO_FILL = {_MARK: _MARK_SIZE * '-'}
_POLL_PERIOD = 0.1  # seconds
_KILL_TIMEOUT = 5.0  # seconds until the system must have ended what was killed
_LOOK_PERIOD = 10.0  # seconds between two times that a guard lists the family
_OWN_PATIENCE = 2.0  # seconds that environments' processes may take to end when asked
_PR_SET_CHILD_SUBREAPER = 36
# Only the parent reacts to a closed terminal. `exec` keeps the process.
_WITHOUT_HANGUP = ('/bin/sh', '-c', 'trap "" HUP; exec "$@"')
# These signals may be sent to all processes, also while the guard's Python starts.
_WITHOUT_SIGNALS = ('/bin/sh', '-c', 'trap "" INT TERM HUP QUIT; exec "$@"')


class Family:
  """The children of this process and their descendants, which end with it.

  Use it with `with`, in the main thread. At the end of the context, all that still runs
  is killed. Inside, a terminal's Ctrl-Z suspends the family together with this process.
  """

  def __init__(self, patience: float, own: bool = False):
    """Starts the guard. From then on this process adopts orphans of its descendants.

    Args:
      patience: seconds between SIGTERM and SIGKILL, once this process has died.
      own: whether all children of this process belong to the family, however they are
        started.
    """
    adopt_orphans()
    self._id = os.urandom(16).hex()
    self._guard = subprocess.Popen(
      [
        *(*_WITHOUT_SIGNALS, 'guard'),
        # -I keeps this file's folder out of sys.path: its modules would hide others.
        *(sys.executable, '-I', '-S', os.path.abspath(__file__)),
        *(self._id, str(os.getpid()), str(patience), 'own' if own else 'marked'),
      ],
      stdin=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      env={k: v for k, v in os.environ.items() if k != _MARK},
      cwd='/',
      start_new_session=True,
    )

  def __enter__(self) -> Family:
    self._suspend_before = signal.getsignal(signal.SIGTSTP) or signal.SIG_DFL
    if self._suspend_before is not signal.SIG_IGN:
      signal.signal(signal.SIGTSTP, self._suspend)
    return self

  def __exit__(self, *unused_exception):
    signal.signal(signal.SIGTSTP, self._suspend_before)
    self.kill()
    self._guard.kill()
    self._guard.communicate()

  @contextlib.contextmanager
  def marking(self, name: str):
    """Marks all that this process starts inside `with`, by any means, as `name`."""
    before = os.environ.get(_MARK)
    os.environ.update(self.mark(name))
    try:
      yield
    finally:
      del os.environ[_MARK]
      if before is not None:
        os.environ[_MARK] = before

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
      name: of the child, unlike that of any other.
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

  def kill(self, name: str | None = None):
    """Kills a child and all that it has started, or what is left of them.

    Args:
      name: of the child; all children by default.
    """
    deadline = time.monotonic() + _KILL_TIMEOUT
    pids = _kin(_marked(self._id, name))
    # What still runs after the deadline waits for a device: the system cannot end it.
    while pids and time.monotonic() < deadline:
      _send(signal.SIGKILL, pids)
      time.sleep(0.01)
      pids = _kin(_marked(self._id, name))

  def mark(self, name: str) -> dict[str, str]:
    """Returns the environment variable that makes a process a child of that name."""
    return {_MARK: f'{self._id}:{name}'}

  def _suspend(self, *signal_and_frame):
    pids = _kin(_marked(self._id))
    _send(signal.SIGSTOP, pids)
    if callable(self._suspend_before):  # of a family around this one
      self._suspend_before(*signal_and_frame)
    else:
      os.kill(os.getpid(), signal.SIGSTOP)
    _send(signal.SIGCONT, pids)  # this process goes on


class Child:
  """A child process that was not started by `subprocess`.

  Attributes:
    pid: of the process.
    returncode: as of `subprocess.Popen`: negative if a signal ended it; None before.
  """

  def __init__(self, pid: int):
    self.pid = pid
    self.returncode: int | None = None

  def poll(self) -> int | None:
    """Returns the code if the process has ended."""
    return self._wait(os.WNOHANG)

  def wait(self) -> int | None:
    """Waits for the end of the process."""
    return self._wait(0)

  def _wait(self, options: int) -> int | None:
    if self.returncode is None:
      pid, status = os.waitpid(self.pid, options)
      if pid:
        code = os.WEXITSTATUS(status)
        self.returncode = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else code
    return self.returncode


def adopt_orphans():
  """Makes orphans among this process's descendants its children."""
  ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def fill_mark(mark: Mapping[str, str]):
  """Marks this process, a fork of one that was started with `MARK_TO_FILL`.

  What /proc shows as a process's environment are the bytes that it was started with,
  which forks share. So these bytes are replaced.
  """
  getenv = ctypes.CDLL(None).getenv
  getenv.restype = ctypes.c_void_p
  value = mark[_MARK].encode() + b'\0'
  if len(value) > _MARK_SIZE:
    raise ValueError(f'the name in {mark[_MARK]!r} is too long')
  ctypes.memmove(getenv(_MARK.encode()), value, len(value))


def ask(pid: int):
  """Asks a process to stop by sending SIGTERM to its main thread.

  A signal to a whole process may arrive in any of its threads, as it does when the
  process has just been suspended. Python handles it in the main thread, which would not
  wake up.

  Raises:
    ProcessLookupError: the process has ended.
  """
  try:
    send = ctypes.CDLL(None, use_errno=True).tgkill
  except AttributeError:  # glibc before 2.30
    os.kill(pid, signal.SIGTERM)
    return
  if send(pid, pid, signal.SIGTERM):
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


def guard_children():
  """Makes all descendants of this process end when it does, whatever ends it.

  It is for processes whose children are not started by a `Family`, such as those of
  environments.
  """
  if not _own_families:
    _own_families.append(Family(_OWN_PATIENCE, own=True))
    os.environ.update(_own_families[-1].mark('own'))


_own_families: list[Family] = []  # kept: if its pipe is closed, a guard ends the family


def kill_descendants():
  """Kills all descendants of this process without waiting for their end."""
  _send(signal.SIGKILL, _kin({os.getpid()}) - {os.getpid()})


def _marked(family: str, name: str | None = None) -> set[int]:
  """Returns the processes of a family, or of one child of it."""
  prefix = f'{_MARK}={family}:'.encode()
  wanted = None if name is None else prefix + name.encode()
  found = set()
  for pid in _pids():
    with contextlib.suppress(OSError):  # it has ended, or belongs to another user
      with open(f'/proc/{pid}/environ', 'rb') as file:
        marks = [x for x in file.read().split(b'\0') if x.startswith(prefix)]
      if marks and wanted in (None, marks[0]):
        found.add(pid)
  return found


def _kin(pids: set[int]) -> set[int]:
  """Returns these processes and all their descendants, without zombies."""
  parents = {child: _stat(child)[0] for child in _pids()} if pids else {}
  assert 0 not in pids  # `kill` and `_stat` give 0 a meaning of its own
  found, new = set(pids), pids
  while new:
    new = {child for child, parent in parents.items() if parent in new} - found
    found |= new
  return found


def _pids() -> list[int]:
  return [int(name) for name in os.listdir('/proc') if name.isdigit()]


def _stat(pid: int) -> tuple[int, int]:
  """Returns a process's parent and start time; zeros if the process has ended."""
  try:
    with open(f'/proc/{pid}/stat') as file:
      # The fields after the name, which may contain any character.
      fields = file.read().rpartition(')')[2].split()
  except OSError:
    return 0, 0
  return (0, 0) if fields[0] == 'Z' else (int(fields[1]), int(fields[19]))


def _send(number: int, pids: Iterable[int]):
  for pid in pids:
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.kill(pid, number)


def _guard(family: str, parent: int, patience: float, own: bool):
  """Waits for the parent's end, then ends its family: first asks, then kills.

  Args:
    family: the mark of the family.
    parent: the pid of the parent.
    patience: seconds between asking and killing.
    own: whether all descendants of the parent belong to the family, marked or not.
  """
  seen: set[tuple[int, int]] = set()
  if own:
    seen |= _identified({parent})
  while os.getppid() == parent:
    seen = _look(family, seen)
    # The pipe is closed at once, unless a fork of the parent still holds it.
    if select.select([0], [], [], _LOOK_PERIOD)[0]:
      time.sleep(_POLL_PERIOD)  # the parent's own end comes a moment later
  time.sleep(_POLL_PERIOD)  # a child that is just being started gets its mark
  asked: set[int] = set()
  deadline = time.monotonic() + patience
  seen = _look(family, seen)
  while seen and time.monotonic() < deadline + _KILL_TIMEOUT:
    pids = {pid for pid, _ in seen}
    if time.monotonic() < deadline:
      # Each child asks its own children itself.
      asking = {pid for pid in pids if _stat(pid)[0] not in pids} - asked
      if asking:
        _send(signal.SIGCONT, pids)  # they may be suspended together with their parent
      for pid in asking:
        with contextlib.suppress(ProcessLookupError, PermissionError):
          ask(pid)
      asked |= asking
    else:
      _send(signal.SIGKILL, pids)
    time.sleep(_POLL_PERIOD)
    seen = _look(family, seen)


def _look(family: str, seen: set[tuple[int, int]]) -> set[tuple[int, int]]:
  """Returns the pids and start times of a family's processes.

  Args:
    family: the mark of the family.
    seen: the result of the last call. Those of its processes that still run belong to
      the family, even if their parent or the marked process has ended since.
  """
  pids = {pid for pid, started in seen if _stat(pid)[1] == started}
  return _identified(_kin(_marked(family) | pids) - {os.getpid()})


def _identified(pids: Iterable[int]) -> set[tuple[int, int]]:
  """Returns those pids that run, with start times, because pids are used again."""
  pairs = ((pid, _stat(pid)[1]) for pid in pids)
  return {(pid, started) for pid, started in pairs if started}


if __name__ == '__main__':
  _guard(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == 'own')
