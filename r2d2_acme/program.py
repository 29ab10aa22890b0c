"""The distributed agent: a Launchpad program of replay, learner, actors, evaluator."""

import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import acme
import dm_env
import launchpad as lp
import numpy as np
import reverb
from acme import specs
from acme.utils import counting
from launchpad import context as lp_context

from r2d2_acme import builder as builder_lib
from r2d2_acme import environments
from r2d2_acme.acting.loop import VectorEnvironmentLoop
from r2d2_acme.config import R2D2Config
from r2d2_acme.replay.adder import Stopped
from r2d2_acme.results import evaluation
from r2d2_acme.system import machine, runtime
from r2d2_acme.workdir import checkpointing, locking, loggers, paths

EnvironmentFactory = Callable[[int], dm_env.Environment]  # from a seed

_POLL_PERIOD = 1.0  # seconds
_IN_PROCESSES = (
  lp.LaunchType.LOCAL_MULTI_PROCESSING,
  lp.LaunchType.TEST_MULTI_PROCESSING,
)
_JOIN_TIMEOUT = 2.0  # seconds, for threads to end by themselves


def make_program(
  config: R2D2Config,
  environment_factory: EnvironmentFactory,
  *,
  workdir: str | None = None,
  name: str = 'r2d2',
  evaluator: bool = True,
  max_actor_steps: int | None = None,
  max_learner_steps: int | None = None,
  environment_spec: specs.EnvironmentSpec | None = None,
) -> lp.Program:
  """Wires the nodes `replay`, `counter`, `learner`, `actor` x N and `evaluator`.

  Args:
    config: the hyperparameters; `num_actors` is N.
    environment_factory: makes an environment from a seed; must pickle (`local_mp`).
      Images are single frames: the agent stacks them.
    workdir: for logs and checkpoints; a program started in it again resumes. To make
      one begins a sitting. Without a workdir nothing is kept.
    evaluator: whether to run one.
    max_actor_steps, max_learner_steps: the program stops at the first one reached.
    environment_spec: by default that of an environment made for the purpose.

  From now on this process, and later the nodes, keep other programs out of the workdir.

  Raises:
    ValueError: R2D2 does not fit the environment, see `layouts.check`.
    CheckpointError: the workdir's newest checkpoint cannot be resumed from.
    BadWorkdir: no folder can have the workdir's path.
    WorkdirInUse: another program runs in the workdir.
  """
  if environment_spec is None:
    environment_spec = builder_lib.make_environment_spec(config, environment_factory)
  counts = {}
  if workdir is not None:
    workdir = paths.resolve(workdir)
    locking.hold_program(workdir)
    counts = checkpointing.verify(workdir)
  sitting = loggers.begin_sitting(workdir, counts)
  builder = builder_lib.R2D2Builder(config, environment_spec, sitting)

  program = lp.Program(name)
  with program.group('replay'):
    replay = program.add_node(lp.ReverbNode(builder.make_tables))
  with program.group('counter'):
    counter = program.add_node(lp.CourierNode(loggers.WallTimeCounter, counts))
  limits = {'actor_steps': max_actor_steps, 'learner_steps': max_learner_steps}
  with program.group('learner'):
    learner = program.add_node(
      lp.CourierNode(
        _LearnerNode,
        builder,
        config,
        replay,
        counter,
        counts,
        workdir,
        sitting,
        limits,
      )
    )
  with program.group('actor'):
    for index in range(config.num_actors):
      program.add_node(
        lp.PyClassNode(
          _ActorNode,
          builder,
          config,
          index,
          environment_factory,
          replay,
          learner,
          counter,
          workdir,
          sitting,
        )
      )
  if evaluator:
    with program.group('evaluator'):
      program.add_node(
        lp.PyClassNode(
          _EvaluatorNode,
          builder,
          config,
          environment_factory,
          learner,
          counter,
          workdir,
          sitting,
        )
      )
  return program


def _run_until_stopped(
  *works: Callable[[], None], on_stop: Callable[[], None] = lambda: None
):
  """Runs each in a thread until one, or the program, is done; then `on_stop`.

  A thread that waits in C++ for a server that is gone cannot be interrupted. These
  need not be: the node's main thread answers the program's stop, and saves. It also
  saves when a thread fails. A process of its own ends here, and its children with it:
  with code 1 if a thread or `on_stop` fails.

  Raises:
    Whatever a thread raises while the program runs; else what `on_stop` raises.
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
  stop = lp.stop_event()
  while all(thread.is_alive() for thread in threads) and not stop.wait(_POLL_PERIOD):
    pass
  in_process = lp_context.get_context().launch_type in _IN_PROCESSES
  try:
    failed = failures and not stop.is_set()
    try:
      on_stop()
    finally:
      if failed:
        raise failures[0]
  except BaseException:
    if not in_process:
      raise
    traceback.print_exc()
    runtime.exit_now(1)
  deadline = time.time() + _JOIN_TIMEOUT
  for thread in threads:  # they close their environments
    thread.join(max(0.0, deadline - time.time()))
  if in_process:
    runtime.exit_now(0)


def _limit_threads(num_threads: int):
  """Sizes the node's TensorFlow pools, if it has a process of its own."""
  if lp_context.get_context().launch_type in _IN_PROCESSES:
    runtime.limit_threads(num_threads)


