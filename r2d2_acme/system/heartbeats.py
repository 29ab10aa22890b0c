"""Heartbeats: how a node shows that it makes progress, to whoever watches it.

A beat renews the time of a file that the watcher has made. It names the file in an
environment variable; without one, beats do nothing.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator

VARIABLE = 'R2D2_HEARTBEAT'  # an environment variable: the path of the file

_ANNOUNCED = 1  # nanoseconds since 1970: of a file whose beats are announced
_PERIOD = 0.5  # seconds between beats, at least
_LONGEST_WAIT = 600.0  # seconds that a node may wait for another one


class Heartbeat:
  """Beats of this process, from any of its threads."""

  def __init__(self):
    """Announces beats: without them, the watcher need not worry."""
    self._path = os.environ.get(VARIABLE)
    self._next_time = 0.0
    if self._path is not None:
      with contextlib.suppress(OSError):
        os.utime(self._path, ns=(_ANNOUNCED, _ANNOUNCED))

  def beat(self):
    """Shows progress; costs next to nothing, so it may be called in every loop."""
    now = time.monotonic()
    if now >= self._next_time:
      self._next_time = now + _PERIOD
      if self._path is not None:
        with contextlib.suppress(OSError):  # the watcher is gone, and this node soon
          os.utime(self._path)

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Beats by itself inside `with`, for a call that may wait for another node.

    That node may be about to be started again, which is no fault of this one. After ten
    minutes there are no more beats.
    """
    done = threading.Event()
    thread = threading.Thread(target=self._beat_until, args=(done,), daemon=True)
    thread.start()
    try:
      yield
    finally:
      done.set()
      thread.join()

  def _beat_until(self, done: threading.Event):
    deadline = time.monotonic() + _LONGEST_WAIT
    while not done.wait(_PERIOD) and time.monotonic() < deadline:
      self.beat()


class Watched:
  """The beats of another process, as the watcher sees them.

  Attributes:
    path: of the file, for the other's environment.
  """

  def __init__(self, path: str):
    """Makes the file, of which there must be none yet."""
    self.path = path
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'x'):
      pass
    self.start()

  def start(self):
    """Forgets all beats: the other process is about to start."""
    os.utime(self.path, ns=(0, 0))
    self._time = 0  # of the file, in nanoseconds
    self._seen_at = time.monotonic()

  def look(self):
    """Looks for a new beat; call it more often than beats may be missing."""
    try:
      now = os.stat(self.path).st_mtime_ns
    except OSError:
      return
    if now != self._time:
      self._time = now
      self._seen_at = time.monotonic()

  @property
  def is_announced(self) -> bool:
    """Whether the other process means to beat."""
    return self._time >= _ANNOUNCED

  @property
  def has_beaten(self) -> bool:
    """Whether there was a beat since the start."""
    return self._time > _ANNOUNCED

  @property
  def seconds_since(self) -> float:
    """Seconds since the newest beat was seen, or since the start."""
    return time.monotonic() - self._seen_at

  def excuse(self, seconds: float):
    """Leaves out a time in which nobody looked."""
    self._seen_at += seconds
