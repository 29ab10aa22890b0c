"""Runs a Launchpad program on this machine and says how it ended.

Launchpad turns the program into commands, or into functions for threads. Here they are
started, watched and stopped, and what they print is shown.
"""

import contextlib
import functools
import os
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import launchpad as lp
from absl import flags
from launchpad.launch.local_multi_processing import commands as commands_lib
from launchpad.nodes.python.local_multi_processing import PythonProcess

from r2d2_acme.running import (
  MODULES,
  NETWORKS,
  PRIVATE,
  clusters,
  status_recorder,
  supervision,
  threads,
  wiring,
  workers,
)
from r2d2_acme.running import outputs as outputs_lib
from r2d2_acme.running import progress as progress_lib
from r2d2_acme.system import (
  cuda,
  forking,
  heartbeats,
  machine,
  processes,
  runtime,
  stopping,
)
from r2d2_acme.system.network import describe_exposure
from r2d2_acme.tracking import process as tracking
from r2d2_acme.workdir import paths

LAUNCH_TYPES = ('local_mp', 'local_mt')
RAY = 'ray'

_NOT_SUPERVISED = (
  'local_mt is for debugging: a node that fails ends the program, and its ports are '
  'open to the network.'
)
_THREADS_TIMEOUT = 10.0  # seconds for threads of nodes that have ended

_Wired = tuple[Sequence[workers.Worker], Mapping[str, outputs_lib.Output]]


def launch(
  program: lp.Program,
  launch_type: str,
  output_dir: str,
  *,
  workdir: str | None = None,
  limits: Mapping[str, int | None] | None = None,
  progress: bool = True,
  policy: supervision.Policy = supervision.DEFAULT,
  network: str = PRIVATE,
  cluster: clusters.Cluster | None = None,
  track: str | None = None,
) -> int:
  """Runs `program` until it stops; returns the exit code for this process.

  The first Ctrl-C, SIGTERM or SIGHUP asks the nodes to stop, and the learner to save;
  the second quits at once. In `local_mt` threads may be left in C++ calls that do not
  end; `runtime.exit_now` ends a process in spite of them.

  Args:
    program: what to run.
    launch_type: one of `LAUNCH_TYPES`, or 'ray'.
    output_dir: for a file with each node's output; `local_mt` has none.
    workdir: where the nodes keep their logs. There `status.json` is kept up to date.
      Without a workdir there is no status.
    limits: at which counts a node stops the program, for the status: for example
      `{'actor_steps': 1_000_000}`; None stands for no limit.
    progress: on a terminal, and with a workdir, shows one block that sums up how the
      program is doing, instead of the rows of the learner and the actors.
    policy: when a node that has died is started again; in `local_mt` none is.
    network: 'private' keeps the nodes of `local_mp` in a network of their own, where
      that is permitted, so that nobody else can reach them, nor they others. 'host' is
      for environments that need the network.
    cluster: where to run, if and only if `launch_type` is 'ray'.
    track: the tracker that gets what the nodes write in the workdir; None for none.

  Returns:
    0 after a step limit or a request to stop; 1 if a node failed for good, or did not
    stop in time, or the learner could not save at the end, with the cause and the
    command that resumes printed last; 130 if asked to quit at once.

  Raises:
    RuntimeError: this is not the main thread, to which signals come.
    NoCluster: the program cannot run on this cluster.
    ValueError: there is no such launch type, or no such network.
    WorkdirInUse: another program runs in the workdir.
  """
  _check_can_launch(launch_type, network, cluster)
  if not flags.FLAGS.is_parsed():  # as Launchpad does: scripts and notebooks do not
    flags.FLAGS(sys.argv, known_only=True)
  if launch_type == 'local_mt':
    policy = supervision.UNSUPERVISED
    stopping.say(_NOT_SUPERVISED)
  with (
    stopping.Requests() as requests,
    contextlib.ExitStack() as stack,
  ):
    workdir = None if workdir is None else paths.resolve(workdir)
    output_dir = paths.resolve(output_dir)
    if cluster is not None:
      wired = _on_cluster(program, output_dir, requests, cluster, workdir)
    elif launch_type == 'local_mp':
      wired = _processes(program, output_dir, requests, network)
    else:
      wired = _threads(program, requests)
    nodes, outputs = stack.enter_context(wired)
    recorder = None
    if workdir is not None:
      recorder = status_recorder.Recorder(
        workdir, output_dir, launch_type, limits or {}, nodes
      )
    with (
      _showing(outputs, output_dir, recorder if progress else None),
      tracking.tracked(track, workdir, lambda: requests.quit),
    ):
      code, message = _run(nodes, requests, recorder, policy)
  if message:
    stopping.Forgiving(sys.stdout).flush()  # before the message, even in a file
    if workdir is not None:
      message += f'\nresume with: {shlex.join(_resuming(sys.orig_argv))}'
    stopping.say(message)
  return code


