"""The program's counts, which neither a dead node nor a repeated call can falsify.

Each node counts for itself and reports its totals since its start, over and over. The
learner's node keeps the newest totals of each start of a node, and adds them up. A
report that is lost, late or repeated does no harm, and a node that dies takes what it
has counted in its last second with it. When the learner's node goes back to
its last checkpoint, the next reports of the other nodes bring it up to date.
"""

import contextlib
import threading
import time
from collections.abc import Mapping
from typing import Protocol

_PERIOD = 1.0  # seconds between reports
_REPORTED = 'reported'  # the first part of the name of a node's totals in a checkpoint

Counts = dict[str, float]


class Ledger:
  """Adds up the program's counts and its `wall_time`; any thread may call it."""

  def __init__(
    self, counts: Mapping[str, float], at_least: Mapping[str, float] | None = None
  ):
    """Goes on from counts of a checkpoint.

    Args:
      counts: what `save` returned, or the same without the totals of single nodes.
      at_least: counts that were seen later than the checkpoint. What is returned never
        falls below them, although some of the reports that made them may be lost.
    """
    self._at_least = dict(at_least or {})
    self._lock = threading.Lock()
    self._started = time.monotonic() - counts.get('wall_time', 0.0)
    self._totals: dict[str, Counts] = {}  # by source
    self._counts = without_reports(counts)  # with all totals
    self._counts.pop('wall_time', None)
    for key, count in counts.items():
      if key.startswith(f'{_REPORTED}:'):
        _, source, name = key.split(':')
        self._totals.setdefault(source, {})[name] = count

  def increment(self, **counts: float) -> Counts:
    """Adds to the counts; returns all."""
    with self._lock:
      self._counts = _sum(self._counts, counts)
    return self.get_counts()

  def report(self, source: str, totals: Mapping[str, float]) -> Counts:
    """Notes what a node has counted since its start; returns the program's counts.

    Args:
      source: a name that only this start of the node has; without colons.
      totals: all that it has counted.
    """
    with self._lock:
      known = self._totals.setdefault(source, {})
      new = {
        # Nothing is new in a late report.
        name: max(0, count - known.get(name, 0))
        for name, count in totals.items()
      }
      self._totals[source] = _sum(known, new)
      self._counts = _sum(self._counts, new)
    return self.get_counts()

  def get_counts(self) -> Counts:
    """Returns all counts, and the `wall_time` in seconds."""
    with self._lock:
      counts = dict(self._counts)
    for name, count in self._at_least.items():
      counts[name] = max(count, counts.get(name, 0))
    return {**counts, 'wall_time': time.monotonic() - self._started}

  def save(self) -> Counts:
    """Returns the counts for a checkpoint: with the totals of single nodes."""
    counts = self.get_counts()
    with self._lock:
      for source, totals in self._totals.items():
        for name, count in totals.items():
          counts[f'{_REPORTED}:{source}:{name}'] = count
    return counts


def without_reports(counts: Mapping[str, float]) -> Counts:
  """Returns the counts of a checkpoint without the totals of single nodes."""
  return {k: v for k, v in counts.items() if not k.startswith(f'{_REPORTED}:')}


class Learner(Protocol):
  """The part of the learner's node that takes reports."""

  def report(self, source: str, totals: dict[str, float]) -> Counts: ...


class Reporter:
  """The program's counts as another node than the learner's sees them and adds to them.

  It never waits for the learner's node, except at its start or if it is told to. Until
  that node answers again, the counts are those of its last answer and what this node
  has counted since.
  """

  def __init__(
    self,
    learner: Learner,
    source: str,
    at_least: Mapping[str, float] | None = None,
    *,
    wait: bool = False,
  ):
    """Waits for the learner's node, and then reports every second in a thread.

    Args:
      learner: the learner's node, or a client of it.
      source: see `Ledger.report`.
      at_least: counts below which no later ones shall fall: those that an earlier start
        of this node has seen, and perhaps could not report.
      wait: whether `increment` waits until the learner's node knows.
    """
    self._wait = wait
    self._learner = learner
    self._source = source
    self._lock = threading.Lock()
    self._totals: Counts = {}
    self._seen = dict(at_least or {})  # the largest counts that were returned so far
    self.report()
    threading.Thread(target=self._run, daemon=True, name='counts').start()

  def increment(self, **counts: float) -> Counts:
    """Adds to the counts; returns all."""
    with self._lock:
      self._totals = _sum(self._totals, counts)
    if self._wait:
      self.report()
    return self.get_counts()

  def get_counts(self) -> Counts:
    """Returns the program's counts, up to a second old, with this node's newest."""
    with self._lock:
      unreported = {
        name: count - self._reported.get(name, 0)
        for name, count in self._totals.items()
      }
      counts = _sum(self._answer, unreported)
      # After the learner's node has gone back, reports of other nodes may be missing.
      for name, count in counts.items():
        self._seen[name] = max(count, self._seen.get(name, count))
      seen = dict(self._seen)
      if 'learner_steps' in self._answer:  # these go back with the learner's node
        seen['learner_steps'] = self._answer['learner_steps']
      return seen

  def _run(self):
    while True:
      time.sleep(_PERIOD)
      with contextlib.suppress(Exception):  # of a node that ends: tried again
        self.report()

  def report(self):
    """Reports now, and waits until the learner's node knows."""
    with self._lock:
      totals = dict(self._totals)
    answer = self._learner.report(self._source, totals)
    with self._lock:
      self._answer, self._reported = answer, totals


def _sum(*all_counts: Mapping[str, float]) -> Counts:
  total: Counts = {}
  for counts in all_counts:
    for name, count in counts.items():
      total[name] = total.get(name, 0) + count
  return total
