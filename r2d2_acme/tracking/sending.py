"""The process beside a program that sends what is new in the workdir to a tracker."""

import contextlib
import dataclasses
import importlib
import os
import signal
import sys
import threading
import time

from r2d2_acme.system import stopping
from r2d2_acme.tracking import base, news
from r2d2_acme.workdir import description

_PERIOD = 5.0  # seconds between two looks at the workdir
_RETRY_PERIOD = 60.0  # seconds after a failure
_BEST_PERIOD = 600.0  # seconds between two best checkpoints that are sent
_MAX_TEXT = 300  # characters of an error
_NICENESS = 10  # training comes first


def main():
  """Sends until this process is asked to stop, by SIGTERM, then sends the rest."""
  kind, workdir = sys.argv[1:]
  stop = threading.Event()
  signal.signal(signal.SIGTERM, lambda *unused: stop.set())
  signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  os.nice(_NICENESS)
  stopping.forgive_streams()
  sys.stdout = sys.stderr  # a tracker may print
  sender = Sender(kind, workdir)
  at_end = False
  while not at_end:
    at_end = stop.wait(_PERIOD)
    sender.send(at_end)
  while sender.send(at_end):  # a log may hold more than one look takes
    pass
  sender.close()


class Sender:
  """Sends what is new, and reports a tracker that fails, once."""

  def __init__(self, kind: str, workdir: str):
    """Prepares the sender; the first `send` begins the tracker's run."""
    self._kind = kind
    self._workdir = workdir
    self._seen = news.Seen.read(workdir, kind)
    self._tracker: base.Tracker | None = None
    self._failure = ''  # that was reported
    self._next_time = 0.0
    self._next_best = time.monotonic() + _BEST_PERIOD

  def send(self, at_end: bool = False) -> bool:
    """Sends what is new; after a failure only if it is the end, or a minute later.

    Returns:
      Whether there was something new.
    """
    if not at_end and time.monotonic() < self._next_time:
      return False
    before = self._seen
    with self._reported():
      if self._tracker is None:
        self._tracker = self._open()
      self._send(self._tracker, at_end)
      self._failure = ''
      return self._seen != before
    return False

  def close(self):
    """Waits until all is sent."""
    with self._reported():
      if self._tracker is not None:
        self._tracker.close()

  def _open(self) -> base.Tracker:
    module = importlib.import_module(f'r2d2_acme.tracking.{self._kind}_tracker')
    name = os.path.basename(self._workdir)
    content = description.read(self._workdir)
    tracker = module.Tracker(self._workdir, name, content, self._seen.run)
    if tracker.run != self._seen.run:  # a new one has got nothing yet
      self._seen = news.Seen()
      self._see(run=tracker.run)
    stopping.say(f'{self._kind}: {tracker.where}')
    return tracker

  def _send(self, tracker: base.Tracker, at_end: bool):
    for label, rows, position in news.new_rows(self._workdir, self._seen):
      tracker.log(label, news.axis(label), rows)
      self._see(positions={**self._seen.positions, label: position})
    for path, actor_steps in news.new_videos(self._workdir, self._seen):
      tracker.log_video(path, actor_steps)
      self._see(videos=[*self._seen.videos, os.path.basename(path)])
    if at_end or time.monotonic() >= self._next_best:
      self._next_best = time.monotonic() + _BEST_PERIOD
      best = news.new_best(self._workdir, self._seen)
      if best is not None:
        tracker.log_best(*best)
        self._see(best=best[0])

  def _see(self, **changes):
    self._seen = dataclasses.replace(self._seen, **changes)
    with contextlib.suppress(OSError):  # a full disk: some rows may be sent twice
      self._seen.write(self._workdir, self._kind)

  @contextlib.contextmanager
  def _reported(self):
    try:
      yield
    except Exception as error:  # whatever a tracker raises
      self._next_time = time.monotonic() + _RETRY_PERIOD
      text = ' '.join(f'{type(error).__name__}: {error}'.split())[:_MAX_TEXT]
      if text != self._failure:
        self._failure = text
        stopping.say(
          f'{self._kind} does not work ({text}): training goes on, and what is missing '
          'is sent when it does'
        )
