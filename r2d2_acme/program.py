"""The distributed agent: a Launchpad program of replay, learner, actors, evaluator."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import launchpad as lp
import reverb
from launchpad import address as lp_address
from launchpad import context as lp_context

from r2d2_acme import environments
from r2d2_acme import experiment as experiment_lib
from r2d2_acme.experiment import Experiment, Run
from r2d2_acme.running import entry, nodes, workers
from r2d2_acme.system import machine, network, runtime

_IN_THREADS = (
  lp.LaunchType.LOCAL_MULTI_THREADING,
  lp.LaunchType.TEST_MULTI_THREADING,
)


def make_program(
  experiment: Experiment, name: str = 'r2d2', *, elsewhere: bool = False
) -> lp.Program:
  """Wires the nodes `replay` x K, `learner`, `cacher`, `actor` x N and `evaluator`.

  To make a program begins a sitting in the experiment's workdir, if there is one. From
  then on this process, and later the nodes, keep other programs out of it.

  Args:
    experiment: what to train, where and until when; N is its config's `num_actors`, K
      its `num_replay_shards`. There are as many cachers as `actors_per_cacher` asks
      for, or none.
    name: of the program.
    elsewhere: whether nodes run on other machines, so that this one's memory does not
      matter.

  Raises:
    BadInput: the experiment cannot work, alone, on this machine or in its workdir.
    BadWorkdir: no folder can have the workdir's path.
    CheckpointError: the checkpoint to go back to is damaged, or none is sound.
  """
  config = experiment.config
  # The nodes, of which the evaluator is counted in any case.
  num_processes = config.num_replay_shards + config.num_actors + config.num_cachers + 2
  run = experiment_lib.begin(experiment, 0 if elsewhere else num_processes)
  program = lp.Program(name)
  with program.group('replay'):
    replay = [
      program.add_node(_ReplayNode(run, shard))
      for shard in range(config.num_replay_shards)
    ]
  with program.group('learner'):
    learner = program.add_node(_ServingNode(_LearnerNode, run, replay))
  cachers = []
  if config.num_cachers:
    with program.group('cacher'):
      for _ in range(config.num_cachers):
        cachers.append(program.add_node(_ServingNode(_CacherNode, learner)))
  with program.group('actor'):
    for index in range(config.num_actors):
      cacher = cachers[index // config.actors_per_cacher] if cachers else None
      program.add_node(_PlayingNode(_ActorNode, run, index, replay, learner, cacher))
  if experiment.evaluator:
    with program.group('evaluator'):
      program.add_node(_PlayingNode(_EvaluatorNode, run, learner))
  return program


class _PlayingNode(lp.PyClassNode):
  """A node with environments.

  Attributes:
    starts_fresh: whether its process must not be a fork; `launching` looks at it.
  """

  def __init__(self, constructor: Callable[..., Any], run: Run, *args: Any):
    super().__init__(constructor, run, *args)
    factory = run.experiment.environment_factory
    self.starts_fresh = environments.starts_fresh(factory)


class _ServingNode(lp.CourierNode):
  """A node that serves its methods."""

  def run(self):
    network.check_port(lp_address.get_port_from_address(self.courier_address.resolve()))
    super().run()


class _ReplayNode(lp.ReverbNode):
  """What Launchpad starts as the replay, and whose handles are clients of it."""

  def __init__(self, run: Run, index: int):
    super().__init__(functools.partial(run.builder.make_tables, shard=index))
    self._run = run
    self._index = index

  def run(self):
    _run_to_the_end(self._serve)

  def _serve(self):
    port = lp_address.get_port_from_address(self.reverb_address.resolve())
    network.check_port(port)
    node = nodes.ReplayNode(self._run, self._index, port, stop=lp.stop_event())
    self._server = node.server  # `wiring` stops it where nodes are threads
    node.run()


class _LearnerNode(nodes.LearnerNode):
  """What Launchpad starts as the learner, and serves to the others."""

  def __init__(self, run: Run, replay_clients: Sequence[reverb.Client]):
    _limit_threads(machine.num_cores())
    super().__init__(
      _after_restarts(run),
      replay_clients,
      stop=lp.stop_event(),
      stop_program=lp_context.get_context().program_stopper,
    )

  def run(self):
    _run_to_the_end(super().run)


class _CacherNode(nodes.CacherNode):
  """What Launchpad starts as a cacher, and serves to actors."""

  def __init__(self, learner: Any):
    super().__init__(learner, stop=lp.stop_event())

  def run(self):
    _run_to_the_end(super().run)


class _ActorNode(nodes.ActorNode):
  """What Launchpad starts as an actor."""

  def __init__(
    self,
    run: Run,
    index: int,
    replay_clients: Sequence[reverb.Client],
    learner: Any,
    cacher: Any,
  ):
    _limit_threads(1)
    super().__init__(
      _after_restarts(run),
      index,
      replay_clients,
      learner,
      cacher=cacher,
      stop=lp.stop_event(),
    )

  def run(self):
    _run_to_the_end(super().run)


class _EvaluatorNode(nodes.EvaluatorNode):
  """What Launchpad starts as the evaluator."""

  def __init__(self, run: Run, learner: Any):
    _limit_threads(1)
    super().__init__(_after_restarts(run), learner, stop=lp.stop_event())

  def run(self):
    _run_to_the_end(super().run)


def _in_process() -> bool:
  """Whether this node has a process of its own."""
  return lp_context.get_context().launch_type not in _IN_THREADS


def _limit_threads(num_threads: int):
  """Sizes the node's TensorFlow pools, if it has a process of its own."""
  if _in_process():
    runtime.limit_threads(num_threads)


def _after_restarts(run: Run) -> Run:
  """Returns the run as this start of the node sees it."""
  return run.after_restarts(int(os.environ.get(workers.RESTARTS, 0)))


def _run_to_the_end(run: Callable[[], None]):
  """Runs a node. A process of its own ends with it, and so do its children."""
  try:
    run()
  except BaseException as error:
    if not _in_process():
      raise
    entry.exit_with(error)
  if _in_process():
    runtime.exit_now(0)  # threads may still wait in C++
