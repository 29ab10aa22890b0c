"""Runs the nodes of a program on a Ray cluster, which may be one of this machine.

Ray places one named actor for each node, `<program>/<group>/<index>`, and in place of a
lost one `<program>/<group>/<index>#1`. The process that the user started stays the
launcher: if it ends, by whatever cause, so do the actors, and with them the nodes.
"""

import contextlib
import functools
import importlib.util
import itertools
import math
import os
import pathlib
import site
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import cloudpickle
import launchpad as lp
import ray
from launchpad.launch import serialization
from packaging import requirements

from r2d2_acme.running import clusters, hosting, ray_host, remote, wiring, workers
from r2d2_acme.running import outputs as outputs_lib
from r2d2_acme.system import doctor, machine, processes, stopping

_EXPOSED = (
  'warning: on a Ray cluster, replay and learner listen on every network interface of '
  "their hosts. Whoever reaches these ports, or Ray's own, can run code as you: keep "
  'the cluster in a private network (docs/operating.md, On a Ray cluster)'
)
_OBJECT_STORE = 100_000_000  # bytes of a local cluster; little is stored there
_CONNECT_TIMEOUT = 5.0  # seconds
_PLACEMENT_TIMEOUT = 600.0  # seconds
_FIRST_NOTICE = 30.0  # seconds without a host, after which it is said
_POLL_PERIOD = 0.1  # seconds
# Ray would kill the processes of nodes, and what is to end them in order, at once.
_WORKER_ENVIRONMENT = {'RAY_kill_child_processes_on_worker_exit': '0'}
# By default Ray reports to its makers, and lets its workers yield to all others.
_LOCAL_ENVIRONMENT = {
  'RAY_USAGE_STATS_ENABLED': '0',
  'RAY_worker_niceness': '0',
  # A machine cannot lose itself: one that is busy answers late.
  'RAY_health_check_failure_threshold': '100',
}
_ACTOR: dict[str, Any] = {'concurrency_groups': {'watching': 1}}
_STRATEGIES = {'spread': 'SPREAD', 'pack': 'DEFAULT'}


@contextlib.contextmanager
def hosts(
  program: lp.Program,
  output_dir: str,
  requests: stopping.Requests,
  cluster: clusters.Cluster,
  workdir: str | None,
) -> Iterator[tuple[Sequence[workers.Worker], Mapping[str, outputs_lib.Output]]]:
  """Yields the nodes, each with a host, and the files that get what they print.

  At the end, what is left of them is killed.

  Raises:
    NoCluster: the cluster cannot be reached, a host cannot run a node, or the file of
      resources cannot be used.
  """
  needs = clusters.read(cluster.resources, list(program.groups))
  num_cpus = sum(
    needs[group].cpus * len(nodes) for group, nodes in program.groups.items()
  )
  with _connected(cluster, math.ceil(num_cpus), requests):
    stopping.say(_EXPOSED)
    fleet = remote.Fleet(workdir, _versions(), requests.ask)
    try:
      outputs = _make_nodes(program, output_dir, needs, fleet)
      _place(fleet, requests)
      with _watched(fleet):
        yield fleet.nodes, outputs
    finally:
      fleet.close()


def _make_nodes(
  program: lp.Program,
  output_dir: str,
  needs: Mapping[str, clusters.Resources],
  fleet: remote.Fleet,
) -> dict[str, outputs_lib.Output]:
  """Adds the nodes of a program to a fleet; returns where they print to, by name."""
  # Launchpad's name for nodes that find addresses in their environment.
  wiring.connect(program, lp.LaunchType.VERTEX_AI, hosting.stop_program, {})
  for group, nodes in program.groups.items():
    for index, node in enumerate(nodes):
      node.bind_addresses(cluster=group, instance=index)
  servers = wiring.find_servers(program)
  serialization.enable_lru_cache_pickling_once()
  outputs = {}
  for group, nodes in program.groups.items():
    options = _options(needs[group], group)
    for index, node in enumerate(nodes):
      name = f'{group}/{index}'
      outputs[name] = outputs_lib.Output(os.path.join(output_dir, name))
      fleet.nodes.append(
        remote.RemoteWorker(
          name,
          fleet,
          functools.partial(
            _make_actor,
            f'{program.name}/{name}',
            options,
            name,
            cloudpickle.dumps([node.function]),
            fresh=bool(options['num_gpus']) or getattr(node, 'starts_fresh', False),
          ),
          outputs[name],
          servers=servers[name],
          stop_order=wiring.stop_order(node),
        )
      )
  return outputs


def _make_actor(
  title: str, options: Mapping[str, Any], *arguments: Any, number: int, **keywords: Any
) -> Any:
  """Asks Ray for a `RayHost` in place of `number` earlier ones.

  Each has a name of its own: where a lost actor's name is taken at once by another,
  Ray 2.48's control service (GCS) can crash, and the whole cluster with it.
  """
  name = f'{title}#{number}' if number else title
  actor = ray.remote(**_ACTOR)(ray_host.RayHost)
  return actor.options(name=name, **options).remote(*arguments, **keywords)


def _options(needs: clusters.Resources, group: str) -> dict[str, Any]:
  """Returns what Ray has to know in order to place a node."""
  gpus = needs.gpus
  if gpus is None:
    has_gpu = ray.cluster_resources().get('GPU', 0) >= 1
    gpus = float(group == 'learner' and has_gpu)
  return {
    'num_cpus': needs.cpus,
    'num_gpus': gpus,
    'memory': needs.memory_bytes or None,
    'resources': dict(needs.custom) or None,
    'scheduling_strategy': _STRATEGIES[needs.placement],
  }


