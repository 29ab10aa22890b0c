"""What Ctrl-C, SIGTERM, SIGHUP and SIGQUIT mean to a program."""

from __future__ import annotations  # loads on any Python, as `doctor` does

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from r2d2_acme.system import runtime

QUIT_CODE = 130  # the exit code that shells give for Ctrl-C
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# One gesture may send several: a terminal that is closed sends SIGHUP, and so does its
# shell; systemd sends SIGTERM and SIGHUP; some wrappers pass Ctrl-C on once more.
_ONE_GESTURE = 0.3  # seconds
_STOPPING = (
  'Stopping: the program saves and ends. Another Ctrl-C, SIGTERM or SIGHUP quits at '
  'once, without saving.\n'
)


def end_at_once(code: int | None = None, message: str = ''):
  """Makes each of the signals end this process and its children, quietly.

  Call it as the first thing in a program. It also lets the program outlive its
  terminal: what is printed when that is gone is lost, and characters that it cannot
  show are printed as escapes.

  Args:
    code: the exit code; by default 128 + the signal's number, as shells have it.
    message: a line to print before.
  """
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(AttributeError):  # a notebook's, or none
      stream.reconfigure(errors='backslashreplace')  # type: ignore[union-attr]
  sys.stdout, sys.stderr = Forgiving(sys.stdout), Forgiving(sys.stderr)

  def end(number: int, unused_frame):
    _say(message)
    runtime.exit_now(128 + number if code is None else code)

  _handle(end)


class Requests:
  """Counts, inside `with`, the requests to stop this program.

  The first signal asks the program to stop and prints so; the second to quit at once.
  Further ones of the same gesture do not count. SIGUSR1, which nodes send at a step
  limit, asks to stop, too.
  """

  def __init__(
    self, on_quit: Callable[[], Any] = lambda: None, message: str = _STOPPING
  ):
    """Makes a count that is 0.

    Args:
      on_quit: called by the signal handler when the program shall quit at once.
      message: what the first signal prints.
    """
    self.num = 0
    self._on_quit = on_quit
    self._message = message
    self._last_time = 0.0
    self._asked = threading.Event()
    self._before: dict[int, Any] = {}

  def __enter__(self) -> Requests:
    self._before = _handle(self._count)
    self._before[signal.SIGUSR1] = signal.signal(
      signal.SIGUSR1, lambda *unused: self.ask()
    )
    return self

  def __exit__(self, *unused_exception):
    for number, handler in self._before.items():
      signal.signal(number, handler or signal.SIG_DFL)

  @contextlib.contextmanager
  def kept(self):
    """Keeps the handlers although a library sets its own inside this `with`."""
    try:
      yield
    finally:
      _handle(self._count)

  def ask(self):
    """Asks the program to stop, on its own behalf; any thread may."""
    self._asked.set()

  @property
  def stop(self) -> bool:
    """Whether the program shall stop."""
    return self.num > 0 or self._asked.is_set()

  @property
  def quit(self) -> bool:
    """Whether the program shall quit at once, without saving."""
    return self.num > 1

  def _count(self, *unused):
    now = time.monotonic()
    if self.num and now - self._last_time < _ONE_GESTURE:
      return
    self._last_time = now
    self.num += 1
    if self.num == 1:
      _say(self._message)
    elif self.num == 2:
      self._on_quit()


class Forgiving:
  """A stream that may be closed at its other end: then it takes all and keeps none."""

  def __init__(self, stream):
    self._stream = stream

  def __getattr__(self, name: str):
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    with contextlib.suppress(OSError):
      self._stream.write(text)
    return len(text)

  def flush(self):
    with contextlib.suppress(OSError):
      self._stream.flush()


def _say(message: str):
  # Not `print`: a signal may come in the middle of another one.
  with contextlib.suppress(OSError):
    os.write(2, message.encode())


def _handle(handler: Callable[..., Any]) -> dict[int, Any]:
  """Sets a handler for the signals; returns the handlers before."""
  before: dict[int, Any] = {n: signal.getsignal(n) for n in _SIGNALS}
  if before[signal.SIGHUP] is signal.SIG_IGN:
    del before[signal.SIGHUP]  # nohup
  for number in before:
    signal.signal(number, handler)
  return before
