"""R2D2 in one process: the agent, and training with it."""

import contextlib
import time
import weakref
from collections.abc import Callable, Sequence

import acme
import dm_env
import numpy as np
import reverb
from acme import specs
from acme.utils import counting
from acme.utils import loggers as acme_loggers

from r2d2_acme import builder as builder_lib
from r2d2_acme import environments
from r2d2_acme import experiment as experiment_lib
from r2d2_acme.acting.actor import R2D2Actor
from r2d2_acme.acting.loop import VectorEnvironmentLoop
from r2d2_acme.config import R2D2Config
from r2d2_acme.experiment import Experiment, Run
from r2d2_acme.results import evaluation, evaluator_videos
from r2d2_acme.system import machine, runtime
from r2d2_acme.tracking import process as tracking
from r2d2_acme.workdir import (
  checkpoint_files,
  checkpointing,
  locking,
  loggers,
  paths,
  replay_checkpoints,
  saving,
  status,
)


class R2D2(acme.Actor, acme.VariableSource):
  """Acts and learns in turn: nothing waits for another process.

  With one environment use it in `acme.EnvironmentLoop`, with `envs_per_actor` of them
  in `VectorEnvironmentLoop`. Learner steps follow the windows written, at
  `samples_per_insert`, from `min_replay_size` windows on.
  """

  _release: weakref.finalize | None = None  # of the workdir

  def __init__(
    self,
    environment_spec: specs.EnvironmentSpec,
    config: R2D2Config,
    *,
    workdir: str | None = None,
    counter: counting.Counter | None = None,
    logger: acme_loggers.Logger | None = None,
  ):
    """With a workdir it resumes from, and saves to, its checkpoints.

    As long as the agent lives, or until `close`, other processes are kept out of the
    workdir.

    Args:
      environment_spec: of the environments to act in.
      config: the hyperparameters.
      workdir: of the run. To make an agent there begins a sitting.
      counter: the root counter, by default a `WallTimeCounter`. If it has counted
        nothing yet, it goes on from the checkpoint's counts; from its `wall_time`
        only if it counts that, too.
      logger: of the learner; by default its rows go to the workdir, if there is one.

    Raises:
      ValueError: the config is for more than one actor or shard, or R2D2 does not fit
        the environment, see `layouts.check`.
      CheckpointError: none of the workdir's checkpoints is sound.
      WorkdirInUse: another program runs in the workdir.
    """
    _check_is_one_process(config)
    runtime.limit_threads(machine.num_cores())
    workdir = None if workdir is None else paths.resolve(workdir)
    with self._holding(workdir):
      counts = {} if workdir is None else checkpointing.verify(workdir)
      experiment = Experiment(
        config, _make_nothing, environment_spec=environment_spec, workdir=workdir
      )
      run = experiment_lib.begin_sitting(experiment, counts)
      if workdir is not None and logger is None:
        logger = run.make_logger('learner')
      self._build(run, counter, logger)

  @classmethod
  def from_run(cls, run: Run, logger: acme_loggers.Logger | None) -> 'R2D2':
    """Returns the agent of a sitting that has begun; the logger is the learner's.

    Raises:
      ValueError: the config is for more than one actor or shard.
      WorkdirInUse: another program runs in the workdir.
    """
    _check_is_one_process(run.experiment.config)
    runtime.limit_threads(machine.num_cores())
    agent = cls.__new__(cls)
    with agent._holding(run.experiment.workdir):
      agent._build(run, None, logger)
    return agent

  @contextlib.contextmanager
  def _holding(self, workdir: str | None):
    """Keeps other programs out of the workdir until `close`, or this agent's end.

    What is done inside `with` completes the agent; if it fails there is none.
    """
    if workdir is not None:
      self._release = weakref.finalize(self, locking.hold(workdir, 'learner'))
    try:
      yield
    except BaseException:
      self.close()
      raise

  def close(self):
    """Lets other programs write in the workdir; the agent must not be used after it."""
    if self._release is not None:
      self._release()

  def _build(
    self,
    run: Run,
    counter: counting.Counter | None,
    logger: acme_loggers.Logger | None,
  ):
    config, workdir = run.experiment.config, run.experiment.workdir
    self._config = config
    self._sitting = run.sitting
    counter = counter if counter is not None else loggers.WallTimeCounter()
    if not _has_counted(counter):
      keeps_time = 'wall_time' in counter.get_counts()
      # In a counter that does not, it would stand still.
      counter.increment(
        **{
          name: count
          for name, count in run.counts.items()
          if name != 'wall_time' or keeps_time
        }
      )
    self._counter = counter
    # Nobody may wait for the other side in one thread: no ratio in the limiter.
    min_size = reverb.rate_limiters.MinSize(config.min_replay_size)
    tables = run.builder.make_tables(min_size)
    server = replay_checkpoints.start_server(workdir, tables)
    address = f'localhost:{server.port}'
    client = reverb.Client(address)
    self.learner = run.builder.make_learner(
      iter(run.builder.make_dataset(address, prefetch=0)),
      replay_clients=[client],
      counter=counting.Counter(counter, prefix='learner', time_delta=0.0),
      logger=logger,
    )
    self._checkpointer = None
    if workdir is not None:
      self._checkpointer = saving.Checkpointer(
        workdir, self.learner, {**run.counts, **counter.get_counts()}, config
      )
      self.learner.restore_newest = self._checkpointer.restore_newest
      self._replay_saver = replay_checkpoints.Saver(
        workdir,
        [client],
        config.replay_checkpoint_period,
        self._checkpointer.note_replay,
      )
    self._num_restored = next(iter(client.server_info().values())).current_size
    self._batched_actor = run.builder.make_actor(
      replay_clients=[client], variable_source=self.learner
    )
    self._actor = R2D2Actor(self._batched_actor)
    self._num_learned = 0  # steps, in this process
    # The last one, so that it ends after those who write to it: otherwise it would wait
    # for them for seconds.
    self._server = server

  @property
  def counter(self) -> counting.Counter:
    """The root counter, the parent of an environment loop's."""
    return self._counter

  @property
  def sitting(self) -> int:
    """How many starts there were in the workdir before this one.

    An environment's seed should depend on it, or each start plays the same episodes.
    """
    return self._sitting

  @property
  def epsilons(self) -> Sequence[float]:
    return self._batched_actor.epsilons

  @property
  def num_windows(self) -> int:
    """Windows written by this process."""
    return self._batched_actor.num_windows

  def select_actions(
    self, actions: np.ndarray, timesteps: Sequence[dm_env.TimeStep]
  ) -> np.ndarray:
    """As `BatchedActor.select_actions`."""
    return self._batched_actor.select_actions(actions, timesteps)

  def drop_episode(self, index: int):
    """As `BatchedActor.drop_episode`."""
    self._batched_actor.drop_episode(index)

  def select_action(self, observation) -> np.ndarray:
    return self._actor.select_action(observation)

  def observe_first(self, timestep: dm_env.TimeStep):
    self._actor.observe_first(timestep)

  def observe(self, action, next_timestep: dm_env.TimeStep):
    self._actor.observe(action, next_timestep)

  def update(self, wait: bool = False):
    """Takes the learner steps that the windows written so far are due."""
    config = self._config
    num_new = self.num_windows - max(0, config.min_replay_size - self._num_restored)
    num_due = int(num_new * config.samples_per_insert / config.batch_size)
    if num_new >= 0 and self._num_learned < num_due:
      self._batched_actor.flush()  # or the learner might wait for the first window
      while self._num_learned < num_due:
        self.learner.step()
        self._num_learned += 1
      if self._checkpointer is not None:
        self._attempt(self._save_learner, config.checkpoint_period)
        self._attempt(self._replay_saver.save_if_due, config.replay_checkpoint_period)
    self._actor.update(wait=True)

  def observe_return(self, episode_return: float):
    """Notes the return of an evaluator episode: it decides what the best checkpoint is.

    Returns at once, from any thread; the next `update` that learns, or `save`, saves.
    """
    if self._checkpointer is not None:
      self._checkpointer.observe_return(episode_return)

  def save(self):
    """Saves the learner and the replay now, if there is a workdir.

    Raises:
      CheckpointError: one of them cannot be written.
    """
    if self._checkpointer is not None:
      self._save_learner(force=True)
      self._batched_actor.flush()
      self._replay_saver.save()

  def _save_learner(self, *, force: bool = False):
    assert self._checkpointer is not None
    self._checkpointer.save(self._counter.get_counts(), force=force)

  def _attempt(self, save: Callable[[], None], period: float):
    if not checkpoint_files.attempt(save, period):
      self._counter.increment(failed_saves=1)

  def get_variables(self, names: list[str]) -> list[list[np.ndarray]]:
    return self.learner.get_variables(names)


