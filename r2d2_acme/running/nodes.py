"""The nodes of the distributed agent, which know of no launcher.

A node gets a `Run`, handles of other nodes, and what tells it to stop. Its constructor
builds its parts, and `run` works until the stop. `program.py` makes Launchpad nodes of
them.
"""

import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import acme
import numpy as np
import reverb
from acme.utils import counting

from r2d2_acme import builder as builder_lib
from r2d2_acme import environments
from r2d2_acme.acting.loop import VectorEnvironmentLoop
from r2d2_acme.experiment import Run
from r2d2_acme.learning import bad_batches
from r2d2_acme.replay import tables
from r2d2_acme.replay.adder import Stopped
from r2d2_acme.results import evaluation
from r2d2_acme.system import heartbeats, stopping
from r2d2_acme.workdir import (
  checkpoint_files,
  locking,
  loggers,
  replay_checkpoints,
  saving,
  sittings,
)
from r2d2_acme.workdir import counts as counts_lib

_FINAL = (
  environments.EnvironmentFailed,  # too often, or in the very first reset
  bad_batches.LearningFailed,  # a restored checkpoint was no cure
  checkpoint_files.CheckpointError,
  locking.WorkdirInUse,
)
# Counts in the rows of an actor or the evaluator, which never fall.
_LOGGED = (
  *('actor_steps', 'actor_frames', 'actor_episodes'),
  *('evaluator_episodes', 'wall_time'),
)
_POLL_PERIOD = 1.0  # seconds
_SYNC_PERIOD = 0.2  # seconds between an actor's counts and those that it reports
_JOIN_TIMEOUT = 2.0  # seconds, for threads to end by themselves


class Learner(counts_lib.Learner, Protocol):
  """What other nodes use of the learner's node, or of a client of it."""

  def get_variables(self, names: list[str]) -> list[list[np.ndarray]]: ...

  def observe_return(self, episode_return: float): ...


