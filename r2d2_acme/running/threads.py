"""A node of a program as a thread, for debugging."""

import os
import threading
import traceback
from collections.abc import Callable
from typing import Any

from launchpad.launch import worker_manager

from r2d2_acme.running import workers


class ThreadWorker:
  """A node in a thread of this process, where Launchpad's functions work."""

  host = ''

  def __init__(self, name: str, function: Callable[[], Any], *, stop_order: int = 0):
    """Does not start it yet. Launchpad may set handlers of signals.

    Args:
      name: of the node.
      function: runs it until Launchpad's stop event is set.
      stop_order: see `Worker`.
    """
    self.name = name
    self.pid: int | None = os.getpid()
    self.num_starts = 0
    self.is_asked = False
    self.stop_order = stop_order
    self.heartbeat = None  # nobody could end it
    self._function = function
    self._error: BaseException | None = None
    self._ended = threading.Event()
    # What `lp.stop_event` and `lp.wait_for_stop` use in the node's thread.
    self._manager = worker_manager.WorkerManager(
      kill_main_thread=False, register_signals=False
    )

  def start(self):
    self.is_asked = False
    self._error = None
    self._ended.clear()
    self._manager.stop_event().clear()
    self._manager.thread_worker(self.name, self._run)
    self.num_starts += 1

  def _run(self):
    try:
      self._function()
    except BaseException as error:  # for `describe_failure`
      self._error = error
    finally:
      self._ended.set()

  def poll(self) -> int | None:
    return int(self._error is not None) if self._ended.is_set() else None

  def ask(self):
    self.is_asked = True
    self._manager.stop_event().set()

  def interrupt(self):
    """Does nothing, as `kill`."""

  def kill(self):
    """Does nothing: a thread ends by itself, or with the process."""

  def describe_end(self) -> str:
    return workers.UNASKED if self._error is None else f'failed: {self._error}'

  def describe_failure(self, cause: str = '') -> str:
    last = f'{self.name} {cause or self.describe_end()}'
    if self._error is None:
      return last
    return ''.join(traceback.format_exception(self._error)) + last
