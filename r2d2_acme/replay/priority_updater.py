"""From the learner's new priorities to the table's, in the background."""

import math
import queue
import threading
import time
from collections.abc import Sequence

import numpy as np
import reverb
from absl import logging

from r2d2_acme.replay.tables import TABLE

# Seconds after which a silent server is worth a warning, and between two warnings.
_AWAY_PERIOD = 60.0


class PriorityUpdater:
  """Writes priorities back from a thread of its own, so that `update` never blocks.

  Updates that wait at the same time are sent together. Of two priorities for one
  window the later one counts.

  While the server is away, updates wait or are lost. Learning goes on with stale
  priorities. A warning says how many were lost when the server is back, or after a
  minute. There is no warning at the end of a program, where the server often stops
  first. Any other failure is raised.
  """

  def __init__(self, client: reverb.Client):
    self._client = client
    self._queue: queue.Queue = queue.Queue()
    self._failure: BaseException | None = None
    self._num_lost = 0  # updates
    self._num_told = 0  # lost updates that a warning has counted
    self._error = ''  # what the last update failed with, if it did
    self._last_answer = time.monotonic()
    self._last_warning = -math.inf
    self._thread = threading.Thread(target=self._run, daemon=True, name='priorities')
    self._thread.start()

  def update(self, keys: np.ndarray, priorities: np.ndarray):
    """Schedules an update of priorities.

    Args:
      keys: uint64 [B], the windows' keys in the table.
      priorities: float32 [B]; those that are not finite are left out.

    Raises:
      RuntimeError: an earlier update failed, and not because the server was away.
    """
    self._raise_failure()
    if not self._queue.unfinished_tasks and not self._error:
      self._last_answer = time.monotonic()  # no answer is due
    self._queue.put((keys, priorities))
    seconds = time.monotonic() - self._last_answer
    if seconds > _AWAY_PERIOD:
      self._warn(f'has not answered for {seconds:.0f} s')

  def wait(self):
    """Blocks until all scheduled updates are written or lost.

    Raises:
      RuntimeError: an update failed, and not because the server was away.
    """
    self._queue.join()
    self._raise_failure()

  def _raise_failure(self):
    if self._failure is not None:
      raise RuntimeError('priorities cannot be written back') from self._failure

  def _run(self):
    while True:
      waiting = [self._queue.get()]
      while not self._queue.empty():
        waiting.append(self._queue.get())
      try:
        if self._failure is None:  # after a failure, only `wait` must still return
          self._write(waiting)
      except BaseException as error:  # `update` and `wait` raise it
        self._failure = error
      finally:
        for _ in waiting:
          self._queue.task_done()

  def _write(self, waiting: Sequence[tuple[np.ndarray, np.ndarray]]):
    updates: dict[int, float] = {}
    for keys, priorities in waiting:
      # Reverb refuses a NaN, and after an infinity it samples no other window.
      finite = np.isfinite(priorities)
      updates.update(
        zip(keys[finite].tolist(), priorities[finite].tolist(), strict=True)
      )
    try:
      self._client.mutate_priorities(TABLE, updates=updates)
    except (RuntimeError, reverb.errors.ReverbError) as error:
      if 'was not found' in str(error):  # a server that is there, without the table
        raise
      self._error = str(error)
      self._num_lost += len(waiting)
      return
    self._last_answer = time.monotonic()
    if self._num_lost > self._num_told:
      self._warn('was not available')
    self._error = ''

  def _warn(self, what: str):
    """Logs a warning, at most once in `_AWAY_PERIOD`."""
    now = time.monotonic()
    if now - self._last_warning >= _AWAY_PERIOD:
      self._last_warning = now
      num_lost = self._num_lost
      logging.warning(
        'Replay %s%s: %d updates of priorities are lost, %d wait',
        what,
        f' ({self._error})' if self._error else '',
        num_lost - self._num_told,
        self._queue.qsize(),
      )
      self._num_told = num_lost
