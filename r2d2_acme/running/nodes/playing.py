"""The nodes with environments: actors and the evaluator."""

import threading
import time
from collections.abc import Sequence

import acme
import numpy as np
import reverb
from acme.utils import counting

from r2d2_acme import builder as builder_lib
from r2d2_acme import environments
from r2d2_acme.acting.loop import VectorEnvironmentLoop
from r2d2_acme.experiment import Run
from r2d2_acme.results import evaluation, evaluator_videos
from r2d2_acme.running.nodes import base
from r2d2_acme.system import heartbeats
from r2d2_acme.workdir import counts as counts_lib
from r2d2_acme.workdir import loggers, sittings

# Counts in the rows of an actor or the evaluator, which never fall.
_LOGGED = (
  *('actor_steps', 'actor_frames', 'actor_episodes'),
  *('evaluator_episodes', 'wall_time'),
)
_SYNC_PERIOD = 0.2  # seconds between an actor's counts and those that it reports


class _PlayingNode:
  """What nodes with environments have in common."""

  def __init__(
    self, run: Run, role: str, index: int, learner: base.Learner, stop: threading.Event
  ):
    self._run = run
    self._learner = learner
    self._stop = stop
    self._heartbeat = heartbeats.Heartbeat()
    self._release = base.hold(run.experiment.workdir, role, index)
    self._logger = run.make_logger(role, index)

  def run(self):
    """Plays until the stop, or until environments fail too often."""
    try:
      base.work_until_stopped(self._stop, self._play, on_stop=self._logger.close)
    finally:
      self._release()

  def _play(self):
    raise NotImplementedError

  def _open_environments(self, seeds: Sequence[int], reporter: counts_lib.Reporter):
    """Makes environments; the counts tell whether those of this run have worked."""
    experiment = self._run.experiment
    return environments.opened(
      experiment.environment_factory,
      seeds,
      experiment.config.max_environment_failures,
      have_worked=reporter.get_counts().get('actor_steps', 0) > 0,
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
    replay_clients: Sequence[reverb.Client],
    learner: base.Learner,
    *,
    cacher: acme.VariableSource | None = None,
    stop: threading.Event,
  ):
    """Prepares the actor.

    Args:
      run: the sitting.
      index: of the node among the actors.
      replay_clients: of the servers that take the windows, one for each shard.
      learner: the learner's node.
      cacher: the node to fetch parameters from; by default the learner's.
      stop: set when the node shall stop.

    Raises:
      WorkdirInUse: another program writes in the workdir.
    """
    super().__init__(run, 'actor', index, learner, stop)
    self._index = index
    self._variable_source = learner if cacher is None else cacher
    self._replay_clients = replay_clients

  def _play(self):
    run, config = self._run, self._run.experiment.config
    first = self._index * config.envs_per_actor
    seeds = [
      builder_lib.environment_seed(config, i, run.stream)
      for i in range(first, first + config.envs_per_actor)
    ]
    reporter = _make_reporter(run, self._learner, 'actor', self._index)
    with self._open_environments(seeds, reporter) as fleet:
      counter = counting.Counter(reporter, prefix='actor', time_delta=_SYNC_PERIOD)
      VectorEnvironmentLoop(
        fleet,
        run.builder.make_actor(
          self._index,
          replay_clients=self._replay_clients,
          variable_source=self._variable_source,
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

  def __init__(self, run: Run, learner: base.Learner, *, stop: threading.Event):
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
    with self._open_environments(seeds, self._reporter) as (environment,):
      evaluator = evaluation.Evaluator(
        run.builder.make_evaluator(),
        environment,
        self,
        max_steps=config.max_evaluation_steps,
        counter=self,
        logger=self._logger,
        should_stop=self._should_stop,
        observe_return=self._observe_return,
        videos=evaluator_videos.make(run.experiment.workdir, config, environment),
      )
      while not self._stop.is_set():
        evaluator.run_episode()
        next_time = time.monotonic() + config.evaluation_period
        while time.monotonic() < next_time and not self._should_stop():
          self._stop.wait(min(base.POLL_PERIOD, config.evaluation_period))

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


def _make_reporter(
  run: Run, learner: base.Learner, role: str, index: int = 0, *, wait: bool = False
) -> counts_lib.Reporter:
  """Returns the counts for a node, which go on from the last row of its log."""
  workdir, row = run.experiment.workdir, None
  if run.restarts and workdir is not None:
    row = sittings.read_last_row(workdir, loggers.label(role, index))
  at_least = {name: row[name] for name in _LOGGED if name in row} if row else {}
  source = f'{role}/{index}/{run.sitting}/{run.restarts}'  # of this start only
  return counts_lib.Reporter(learner, source, at_least, wait=wait)