def _resuming(command: Sequence[str]) -> list[str]:
  """Returns a command without the checkpoint to go back to, which has been done."""
  kept: list[str] = []
  rest = iter(command)
  for argument in rest:
    name, equals, _ = argument.partition('=')
    if name not in ('--checkpoint', '-checkpoint'):
      kept.append(argument)
    elif not equals:
      next(rest, None)  # its value
  return kept


def _check_can_launch(launch_type: str, network: str, cluster: clusters.Cluster | None):
  if network not in NETWORKS:
    raise ValueError(
      f'{network!r} is no network of this module: give one of {", ".join(NETWORKS)}'
    )
  if (launch_type == RAY) != (cluster is not None):
    raise ValueError("give a cluster if, and only if, the launch type is 'ray'")
  if launch_type not in (*LAUNCH_TYPES, RAY):
    raise ValueError(
      f'{launch_type!r} is no launch type of this module: give one of '
      f'{", ".join(LAUNCH_TYPES)}'
    )
  if threading.current_thread() is not threading.main_thread():
    raise RuntimeError(
      'launch() takes signals, which reach the main thread only: call it from there, '
      'or run launch/atari_distributed.py in a process of its own'
    )


def _run(
  nodes: Sequence[workers.Worker],
  requests: stopping.Requests,
  recorder: status_recorder.Recorder | None,
  policy: supervision.Policy,
) -> tuple[int, str]:
  """Runs the nodes to their end and returns what `Supervisor.run` does."""
  if recorder is None:
    return supervision.Supervisor(nodes, requests, policy).run()
  supervisor = supervision.Supervisor(
    nodes,
    requests,
    policy,
    report=recorder.update,
    on_restart=recorder.record_restart,
  )
  code, message = supervisor.run()
  recorder.close(code, message)
  return code, message


@contextlib.contextmanager
def _showing(
  outputs: Mapping[str, outputs_lib.Output],
  output_dir: str,
  recorder: status_recorder.Recorder | None,
) -> Iterator[None]:
  """Shows what nodes print; on a terminal with the block, if there is a recorder."""
  is_terminal = os.isatty(1) and os.environ.get('TERM') not in (None, '', 'dumb')
  if recorder is None or not is_terminal:
    with outputs_lib.following(outputs):
      yield
    return

  def draw():
    # On a full disk the block alone can say so: what is printed goes through files.
    return progress_lib.draw(
      recorder.workdir, recorder.status, is_running=True, error=recorder.write_error
    )

  with (
    outputs_lib.captured(os.path.join(output_dir, 'launcher')) as (ours, terminal),
    progress_lib.Block(terminal, draw) as block,
    outputs_lib.following({**outputs, '': ours}, block.show),
  ):
    yield


@contextlib.contextmanager
def _threads(program: lp.Program, requests: stopping.Requests) -> Iterator[_Wired]:
  """Yields the nodes as threads of this process, which print where it does."""
  processes.guard_children()
  runtime.limit_threads(machine.num_cores())  # all nodes share this process's pools
  before = set(threading.enumerate())
  functions = wiring.make_executables(
    program, lp.LaunchType.LOCAL_MULTI_THREADING, requests.ask, configs={}
  )
  with requests.kept():
    threaded = [
      threads.ThreadWorker(
        f'{group}/{index}', function, stop_order=wiring.stop_order(nodes[index])
      )
      for group, nodes in program.groups.items()
      for index, function in enumerate(functions[group])
    ]
  yield threaded, {}
  if not requests.quit:
    _release_threads(program, set(threading.enumerate()) - before)


