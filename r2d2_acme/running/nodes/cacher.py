"""The node that passes the learner's parameters on to some of the actors."""

import threading

import acme
import numpy as np

from r2d2_acme.replay.adder import Stopped
from r2d2_acme.running.nodes import base
from r2d2_acme.system import heartbeats

# Seconds between two looks for new parameters. They reach an actor so much later at
# most, which itself looks every six seconds with the paper's 400 steps.
PERIOD = 2.0


class CacherNode(acme.VariableSource):
  """Fetches each version of the parameters once, and serves it to some of the actors.

  It serves what it has while the learner's node is away, and after that whatever the
  learner then has, even if that is older. It writes nothing in the workdir.
  """

  def __init__(self, learner: base.Learner, *, stop: threading.Event):
    """Does not wait for the learner yet.

    Args:
      learner: the learner's node.
      stop: set when the node shall stop.
    """
    self._learner = learner
    self._stop = stop
    self._heartbeat = heartbeats.Heartbeat()
    self._values: list[np.ndarray] = []
    self._has_values = threading.Event()

  def get_variables(self, names: list[str]) -> list[list[np.ndarray]]:
    """Returns what the learner's node returned last, and waits for the first time.

    Raises:
      Stopped: the node has stopped before that.
    """
    while not self._has_values.wait(base.POLL_PERIOD):
      if self._stop.is_set():
        raise Stopped
    return [self._values for _ in names]

  def run(self):
    """Follows the learner until the stop."""
    base.work_until_stopped(self._stop, self._follow, on_stop=lambda: None)

  def _follow(self):
    version = ''
    while not self._stop.is_set():
      with self._heartbeat.waiting():  # the learner's node may be away
        version, new = self._learner.get_new_variables(['policy'], version)
      self._heartbeat.beat()
      if new:
        (self._values,) = new
        self._has_values.set()
      self._stop.wait(PERIOD)
