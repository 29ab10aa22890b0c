"""The nodes of the distributed agent, which know of no launcher.

A node gets a `Run`, handles of other nodes, and what tells it to stop. Its constructor
builds its parts, and `run` works until the stop. `program.py` makes Launchpad nodes of
them.
"""

import functools
import threading
import time
from collections.abc import Callable
from typing import Protocol

import acme
import numpy as np
import reverb
from acme.utils import counting

from r2d2_acme import builder as builder_lib
from r2d2_acme import environments
from r2d2_acme.acting.loop import VectorEnvironmentLoop
from r2d2_acme.experiment import Run
from r2d2_acme.replay.adder import Stopped
from r2d2_acme.results import evaluation
from r2d2_acme.workdir import (
  checkpoint_files,
  locking,
  loggers,
  replay_checkpoints,
  saving,
)

_POLL_PERIOD = 1.0  # seconds
_JOIN_TIMEOUT = 2.0  # seconds, for threads to end by themselves


class Learner(Protocol):
  """What other nodes use of the learner's node, or of a client of it."""

  def get_variables(self, names: list[str]) -> list[list[np.ndarray]]: ...

  def get_counts(self) -> dict[str, float]: ...

  def increment(self, **counts: float) -> dict[str, float]: ...

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
    workdir = run.experiment.workdir
    self._release = _hold(workdir, 'replay')
    tables = run.builder.make_tables()
    self.server = replay_checkpoints.start_server(workdir, tables, port)

  def run(self):
    """Serves until the stop."""
    try:
      self._stop.wait()
    finally:
      self._release()


class LearnerNode(acme.VariableSource):
  """Learns, serves parameters, keeps the program's counts and saves both.

  Other nodes count here, as in the parent of their `counting.Counter`s, so that a
  checkpoint has weights and counts of one moment. The replay is saved from a thread of
  its own, so that one that does not answer delays nothing else. At a step limit the
  node asks for the program's end, and then saves the counts that reached it.
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
    workdir = run.experiment.workdir
    self._release = _hold(workdir, 'learner')
    self._logger = run.make_logger('learner')
    self._counter = loggers.WallTimeCounter()
    self._learner = run.builder.make_learner(
      iter(run.builder.make_dataset(replay_client.server_address)),
      replay_client=replay_client,
      counter=counting.Counter(self._counter, prefix='learner', time_delta=0.0),
      logger=self._logger,
    )
    self._checkpointer: saving.Checkpointer | None = None
    if workdir is not None:
      config = run.experiment.config
      self._checkpointer = saving.Checkpointer(workdir, self._learner, {}, config)
      self._counter.increment(**self._checkpointer.counts)
      self._replay_saver = replay_checkpoints.Saver(
        workdir,
        replay_client,
        config.replay_checkpoint_period,
        self._checkpointer.note_replay,
      )

  def get_variables(self, names: list[str]) -> list[list[np.ndarray]]:
    """Returns the learner's newest parameters, see `R2D2Learner.get_variables`."""
    return self._learner.get_variables(names)

  def get_counts(self) -> dict[str, float]:
    """Returns the program's counts and its `wall_time` in seconds."""
    return self._counter.get_counts()

  def increment(self, **counts: float) -> dict[str, float]:
    """Adds to the program's counts; returns them."""
    return self._counter.increment(**counts)

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
        self._learner.run,
        self._watch_counts,
        self._save_replay,
        on_stop=self._save_and_close,
      )
    finally:
      self._release()

  def _watch_counts(self):
    """Saves from time to time; at a limit it stops the program."""
    while not self._stop.wait(_POLL_PERIOD):
      counts = self._counter.get_counts()
      if self._checkpointer is not None:
        self._attempt(
          functools.partial(self._checkpointer.save, counts),
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
      self._counter.increment(failed_saves=1)

  def _save_and_close(self):
    if self._checkpointer is not None:
      self._checkpointer.save(self._counter.get_counts(), force=True)
      try:
        self._replay_saver.save_at_the_end()
      except replay_checkpoints.NoReplay as error:
        checkpoint_files.say(f'{error}; its last checkpoint stays')
    self._logger.close()


class ActorNode:
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
    self._run = run
    self._index = index
    self._replay_client = replay_client
    self._learner = learner
    self._stop = stop
    self._release = _hold(run.experiment.workdir, 'actor', index)
    self._logger = run.make_logger('actor', index)

  def run(self):
    """Acts until the stop, or until an environment fails."""
    try:
      _work_until_stopped(self._stop, self._act, on_stop=self._logger.close)
    finally:
      self._release()

  def _act(self):
    run, config = self._run, self._run.experiment.config
    first = self._index * config.envs_per_actor
    seeds = [
      builder_lib.environment_seed(config, i, run.sitting)
      for i in range(first, first + config.envs_per_actor)
    ]
    with environments.opened(run.experiment.environment_factory, seeds) as fleet:
      VectorEnvironmentLoop(
        fleet,
        run.builder.make_actor(
          self._index,
          replay_client=self._replay_client,
          variable_source=self._learner,
          should_stop=self._stop.is_set,
        ),
        counting.Counter(self._learner, prefix='actor'),
        self._logger,
        should_stop=self._stop.is_set,
      ).run()


class EvaluatorNode:
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
    self._run = run
    self._learner = learner
    self._stop = stop
    self._release = _hold(run.experiment.workdir, 'evaluator')
    self._logger = run.make_logger('evaluator')

  def run(self):
    """Evaluates until the stop, or until the environment fails."""
    try:
      _work_until_stopped(self._stop, self._evaluate, on_stop=self._logger.close)
    finally:
      self._release()

  def _evaluate(self):
    run, config = self._run, self._run.experiment.config
    seeds = [builder_lib.evaluator_seed(config, run.sitting)]
    factory = run.experiment.environment_factory
    with environments.opened(factory, seeds) as (environment,):
      evaluator = evaluation.Evaluator(
        run.builder.make_evaluator(),
        environment,
        self._learner,
        max_steps=config.max_evaluation_steps,
        counter=self._learner,
        logger=self._logger,
        should_stop=self._stop.is_set,
        observe_return=self._learner.observe_return,
      )
      while not self._stop.is_set():
        evaluator.run_episode()
        self._stop.wait(config.evaluation_period)


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