def run_experiment(
  experiment: Experiment,
  *,
  should_stop: Callable[[], bool] = lambda: False,
  observe: Callable[[R2D2, int], object] = lambda agent, steps: None,
):
  """Trains in this process, to a limit of the experiment or until it should stop.

  Every `evaluation_period` seconds training waits for an episode of the evaluator. At
  the end, and when environments fail too often, the agent saves.

  Args:
    experiment: what to train, where and until when; its config has one actor.
    should_stop: is asked after each step of all environments.
    observe: is called with the agent and the steps so far, at the start and after each
      step of all environments.

  Raises:
    BadInput: the experiment cannot work, alone, on this machine or in its workdir.
    BadWorkdir: no folder can have the workdir's path.
    CheckpointError: the checkpoint to go back to is damaged, or none is sound.
    EnvironmentFailed: environments failed more often than the config allows.
    ValueError: the config is for more than one actor or shard.
  """
  _check_is_one_process(experiment.config)
  run = experiment_lib.begin(experiment)
  try:
    if run.experiment.workdir is not None:
      status.remove(run.experiment.workdir)  # of a program with nodes, perhaps
    with tracking.tracked(experiment.track, run.experiment.workdir):
      _run(run, should_stop, observe)
  finally:
    if run.experiment.workdir is not None:
      locking.release_program(run.experiment.workdir)


