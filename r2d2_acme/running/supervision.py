"""Keeps workers at work: starts the dead again, within a budget, and ends all together.

A worker is dead when it has ended although nobody asked it to, or when it has shown no
progress for too long. What a worker is, and where it runs, is not known here.
"""

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Sequence

from absl import flags
from launchpad import flags as _lp_flags  # noqa: F401 (has lp_termination_notice_secs)

from r2d2_acme.config import R2D2Config
from r2d2_acme.running.workers import (
  FINAL_CODE,
  SAVES,
  STOP_LIMIT,
  Worker,
  is_failed,
  is_running,
)
from r2d2_acme.system import stopping

_POLL_PERIOD = 0.1  # seconds
_START_TIMEOUT = 600.0  # seconds until a worker must first have shown progress
_MAX_PAUSE = 1.0  # seconds between two looks at a worker, if nothing is wrong
_STOP_PATIENCE = 3.0  # seconds that some may hang until those they need are stopped
_LONGEST_PAUSE = 30.0  # seconds between a death and the next start


@dataclasses.dataclass(frozen=True)
class Policy:
  """When a worker is started again.

  Attributes:
    max_restarts: of a worker in `period`; 0 for none at all.
    period: seconds.
    progress_timeout: seconds without progress, after which a worker counts as dead.
  """

  max_restarts: int = R2D2Config.max_restarts
  period: float = R2D2Config.restart_period
  progress_timeout: float = R2D2Config.progress_timeout

  @classmethod
  def of(cls, config: R2D2Config) -> 'Policy':
    """Returns the policy that a config describes."""
    return cls(config.max_restarts, config.restart_period, config.progress_timeout)


DEFAULT = Policy()
UNSUPERVISED = Policy(max_restarts=0, progress_timeout=math.inf)


