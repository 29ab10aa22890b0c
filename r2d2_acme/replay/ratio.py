"""The ratio of sampled to inserted windows over several servers.

Reverb's limiter keeps the ratio of one table. A shard's own ratio is not kept: a shard
with more than its part of the priorities is sampled more often than its inserts allow.
"""

import threading

from r2d2_acme.config import R2D2Config


class Closed(Exception):
  """The ratio was closed while a thread waited for it."""


class Ratio:
  """Keeps sampled / inserted windows at `samples_per_insert`, from any threads.

  With the rule of `reverb.rate_limiters.SampleToInsertRatio`: inserted windows x
  `samples_per_insert` - sampled windows stays within `error_buffer` of what it was when
  `min_replay_size` windows were there. Until `begin` all inserts and no samples are
  allowed.
  """

  def __init__(self, config: R2D2Config):
    self._samples_per_insert = config.samples_per_insert
    offset = config.samples_per_insert * config.min_replay_size
    self._min = offset - config.error_buffer
    self._max = offset + config.error_buffer
    self._ahead: float | None = None  # inserted x samples_per_insert - sampled
    self._is_closed = False
    self._changed = threading.Condition()

  def begin(self, num_inserted: int, num_sampled: int):
    """Goes on from the windows that the servers have counted.

    What one of them counted may be lost with it. Then the ratio begins at a bound,
    which makes up for what it can without blocking anybody for long.
    """
    ahead = num_inserted * self._samples_per_insert - num_sampled
    with self._changed:
      self._ahead = min(max(ahead, self._min), self._max)
      self._changed.notify_all()

  def add_inserts(self, number: int):
    """Notes that windows were inserted."""
    with self._changed:
      if self._ahead is not None:  # else `begin` counts them
        self._ahead += number * self._samples_per_insert
        self._changed.notify_all()

  def wait_for_inserts(self, number: int):
    """Waits until so many windows may be inserted.

    Raises:
      Closed: the ratio is closed.
    """
    margin = number * self._samples_per_insert
    self._wait(lambda: self._ahead is None or self._ahead + margin <= self._max)

  def take_samples(self, number: int) -> int:
    """Waits until a window may be sampled; returns how many of so many may now.

    Raises:
      Closed: the ratio is closed.
    """
    with self._changed:
      self._wait(lambda: self._ahead is not None and self._ahead - 1 >= self._min)
      assert self._ahead is not None
      number = min(number, int(self._ahead - self._min))
      self._ahead -= number
      self._changed.notify_all()
      return number

  def close(self):
    """Ends all waits, now and later."""
    with self._changed:
      self._is_closed = True
      self._changed.notify_all()

  def _wait(self, condition):
    with self._changed:  # reentrant
      self._changed.wait_for(lambda: self._is_closed or condition())
      if self._is_closed:
        raise Closed()