def _run(
  run: Run, should_stop: Callable[[], bool], observe: Callable[[R2D2, int], object]
):
  """See `run_experiment`."""
  experiment, config = run.experiment, run.experiment.config
  with contextlib.ExitStack() as stack:
    make_logger = lambda role: stack.enter_context(  # noqa: E731
      contextlib.closing(run.make_logger(role))
    )
    agent = R2D2.from_run(run, make_logger('learner'))
    stack.callback(agent.close)  # garbage collection would do so some time

    def open_environments(*seeds: int) -> Sequence[dm_env.Environment]:
      return stack.enter_context(
        environments.opened(
          experiment.environment_factory,
          seeds,
          config.max_environment_failures,
          have_worked=run.counts.get('actor_steps', 0) > 0,
        )
      )

    fleet = open_environments(
      *(
        builder_lib.environment_seed(config, i, run.sitting)
        for i in range(config.envs_per_actor)
      )
    )
    evaluated = open_environments(
      *[builder_lib.evaluator_seed(config, run.sitting)] * experiment.evaluator
    )
    loop = VectorEnvironmentLoop(
      fleet,
      agent,
      counting.Counter(agent.counter, prefix='actor', time_delta=0.0),
      make_logger('actor'),
      should_stop=should_stop,
    )
    evaluators = [
      evaluation.Evaluator(
        run.builder.make_evaluator(),
        environment,
        agent,
        max_steps=config.max_evaluation_steps,
        counter=agent.counter,
        logger=make_logger('evaluator'),
        should_stop=should_stop,
        observe_return=agent.observe_return,
        videos=evaluator_videos.make(experiment.workdir, config, environment),
      )
      for environment in evaluated
    ]
    _train(run, agent, loop, evaluators, should_stop, observe)


def _train(
  run: Run,
  agent: R2D2,
  loop: VectorEnvironmentLoop,
  evaluators: Sequence[evaluation.Evaluator],
  should_stop: Callable[[], bool],
  observe: Callable[[R2D2, int], object],
):
  """See `run_experiment`; there is one evaluator, or none."""
  config, limits = run.experiment.config, run.experiment.limits
  last_evaluation = time.time()
  try:
    while True:
      counts = agent.counter.get_counts()
      observe(agent, int(counts.get('actor_steps', 0)))
      if should_stop() or loggers.is_at_limit(counts, limits):
        return
      try:
        loop.run(num_steps=config.envs_per_actor)
      except environments.EpisodeLost:  # it was being made again
        if not should_stop():
          raise
      if time.time() - last_evaluation > config.evaluation_period:
        for evaluator in evaluators:
          evaluator.run_episode()
        last_evaluation = time.time()
  finally:
    agent.save()


def _check_is_one_process(config: R2D2Config):
  if config.num_actors != 1:
    raise ValueError(
      f'R2D2 in one process is one actor: set num_actors=1, not {config.num_actors}'
    )
  if config.num_replay_shards != 1:
    raise ValueError(
      'R2D2 in one process has one replay: set num_replay_shards=1, not '
      f'{config.num_replay_shards}'
    )


def _make_nothing(seed: int):
  """The factory of an agent whose environments are made elsewhere."""
  raise NotImplementedError


def _has_counted(counter: counting.Counter) -> bool:
  counts = counter.get_counts()
  return any(count for name, count in counts.items() if name != 'wall_time')