class Supervisor:
  """Starts workers, and again where they die, and stops them on request."""

  def __init__(
    self,
    workers: Sequence[Worker],
    requests: stopping.Requests,
    policy: Policy,
    *,
    report: Callable[[], object] = lambda: None,
    on_restart: Callable[[Worker], object] = lambda worker: None,
  ):
    """Starts nothing yet.

    Args:
      workers: in the order in which they are started.
      requests: of the user, or of a node at a limit.
      policy: when to start a worker again.
      report: is called ten times a second.
      on_restart: is called with each worker that was started again.
    """
    self._workers = workers
    self._requests = requests
    self._policy = policy
    self._report = report
    self._on_restart = on_restart
    self._restarts: dict[str, collections.deque[float]] = {
      worker.name: collections.deque() for worker in workers
    }
    self._due: dict[str, float] = {}  # when to start the dead ones again
    self._died_at: dict[str, float] = {}  # of those that have not progressed since
    self._looked_at = time.monotonic()

  def run(self) -> tuple[int, str]:
    """Works until the end of all workers.

    Returns:
      The exit code, as `launching.launch` has it, and what to print at the very end.
    """
    for worker in self._workers:
      if not self._requests.stop:
        worker.start()
    message = self._supervise()
    left, failed_at_stop = self._stop()
    if self._requests.quit:
      return stopping.QUIT_CODE, message
    message = message or failed_at_stop
    if left:
      names = ', '.join(worker.name for worker in left)
      killed = f'These nodes did not stop within {_limit()} s and were killed: {names}'
      message = f'{killed}\n{message}'.strip()  # the cause comes last
    return int(bool(message)), message

  def _supervise(self) -> str:
    """Works until all shall stop; returns why, if a worker failed for good."""
    while True:
      dead = self._look()
      # Read after the workers' codes: a signal may be sent to all processes at once.
      if self._requests.stop:
        return ''
      failures = [
        (worker, cause) for worker, cause in dead if not self._revive(worker, cause)
      ]
      if failures:
        # Of several, the one that says why.
        worker, cause = max(failures, key=lambda failure: bool(failure[0].poll()))
        return worker.describe_failure(cause)
      self._start_due()
      self._report()
      time.sleep(_POLL_PERIOD)

  def _look(self) -> list[tuple[Worker, str]]:
    """Returns workers that have died since the last call, each with the cause."""
    now = time.monotonic()
    paused = now - self._looked_at - _POLL_PERIOD  # for example by Ctrl-Z
    self._looked_at = now
    dead = []
    for worker in self._workers:
      if worker.name in self._due or not worker.num_starts:
        continue
      if worker.poll() is not None:
        dead.append((worker, worker.describe_end()))
      elif seconds := self._seconds_stuck(worker, paused):
        worker.interrupt()
        dead.append((worker, f'made no progress for {seconds:.0f} s and was killed'))
      elif worker.heartbeat is not None and worker.heartbeat.has_beaten:
        self._note_progress(worker)
    for worker, _ in dead:
      worker.kill()
    return dead

  def _seconds_stuck(self, worker: Worker, paused: float) -> float:
    """Returns the seconds without progress, if they are too many; otherwise 0.

    Args:
      worker: that runs.
      paused: seconds in which nobody looked at it.
    """
    heartbeat, timeout = worker.heartbeat, self._policy.progress_timeout
    if heartbeat is None:
      return 0.0
    if paused > _MAX_PAUSE:
      heartbeat.excuse(paused)
    heartbeat.look()
    if not heartbeat.has_beaten:
      timeout = max(timeout, _START_TIMEOUT)
    is_stuck = heartbeat.is_announced and heartbeat.seconds_since > timeout
    return heartbeat.seconds_since if is_stuck else 0.0

  def _revive(self, worker: Worker, cause: str) -> bool:
    """Arranges that a dead worker is started again; returns whether it may be."""
    now, restarts = time.monotonic(), self._restarts[worker.name]
    while restarts and restarts[0] <= now - self._policy.period:
      restarts.popleft()
    if worker.poll() == FINAL_CODE or len(restarts) >= self._policy.max_restarts:
      return False
    pause = min(_LONGEST_PAUSE, 2.0 ** (len(restarts) - 1)) if restarts else 0.0
    restarts.append(now)
    self._due[worker.name] = now + pause
    self._died_at.setdefault(worker.name, now)
    stopping.say(
      f'[supervisor] event=restart node={worker.name} cause="{cause}" '
      f'restart={len(restarts)} budget={self._policy.max_restarts} '
      f'period={self._policy.period:.0f}s pause={pause:.0f}s'
    )
    return True

  def _note_progress(self, worker: Worker):
    """Says how long a worker that was started again has been missing."""
    if worker.name in self._died_at:
      seconds = time.monotonic() - self._died_at.pop(worker.name)
      stopping.say(
        f'[supervisor] event=recovered node={worker.name} seconds={seconds:.1f}'
      )

  def _start_due(self):
    for worker in self._workers:
      if time.monotonic() >= self._due.get(worker.name, math.inf):
        del self._due[worker.name]
        worker.start()
        self._on_restart(worker)

  def _stop(self) -> tuple[list[Worker], str]:
    """Stops what runs: first those that others do not need.

    Returns:
      The workers that had to be killed, and what kept the learner from saving, if it
      was that.
    """
    limit = _limit() if _limit() >= 0 else math.inf
    deadline, patience = time.monotonic() + limit, min(_STOP_PATIENCE, limit / 6)
    running = [worker for worker in self._workers if is_running(worker)]
    order, next_order_at = 0, time.monotonic() + patience
    while running and not self._requests.quit and time.monotonic() < deadline:
      first = min(worker.stop_order for worker in running)
      if first > order or time.monotonic() >= next_order_at:
        order, next_order_at = max(first, order + 1), time.monotonic() + patience
      for worker in running:
        if worker.stop_order <= order and not worker.is_asked:
          worker.ask()
      self._report()
      time.sleep(_POLL_PERIOD)
      for worker in [worker for worker in running if worker.poll() is not None]:
        worker.kill()  # what it left behind
        running.remove(worker)
    for worker in running:
      worker.kill()
    # Without its last save the steps since the one before are lost.
    saving = (x for x in self._workers if x.name == SAVES and x not in running)
    failed = next((x.describe_failure() for x in saving if is_failed(x)), '')
    return running, failed


def _limit() -> int:
  """Returns the seconds that workers may take to stop; below 0 there is no limit."""
  flag = flags.FLAGS['lp_termination_notice_secs']
  return STOP_LIMIT if flag.using_default_value else int(flag.value or 0)