def _hold(workdir: str | None, role: str, index: int = 0) -> Callable[[], None]:
  """Keeps other programs out of the node's workdir; returns what ends that."""
  return locking.hold(workdir, role, index) if workdir is not None else lambda: None


class _LearnerNode(acme.VariableSource):
  """Learns, serves parameters, saves, and stops the program at a limit."""

  def __init__(
    self,
    builder: builder_lib.R2D2Builder,
    config: R2D2Config,
    replay_client: reverb.Client,
    counter: counting.Counter,
    counts: Mapping[str, float],
    workdir: str | None,
    sitting: int,
    limits: Mapping[str, int | None],
  ):
    _limit_threads(machine.num_cores())
    self._limits = limits
    self._release = _hold(workdir, 'learner')
    self._logger = loggers.make_logger(workdir, 'learner', sitting=sitting)
    self._counter = counter
    self._learner = builder.make_learner(
      iter(builder.make_dataset(replay_client.server_address)),
      replay_client=replay_client,
      counter=counting.Counter(counter, prefix='learner'),
      logger=self._logger,
    )
    self._checkpointer = None
    if workdir is not None:
      self._checkpointer = checkpointing.Checkpointer(
        workdir, self._learner, counts, config
      )

  def get_variables(self, names: list[str]) -> list[list[np.ndarray]]:
    return self._learner.get_variables(names)

  def observe_return(self, episode_return: float):
    """Notes the return of an evaluator episode: it decides what the best checkpoint is.

    Returns at once; the thread that saves does the rest.
    """
    if self._checkpointer is not None:
      self._checkpointer.observe_return(episode_return)

  def run(self):
    # Launchpad knows this thread only.
    stop, stop_program = lp.stop_event(), lp_context.get_context().program_stopper
    try:
      _run_until_stopped(
        self._learner.run,
        lambda: self._watch_counts(stop, stop_program),
        on_stop=self._save_and_close,
      )
    finally:
      self._release()

  def _watch_counts(self, stop: threading.Event, stop_program: Callable[[], None]):
    """Saves from time to time; at a limit it stops the program.

    The last checkpoint then holds the counts that reached the limit.
    """
    while not stop.wait(_POLL_PERIOD):
      counts = self._counter.get_counts()
      if self._checkpointer is not None:
        self._checkpointer.save(counts)
      if loggers.is_at_limit(counts, self._limits):
        stop_program()
        stop.wait()

  def _save_and_close(self):
    if self._checkpointer is not None:
      self._checkpointer.save(force=True)  # asks nobody: the counter may be gone
    self._logger.close()


class _ActorNode:
  """Acts in `envs_per_actor` environments and fills the replay."""

  def __init__(
    self,
    builder: builder_lib.R2D2Builder,
    config: R2D2Config,
    index: int,
    environment_factory: EnvironmentFactory,
    replay_client: reverb.Client,
    learner: acme.VariableSource,
    counter: counting.Counter,
    workdir: str | None,
    sitting: int,
  ):
    _limit_threads(1)
    self._release = _hold(workdir, 'actor', index)
    self._stop = lp.stop_event()
    self._logger = loggers.make_logger(workdir, 'actor', index, sitting=sitting)

    def act():
      fleet = range(index * config.envs_per_actor, (index + 1) * config.envs_per_actor)
      seeds = [builder_lib.environment_seed(config, i, sitting) for i in fleet]
      with environments.opened(environment_factory, seeds) as fleet_environments:
        VectorEnvironmentLoop(
          fleet_environments,
          builder.make_actor(
            index,
            replay_client=replay_client,
            variable_source=learner,
            should_stop=self._stop.is_set,
          ),
          counting.Counter(counter, prefix='actor'),
          self._logger,
          should_stop=self._stop.is_set,
        ).run()

    self._act = act

  def run(self):
    try:
      _run_until_stopped(self._act, on_stop=self._logger.close)
    finally:
      self._release()


class _EvaluatorNode:
  """Plays episode after episode, each with parameters fresh from the learner."""

  def __init__(
    self,
    builder: builder_lib.R2D2Builder,
    config: R2D2Config,
    environment_factory: EnvironmentFactory,
    learner: Any,  # a courier client of the learner node
    counter: counting.Counter,
    workdir: str | None,
    sitting: int,
  ):
    _limit_threads(1)
    self._release = _hold(workdir, 'evaluator')
    self._stop = lp.stop_event()
    self._logger = loggers.make_logger(workdir, 'evaluator', sitting=sitting)
    self._period = config.evaluation_period

    def evaluate():
      seeds = [builder_lib.evaluator_seed(config, sitting)]
      with environments.opened(environment_factory, seeds) as (environment,):
        evaluator = evaluation.Evaluator(
          builder.make_evaluator(),
          environment,
          learner,
          max_steps=config.max_evaluation_steps,
          counter=counter,
          logger=self._logger,
          should_stop=self._stop.is_set,
          observe_return=learner.observe_return,
        )
        while not self._stop.is_set():
          evaluator.run_episode()
          self._stop.wait(self._period)

    self._evaluate = evaluate

  def run(self):
    try:
      _run_until_stopped(self._evaluate, on_stop=self._logger.close)
    finally:
      self._release()
