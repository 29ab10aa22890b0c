"""The node that learns, and keeps what the program must not lose."""

import functools
import threading
import time
from collections.abc import Callable, Sequence

import acme
import numpy as np
import reverb
from acme.utils import counting

from r2d2_acme.experiment import Run
from r2d2_acme.running.nodes import base
from r2d2_acme.system import heartbeats, stopping
from r2d2_acme.workdir import (
  checkpoint_files,
  loggers,
  replay_checkpoints,
  saving,
  sittings,
)
from r2d2_acme.workdir import counts as counts_lib


class LearnerNode(acme.VariableSource):
  """Learns, serves parameters, keeps the program's counts and saves both.

  Other nodes report what they count, so that a checkpoint has weights and counts of one
  moment. The replay is saved from a thread of its own, so that one that does not answer
  delays nothing else. At a step limit the node asks for the program's end, and then
  saves the counts that reached it.
  """

  def __init__(
    self,
    run: Run,
    replay_clients: Sequence[reverb.Client],
    *,
    stop: threading.Event,
    stop_program: Callable[[], object],
  ):
    """Restores the newest sound checkpoint of the run's workdir, with its counts.

    Args:
      run: the sitting.
      replay_clients: of the servers whose windows it learns from, one for each shard.
      stop: set when the node shall stop.
      stop_program: asks for the end of all nodes; called at a step limit.

    Raises:
      CheckpointError: the checkpoint is of another network, or none is sound.
      WorkdirInUse: another program writes in the workdir.
    """
    self._run = run
    self._stop = stop
    self._stop_program = stop_program
    self._heartbeat = heartbeats.Heartbeat()
    workdir = run.experiment.workdir
    self._release = base.hold(workdir, 'learner')
    self._logger = run.make_logger('learner')
    self._source = run.builder.make_source(replay_clients)
    self._is_prepared = threading.Event()
    self._learner = run.builder.make_learner(
      iter(self._source.dataset),
      replay_clients=replay_clients,
      counter=counting.Counter(self, prefix='learner', time_delta=0.0),
      logger=self._logger,
    )
    self._checkpointer: saving.Checkpointer | None = None
    counts = run.counts
    if workdir is not None:
      config = run.experiment.config
      self._checkpointer = saving.Checkpointer(workdir, self._learner, {}, config)
      self._replay_saver = replay_checkpoints.Saver(
        workdir,
        replay_clients,
        config.replay_checkpoint_period,
        self._checkpointer.note_replay,
      )
      self._learner.restore_newest = self._checkpointer.restore_newest
      counts = self._checkpointer.counts
    logged: dict[str, float] = {}
    if run.restarts:  # time went on since that checkpoint, if there is one
      wall_time = run.counts.get('wall_time', 0.0) + time.time() - run.begun_at
      counts = {**counts, 'wall_time': wall_time}
      logged = _read_logged_counts(workdir)
    else:  # the nodes of the sitting before report no more
      counts = counts_lib.without_reports(counts)
    self._ledger = counts_lib.Ledger(counts, at_least=logged)

  def get_variables(self, names: list[str]) -> list[list[np.ndarray]]:
    """Returns the learner's newest parameters, see `R2D2Learner.get_variables`."""
    return self._learner.get_variables(names)

  def get_new_variables(
    self, names: list[str], known: str
  ) -> tuple[str, list[list[np.ndarray]]]:
    """Returns them unless they are known, see `R2D2Learner.get_new_variables`."""
    return self._learner.get_new_variables(names, known)

  def get_counts(self) -> dict[str, float]:
    """Returns the program's counts and its `wall_time` in seconds."""
    return self._ledger.get_counts()

  def increment(self, **counts: float) -> dict[str, float]:
    """Adds to the program's counts; returns them."""
    return self._ledger.increment(**counts)

  def report(self, source: str, totals: dict[str, float]) -> dict[str, float]:
    """Notes what another node has counted, see `Ledger.report`."""
    return self._ledger.report(source, totals)

  def observe_return(self, episode_return: float):
    """Notes the return of an evaluator episode: it decides what the best checkpoint is.

    Returns at once; the thread that saves does the rest.
    """
    if self._checkpointer is not None:
      self._checkpointer.observe_return(episode_return)

  def run(self):
    """Learns until the stop; then, or when learning fails, saves."""
    try:
      base.work_until_stopped(
        self._stop,
        self._learn,
        self._watch_counts,
        self._watch_progress,
        self._save_replay,
        on_stop=self._save_and_close,
      )
    finally:
      self._source.close()
      self._release()

  def _learn(self):
    self._learner.prepare(self._source.dataset.element_spec)
    self._is_prepared.set()  # until then the node may be silent for longer
    self._learner.run()

  def _watch_counts(self):
    """Saves from time to time; at a limit it stops the program."""
    while not self._stop.wait(base.POLL_PERIOD):
      counts = self._ledger.get_counts()
      if self._checkpointer is not None:
        self._attempt(
          functools.partial(self._checkpointer.save, self._ledger.save()),
          self._run.experiment.config.checkpoint_period,
        )
      if loggers.is_at_limit(counts, self._run.experiment.limits):
        self._stop_program()
        self._stop.wait()

  def _save_replay(self):
    """Saves the replay from time to time."""
    while not self._stop.wait(base.POLL_PERIOD):
      if self._checkpointer is not None:
        self._attempt(
          self._replay_saver.save_if_due,
          self._run.experiment.config.replay_checkpoint_period,
        )

  def _attempt(self, save: Callable[[], None], period: float):
    if not checkpoint_files.attempt(save, period):
      self.increment(failed_saves=1)

  def _save_and_close(self):
    if self._checkpointer is not None:
      self._checkpointer.save(self._ledger.save(), force=True)
      try:
        self._replay_saver.save_at_the_end()
      except replay_checkpoints.NoReplay as error:
        stopping.say(f'{error}; its last checkpoint stays')
    self._logger.close()

  def _watch_progress(self):
    """Shows progress with each step, or while there is nothing to learn from."""
    self._is_prepared.wait()
    num_steps = -1
    while not self._stop.wait(base.POLL_PERIOD):
      before, num_steps = num_steps, self._learner.num_steps
      if num_steps != before or self._source.is_starved():
        self._heartbeat.beat()


def _read_logged_counts(workdir: str | None) -> dict[str, float]:
  """Returns the largest counts in the logs, but for the learner's steps."""
  counts: dict[str, float] = {}
  if workdir is None:
    return counts
  for label in sittings.read_labels(workdir):
    row = sittings.read_last_row(workdir, label) or {}
    for name, count in row.items():
      if name.startswith(('actor_', 'evaluator_')):
        counts[name] = max(count, counts.get(name, 0))
  return counts
