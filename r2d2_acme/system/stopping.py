"""How a program reacts to Ctrl-C, SIGTERM, SIGHUP and SIGQUIT."""

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
# One request may arrive as several signals: when a terminal is closed, it sends SIGHUP
# and its shell sends another; systemd sends SIGTERM and SIGHUP; some wrappers forward a
# Ctrl-C that has already arrived. Signals within this time are one request.
_ONE_REQUEST = 0.3  # seconds
_STOPPING = (
  'Stopping: the program saves and ends. Another Ctrl-C, SIGTERM or SIGHUP ends it at '
  'once, without saving.\n'
)


def end_at_once(code: int | None = None, message: str = ''):
  """Makes each signal end this process and its children at once, without a traceback.

  Call it first in a program. It also calls `forgive_streams`.

  Args:
    code: the exit code; by default 128 + the signal's number, as in shells.
    message: a line to print before the end.
  """
  forgive_streams()

  def end(number: int, unused_frame):
    _say(message)
    runtime.exit_now(128 + number if code is None else code)

  _handle(end)


def forgive_streams():
  """Makes what this process prints get lost where it cannot be written.

  So a program outlives its terminal, and a node the disk that its output fills.
  Characters that a terminal cannot show are printed as escapes.
  """
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(AttributeError):  # a notebook's stream, or None
      stream.reconfigure(errors='backslashreplace')  # type: ignore[union-attr]
  sys.stdout, sys.stderr = Forgiving(sys.stdout), Forgiving(sys.stderr)


def say(text: str):
  """Prints a line, or several, to stderr, even if that is gone or its disk is full."""
  print(text, file=Forgiving(sys.stderr), flush=True)


class Requests:
  """Counts the requests to stop this program that arrive inside `with`.

  The first signal asks the program to stop and prints a message. The second asks it to
  quit at once. Signals that follow within 0.3 s belong to the same request. SIGUSR1,
  which nodes send at a step limit, also asks the program to stop.
  """

  def __init__(
    self, on_quit: Callable[[], Any] = lambda: None, message: str = _STOPPING
  ):
    """Starts with a count of 0.

    Args:
      on_quit: called by the signal handler when the program shall quit at once.
      message: printed at the first signal.
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
    """Restores these handlers after a library has set its own inside this `with`."""
    try:
      yield
    finally:
      _handle(self._count)

  def ask(self):
    """Asks the program to stop, as a signal would. Any thread may call it."""
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
    if self.num and now - self._last_time < _ONE_REQUEST:
      return
    self._last_time = now
    self.num += 1
    if self.num == 1:
      _say(self._message)
    elif self.num == 2:
      self._on_quit()


class Forgiving:
  """A stream that drops what cannot be written: its other end, or a disk, is full."""

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
  """Writes to stderr, without `print`, which the signal may have interrupted."""
  with contextlib.suppress(OSError):
    os.write(2, message.encode())


def _handle(handler: Callable[..., Any]) -> dict[int, Any]:
  """Sets a handler for all signals; returns the previous handlers by signal."""
  before: dict[int, Any] = {n: signal.getsignal(n) for n in _SIGNALS}
  if before[signal.SIGHUP] is signal.SIG_IGN:
    del before[signal.SIGHUP]  # `nohup` started the program: it stays ignored
  for number in before:
    signal.signal(number, handler)
  return before