def _place(fleet: remote.Fleet, requests: stopping.Requests):
  """Waits until all nodes have hosts, or the user stops it.

  Raises:
    NoCluster: a host cannot run a node, there is none for too long, or Ray refuses
      what a node needs, such as three TPUs.
  """
  for node in fleet.nodes:
    try:
      node.place()
    except ValueError as error:
      reason = ' '.join(str(error).split())
      raise clusters.NoCluster(
        f'Ray refuses what {node.name} needs: {reason}'
      ) from error
  waiting, deadline = _Waiting(fleet), time.monotonic() + _PLACEMENT_TIMEOUT
  while not requests.stop:
    lacking = waiting.look()
    for node in fleet.nodes:
      if node.problem:
        raise clusters.NoCluster(node.problem)
    if not lacking:
      return
    if time.monotonic() > deadline:
      raise clusters.NoCluster(f'{lacking}: add hosts, or ask for less in --resources')
    time.sleep(_POLL_PERIOD)


@contextlib.contextmanager
def _watched(fleet: remote.Fleet):
  """Says inside `with` which nodes wait for a host, after the loss of theirs."""
  closed = threading.Event()

  def watch():
    waiting = _Waiting(fleet)
    while not closed.wait(_POLL_PERIOD):
      waiting.look()

  threading.Thread(target=watch, daemon=True).start()
  try:
    yield
  finally:
    closed.set()


class _Waiting:
  """Says which nodes wait for a host, if they do so for long."""

  def __init__(self, fleet: remote.Fleet):
    self._fleet = fleet
    self._start, self._next_notice = time.monotonic(), _FIRST_NOTICE

  def look(self) -> str:
    """Returns which nodes have no host in one line; '' if all have one."""
    names = [node.name for node in self._fleet.nodes if not node.is_placed]
    if not names:
      self._start, self._next_notice = time.monotonic(), _FIRST_NOTICE
      return ''
    listed = ', '.join(names[:5]) + (', …' if len(names) > 5 else '')
    lacking = f'{len(names)} of {len(self._fleet.nodes)} nodes have no host: {listed}'
    if time.monotonic() > self._start + self._next_notice:
      self._next_notice *= 2
      free = ray.available_resources()
      stopping.say(
        f'{lacking}. {free.get("CPU", 0):g} CPUs and {free.get("GPU", 0):g} GPUs of '
        'the cluster are free; --resources can ask for less'
      )
    return lacking


@contextlib.contextmanager
def _connected(cluster: clusters.Cluster, num_cpus: int, requests: stopping.Requests):
  """Connects this process to the cluster inside `with`.

  Raises:
    NoCluster: it cannot be reached, or is of another version.
  """
  _check_reachable(cluster.address)
  options: dict[str, Any] = {}
  with contextlib.ExitStack() as stack:
    if cluster.address == clusters.LOCAL:
      for name, value in _LOCAL_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
      # Nodes share the cores of one machine, as they do without Ray.
      num_cpus = max(num_cpus, machine.num_cores())
      options = {
        'num_cpus': num_cpus,
        'include_dashboard': False,
        'object_store_memory': _OBJECT_STORE,
      }
      family = stack.enter_context(processes.Family(workers.STOP_LIMIT))
      stack.enter_context(family.marking('ray'))
    stack.callback(ray.shutdown)
    with requests.kept():
      try:
        ray.init(
          address=cluster.address,
          log_to_driver=False,
          logging_level='ERROR',
          runtime_env={
            'py_modules': [
              _package(),
              *itertools.chain(*map(_sources, cluster.modules)),
            ],
            'env_vars': _WORKER_ENVIRONMENT,
            'excludes': ['__pycache__'],
          },
          **options,
        )
      except ConnectionError as error:
        raise clusters.NoCluster(
          'this machine belongs to no Ray cluster: join one with `ray start`, or give '
          '--ray_address=local'
        ) from error
      except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = ' '.join(str(error).split())
        raise clusters.NoCluster(
          f'cannot use the Ray cluster at {cluster.address}: {reason}'
        ) from error
    yield


def _check_reachable(address: str):
  """Refuses an address where nobody listens; Ray would try for minutes.

  Raises:
    NoCluster: it is no address, or nobody listens there.
  """
  if address in (clusters.LOCAL, clusters.AUTO):
    return
  host, _, port = address.rpartition(':')
  if not host or not port.isdigit():
    raise clusters.NoCluster(
      f'--ray_address={address} is not auto, local or HOST:PORT, such as 10.0.0.1:6379'
    )
  try:
    socket.create_connection((host, int(port)), _CONNECT_TIMEOUT).close()
  except (OSError, OverflowError) as error:
    raise clusters.NoCluster(
      f'nobody answers at --ray_address={address} ({error}): start a cluster with '
      '`ray start --head`, or give --ray_address=local'
    ) from error


def _package() -> str:
  """Returns the folder of this package."""
  return str(pathlib.Path(__file__).parents[1])


def _sources(module: str) -> list[str]:
  """Returns the folder or the file of a module, or nothing if it is installed.

  A namespace package, that is one without an `__init__.py`, can have several folders.
  """
  spec = importlib.util.find_spec(module.partition('.')[0])
  if spec is None:
    return []
  file = [spec.origin] if spec.has_location and spec.origin else []
  paths = map(pathlib.Path, spec.submodule_search_locations or file)
  installed = [*site.getsitepackages(), os.path.dirname(os.__file__)]
  return [str(path) for path in paths if not any(map(path.is_relative_to, installed))]


def _versions() -> dict[str, str | None]:
  """Returns what hosts must have: the versions of packages that are needed here."""
  needed = map(requirements.Requirement, metadata.requires('r2d2-acme') or [])
  names = [x.name for x in needed if x.marker is None]
  versions = {name: doctor.installed_version(name) for name in names}
  return {'python': hosting.python_version(), **versions}