def _release_threads(program: lp.Program, remaining: set[threading.Thread]):
  """Ends what still waits in C++ for a replay that nobody fills or reads any more."""
  wiring.stop_replays(program)
  deadline = time.monotonic() + _THREADS_TIMEOUT
  for thread in remaining:
    thread.join(max(0.0, deadline - time.monotonic()))


def _on_cluster(
  program: lp.Program,
  output_dir: str,
  requests: stopping.Requests,
  cluster: clusters.Cluster,
  workdir: str | None,
) -> contextlib.AbstractContextManager[_Wired]:
  """Returns the context of nodes on a Ray cluster.

  Raises:
    NoCluster: Ray is not installed here.
  """
  try:
    from r2d2_acme.running import ray_cluster  # few need it
  except ModuleNotFoundError as error:
    raise clusters.NoCluster(
      f'{error.name} is not installed; cure: {sys.executable} -m pip install '
      f'{clusters.PACKAGES}'
    ) from error
  return ray_cluster.hosts(program, output_dir, requests, cluster, workdir)


@contextlib.contextmanager
def _processes(
  program: lp.Program, output_dir: str, requests: stopping.Requests, network: str
) -> Iterator[_Wired]:
  """Yields the nodes as processes, and the files that they print to.

  At the end, what is left of them is killed.
  """
  del requests
  configs = {
    group: PythonProcess(env={} if group == 'learner' else cuda.HIDDEN)
    for group in program.groups
  }
  stop = functools.partial(_ask_launcher, os.getpid())
  launch_type = lp.LaunchType.LOCAL_MULTI_PROCESSING
  commands = wiring.make_executables(program, launch_type, stop, configs)
  pairs = [
    (node, command)
    for group, nodes in program.groups.items()
    for node, command in zip(nodes, commands[group], strict=True)
  ]
  has_gpu = machine.has_gpu()
  try:
    outputs = {
      command.title: outputs_lib.Output(os.path.join(output_dir, command.title))
      for _, command in pairs
    }
    with (
      processes.Family(workers.STOP_LIMIT) as family,
      forking.take(MODULES, private=network == PRIVATE) as server,
      tempfile.TemporaryDirectory() as beats,
    ):
      if exposed := server.wait():
        stopping.say(describe_exposure(exposed))

      def make_worker(node: Any, command: commands_lib.Command) -> workers.Worker:
        name, is_learner = command.title, command.title.startswith('learner/')

        def start(env: Mapping[str, str]) -> processes.Child:
          return server.fork(
            name,
            family,
            workers.ENTRY,
            [_pickle(command), command.command_as_list[-1]],
            env={**command.env_overrides, **env},
            output=outputs[name].path,
            # CUDA does not outlive a fork, and some environments do not either.
            fresh=(is_learner and has_gpu) or getattr(node, 'starts_fresh', False),
          )

        return workers.ProcessWorker(
          name,
          start,
          family,
          outputs[name],
          heartbeats.Watched(os.path.join(beats, name)),
          stop_order=wiring.stop_order(node),
        )

      yield [make_worker(*pair) for pair in pairs], outputs
  finally:
    for _, command in pairs:  # what Launchpad would remove when Python ends by itself
      shutil.rmtree(os.path.dirname(_pickle(command)), ignore_errors=True)


def _pickle(command: commands_lib.Command) -> str:
  """Returns the path of the file that has a node's function."""
  arguments = command.command_as_list
  return arguments[arguments.index('--data_file') + 1]


def _ask_launcher(pid: int):
  """Is `lp.stop` in a node, which may have outlived its launcher."""
  if os.getppid() == pid:
    os.kill(pid, signal.SIGUSR1)