class ReplayNode:
  """Serves the table of windows to the learner and the actors."""

  def __init__(self, run: Run, port: int | None = None, *, stop: threading.Event):
    """Starts the server, with the newest sound checkpoint of the replay.

    Args:
      run: the sitting. Without a workdir the replay is never saved.
      port: of the server; None takes a free one.
      stop: set when the node shall stop.

    Raises:
      CheckpointError: the folder of the checkpoints cannot be read or written.
      WorkdirInUse: another program writes in the workdir.
    """
    self._stop = stop
    self._heartbeat = heartbeats.Heartbeat()
    workdir = run.experiment.workdir
    self._release = _hold(workdir, 'replay')
    self.server = replay_checkpoints.start_server(
      workdir, run.builder.make_tables(), port
    )
    self._client = reverb.Client(f'localhost:{self.server.port}')
    if size := tables.size(self._client):
      print(f'The replay goes on with {size:,} windows.', flush=True)

  def run(self):
    """Serves until the stop."""
    try:
      while not self._stop.wait(_POLL_PERIOD):
        if tables.size(self._client) is not None:  # it answers
          self._heartbeat.beat()
    finally:
      self._release()


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
    replay_client: reverb.Client,
    *,
    stop: threading.Event,
    stop_program: Callable[[], object],
  ):
    """Restores the newest sound checkpoint of the run's workdir, with its counts.

    Args:
      run: the sitting.
      replay_client: of the server whose windows it learns from.
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
    self._release = _hold(workdir, 'learner')
    self._logger = run.make_logger('learner')
    self._replay_client = replay_client
    dataset = run.builder.make_dataset(replay_client.server_address)
    self._batch_spec = dataset.element_spec
    self._is_prepared = threading.Event()
    self._learner = run.builder.make_learner(
      iter(dataset),
      replay_client=replay_client,
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
        replay_client,
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
      _work_until_stopped(
        self._stop,
        self._learn,
        self._watch_counts,
        self._watch_progress,
        self._save_replay,
        on_stop=self._save_and_close,
      )
    finally:
      self._release()

  def _learn(self):
    self._learner.prepare(self._batch_spec)
    self._is_prepared.set()  # until then the node may be silent for longer
    self._learner.run()

  def _watch_counts(self):
    """Saves from time to time; at a limit it stops the program."""
    while not self._stop.wait(_POLL_PERIOD):
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
    while not self._stop.wait(_POLL_PERIOD):
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
    while not self._stop.wait(_POLL_PERIOD):
      before, num_steps = num_steps, self._learner.num_steps
      if num_steps != before or tables.is_starved(self._replay_client):
        self._heartbeat.beat()


class _PlayingNode:
  """What nodes with environments have in common."""

  def __init__(
    self, run: Run, role: str, index: int, learner: Learner, stop: threading.Event
  ):
    self._run = run
    self._learner = learner
    self._stop = stop
    self._heartbeat = heartbeats.Heartbeat()
    self._release = _hold(run.experiment.workdir, role, index)
    self._logger = run.make_logger(role, index)

  def run(self):
    """Plays until the stop, or until environments fail too often."""
    try:
      _work_until_stopped(self._stop, self._play, on_stop=self._logger.close)
    finally:
      self._release()

  def _play(self):
    raise NotImplementedError

  def _open_environments(self, seeds: Sequence[int]):
    experiment = self._run.experiment
    return environments.opened(
      experiment.environment_factory,
      seeds,
      experiment.config.max_environment_failures,
    )

  def _should_stop(self) -> bool:
    self._heartbeat.beat()  # it is asked in each step, and in each wait for replay
    return self._stop.is_set()


class ActorNode(_PlayingNode):
  """Acts in `envs_per_actor` environments and fills the replay."""

  def __init__(
    self,
    run: Run,
    index: int,
    replay_client: reverb.Client,
    learner: Learner,
    *,
    stop: threading.Event,
  ):
    """Prepares the actor.

    Args:
      run: the sitting.
      index: of the node among the actors.
      replay_client: of the server that takes the windows.
      learner: the learner's node.
      stop: set when the node shall stop.

    Raises:
      WorkdirInUse: another program writes in the workdir.
    """
    super().__init__(run, 'actor', index, learner, stop)
    self._index = index
    self._replay_client = replay_client

  def _play(self):
    run, config = self._run, self._run.experiment.config
    first = self._index * config.envs_per_actor
    seeds = [
      builder_lib.environment_seed(config, i, run.stream)
      for i in range(first, first + config.envs_per_actor)
    ]
    reporter = _make_reporter(run, self._learner, 'actor', self._index)
    with self._open_environments(seeds) as fleet:
      counter = counting.Counter(reporter, prefix='actor', time_delta=_SYNC_PERIOD)
      VectorEnvironmentLoop(
        fleet,
        run.builder.make_actor(
          self._index,
          replay_client=self._replay_client,
          variable_source=self._learner,
          should_stop=self._should_stop,
        ),
        counter,
        self._logger,
        should_stop=self._should_stop,
      ).run()
    # The learner's node saves after this one has ended, and then knows all.
    time.sleep(_SYNC_PERIOD)
    counter.get_counts()
    reporter.report()


class EvaluatorNode(_PlayingNode, acme.VariableSource):
  """Plays episode after episode, each with parameters fresh from the learner."""

  def __init__(self, run: Run, learner: Learner, *, stop: threading.Event):
    """Prepares the evaluator.

    Args:
      run: the sitting.
      learner: the learner's node.
      stop: set when the node shall stop.

    Raises:
      WorkdirInUse: another program writes in the workdir.
    """
    super().__init__(run, 'evaluator', 0, learner, stop)

  def _play(self):
    run, config = self._run, self._run.experiment.config
    seeds = [builder_lib.evaluator_seed(config, run.stream)]
    # What a row says is known to the learner's node, or a restart would repeat it.
    self._reporter = _make_reporter(run, self._learner, 'evaluator', wait=True)
    with self._open_environments(seeds) as (environment,):
      evaluator = evaluation.Evaluator(
        run.builder.make_evaluator(),
        environment,
        self,
        max_steps=config.max_evaluation_steps,
        counter=self,
        logger=self._logger,
        should_stop=self._should_stop,
        observe_return=self._observe_return,
      )
      while not self._stop.is_set():
        evaluator.run_episode()
        next_time = time.monotonic() + config.evaluation_period
        while time.monotonic() < next_time and not self._should_stop():
          self._stop.wait(min(_POLL_PERIOD, config.evaluation_period))

  def get_variables(self, names: list[str]) -> list[list[np.ndarray]]:
    """Returns the learner's newest parameters, and may wait for its node."""
    with self._heartbeat.waiting():
      return self._learner.get_variables(names)

  def get_counts(self) -> dict[str, float]:
    """Returns the program's counts, see `Reporter`."""
    return self._reporter.get_counts()

  def increment(self, **counts: float) -> dict[str, float]:
    """Adds to the program's counts, and may wait for the learner's node."""
    with self._heartbeat.waiting():
      return self._reporter.increment(**counts)

  def _observe_return(self, episode_return: float):
    with self._heartbeat.waiting():
      self._learner.observe_return(episode_return)


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


def is_final(error: BaseException) -> bool:
  """Returns whether a node that failed so would only fail again."""
  return isinstance(error, _FINAL)


def _make_reporter(
  run: Run, learner: Learner, role: str, index: int = 0, *, wait: bool = False
) -> counts_lib.Reporter:
  """Returns the counts for a node, which go on from the last row of its log."""
  workdir, row = run.experiment.workdir, None
  if run.restarts and workdir is not None:
    row = sittings.read_last_row(workdir, loggers.label(role, index))
  at_least = {name: row[name] for name in _LOGGED if name in row} if row else {}
  source = f'{role}/{index}/{run.sitting}/{run.restarts}'  # of this start only
  return counts_lib.Reporter(learner, source, at_least, wait=wait)


def _hold(workdir: str | None, role: str, index: int = 0) -> Callable[[], None]:
  """Keeps other programs out of the node's workdir; returns what ends that."""
  return locking.hold(workdir, role, index) if workdir is not None else lambda: None


def _work_until_stopped(
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
  while all(thread.is_alive() for thread in threads) and not stop.wait(_POLL_PERIOD):
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
