"""The node that serves the table of windows, or a shard of it."""

import threading

import reverb

from r2d2_acme.experiment import Run
from r2d2_acme.replay import tables
from r2d2_acme.running.nodes import base
from r2d2_acme.system import heartbeats
from r2d2_acme.workdir import replay_checkpoints


class ReplayNode:
  """Serves a shard of the windows to the learner and the actors."""

  def __init__(
    self, run: Run, index: int = 0, port: int | None = None, *, stop: threading.Event
  ):
    """Starts the server, with the newest sound checkpoint of the replay.

    Args:
      run: the sitting. Without a workdir the replay is never saved.
      index: of the shard.
      port: of the server; None takes a free one.
      stop: set when the node shall stop.

    Raises:
      CheckpointError: the folder of the checkpoints cannot be read or written.
      WorkdirInUse: another program writes in the workdir.
    """
    self._stop = stop
    self._heartbeat = heartbeats.Heartbeat()
    workdir = run.experiment.workdir
    self._release = base.hold(workdir, 'replay', index)
    self.server = replay_checkpoints.start_server(
      workdir, run.builder.make_tables(shard=index), port, shard=index
    )
    self._client = reverb.Client(f'localhost:{self.server.port}')
    if size := tables.size(self._client):
      print(f'The replay goes on with {size:,} windows.', flush=True)

  def run(self):
    """Serves until the stop."""
    try:
      while not self._stop.wait(base.POLL_PERIOD):
        if tables.size(self._client) is not None:  # it answers
          self._heartbeat.beat()
    finally:
      self._release()
