"""What nodes share: threads until the stop, the lock of the workdir, the learner."""

import threading
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

from r2d2_acme.replay.adder import Stopped
from r2d2_acme.workdir import counts as counts_lib
from r2d2_acme.workdir import locking

POLL_PERIOD = 1.0  # seconds
_JOIN_TIMEOUT = 2.0  # seconds, for threads to end by themselves


class Learner(counts_lib.Learner, Protocol):
  """What other nodes use of the learner's node, or of a client of it."""

  def get_variables(self, names: list[str]) -> list[list[np.ndarray]]: ...

  def get_new_variables(
    self, names: list[str], known: str
  ) -> tuple[str, list[list[np.ndarray]]]: ...

  def observe_return(self, episode_return: float): ...


def hold(workdir: str | None, role: str, index: int = 0) -> Callable[[], None]:
  """Keeps other programs out of the node's workdir; returns what ends that."""
  return locking.hold(workdir, role, index) if workdir is not None else lambda: None


def work_until_stopped(
  stop: threading.Event,
  *works: Callable[[], None],
  on_stop: Callable[[], None],
):
  """Runs each work in a thread until one is done, or until the stop; then `on_stop`.

  A thread that waits in C++ for a server that is gone cannot be interrupted, and need
  not be: this thread, the node's main one, heeds the stop and calls `on_stop`. It also
  does when a thread fails. Threads that are left end with the process.

  Raises:
    Whatever a thread raises before the stop, or else what `on_stop` raises.
  """
  failures: list[BaseException] = []

  def target(work: Callable[[], None]):
    try:
      work()
    except Stopped:
      pass
    except BaseException as error:  # handed to the main thread
      failures.append(error)

  threads = [
    threading.Thread(target=target, args=(work,), daemon=True) for work in works
  ]
  for thread in threads:
    thread.start()
  while all(thread.is_alive() for thread in threads) and not stop.wait(POLL_PERIOD):
    pass
  # What threads raise after the stop, such as at a closed log, is no failure.
  failed = bool(failures) and not stop.is_set()
  try:
    on_stop()
  finally:
    if failed:
      raise failures[0]
  deadline = time.time() + _JOIN_TIMEOUT
  for thread in threads:  # they close their environments
    thread.join(max(0.0, deadline - time.time()))
