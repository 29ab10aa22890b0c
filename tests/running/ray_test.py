"""A program on a Ray cluster of three hosts, and what befalls it there.

The hosts are network namespaces of this machine, with a raylet each. All tests share
one run of Pong, each goes on where the one before has left it.
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from r2d2_acme.workdir import status as status_lib
from tests import helpers, starts

hosts_lib = pytest.importorskip('faults.hosts')
pytest.importorskip('ray')
pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group('ray')]

_TIMEOUT = 400.0  # seconds, on a busy machine
_ORPHAN_TIMEOUT = 30.0  # seconds; promised to the user
_NEWS_TIMEOUT = 30.0  # seconds until the launcher knows of a death
_LOST = 'was lost with its host'  # the cause of a restart
_SHORT_CUT = 10.0  # seconds
_CUT = 25.0  # seconds; servers keep a connection for 20 that does not answer
_FLAGS = (
  '--game=pong',
  *starts.SMALL,
  '--num_actors=2',
  '--config.num_replay_shards=2',
  '--config.actors_per_cacher=1',
  '--config.max_replay_size=2000',
  '--config.max_evaluation_steps=50',
  '--config.checkpoint_period=3',
  '--config.replay_checkpoint_period=3',
  '--config.progress_timeout=40',
)
_RESOURCES = """
replay: {cpus: 0.5, custom: {remote: 1}, placement: spread}
learner: {custom: {remote: 1}, placement: spread}
cacher: {cpus: 0.25, placement: spread}
actor: {cpus: 0.5}
evaluator: {custom: {near: 1}}
"""


class _Cluster:
  """Three hosts, and a program on them.

  Attributes:
    hosts: the first has the launcher; the two shards of the replay, and the learner,
      are on the others.
    code: how the last start of the program has ended.
  """

  def __init__(self, hosts, folder: pathlib.Path):
    self.hosts = hosts
    self._workdir = folder / 'run'
    self._output = folder / 'output'
    (folder / 'resources.yaml').write_text(_RESOURCES)
    self._flags = (
      *_FLAGS,
      f'--workdir={self._workdir}',
      f'--resources={folder / "resources.yaml"}',
      '--noprogress',
    )
    self._env = {
      **starts.ENVIRON,
      'PYTHONPATH': str(helpers.ROOT),
      # Five, the default, may be too few for a cut of 25 s.
      'RAY_health_check_failure_threshold': '10',
    }
    self.start_ray(hosts[0])
    hosts[0].wait_for_ray()  # the others join it
    for host in hosts[1:]:
      self.start_ray(host)
    for host in hosts[1:]:
      host.wait_for_ray()
    self._popen: subprocess.Popen

  def start_ray(self, host):
    is_head = host is self.hosts[0]
    host.start_ray(
      self._env,
      None if is_head else self.hosts[0].ip,
      num_cpus=4,  # one host can take over what another has had
      resources={'near': 1} if is_head else {'remote': 3},
    )

  def start(self, address: str, *flags: str):
    script = str(helpers.LAUNCH / 'atari_distributed.py')
    command = [sys.executable, script, f'--ray_address={address}', *self._flags]
    with self._output.open('a') as output:
      self._popen = subprocess.Popen(
        self.hosts[0].command([*command, *flags]),
        env=self._env,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
      )

  @property
  def status(self) -> status_lib.Status:
    return status_lib.read(str(self._workdir))

  @property
  def output(self) -> str:
    return self._output.read_text()

  @property
  def pid(self) -> int:
    return self._popen.pid

  def node(self, name: str) -> status_lib.Node:
    return self.status.nodes[name]

  def host_of(self, name: str):
    (host,) = [x for x in self.hosts if x.ip == self.node(name).host]
    return host

  def poll(self) -> int | None:
    return self._popen.poll()

  def wait(self) -> int:
    return self._popen.wait(_TIMEOUT)

  def wait_until(self, condition: Callable[[], bool]):
    """Waits while the program runs."""

    def holds() -> bool:
      assert self.poll() is None, self.output
      with contextlib.suppress(status_lib.NoStatus):
        return condition()
      return False

    try:
      helpers.wait_until(holds, _TIMEOUT)
    except AssertionError as error:
      raise AssertionError(f'{self.output}\n{self.status}') from error

  @contextlib.contextmanager
  def progress(self) -> Iterator[None]:
    """Waits after `with` until all nodes run, and acting and learning have gone on."""
    yield
    since = time.time()
    self.wait_until(lambda: self.status.written_at > since + 1)
    before = self.status.counts
    self.wait_until(
      lambda: (
        all(node.state == 'running' for node in self.status.nodes.values())
        and all(
          self.status.counts.get(count, 0) > before.get(count, 0)
          for count in ('actor_steps', 'learner_steps')
        )
      )
    )

  def nodes_left(self) -> list[psutil.Process]:
    """Returns all processes but Ray's own."""
    return [
      process
      for host in self.hosts
      for process in host.processes()
      if str(self._workdir) in helpers.command_line(process) or _is_node(process)
    ]


def _is_node(process: psutil.Process) -> bool:
  with contextlib.suppress(psutil.Error):
    environment = process.environ()
    return 'R2D2_HEARTBEAT' in environment or 'R2D2_PROCESS' in environment
  return False


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
  folder = tmp_path_factory.mktemp('cluster')
  with contextlib.ExitStack() as stack:
    try:
      hosts = stack.enter_context(hosts_lib.made(folder))
    except hosts_lib.NotPermitted as error:
      pytest.skip(str(error))
    yield _Cluster(hosts, folder)


def test_nodes_run_on_several_hosts_and_print_into_the_workdir(cluster):
  with cluster.progress():
    cluster.start('auto')
  hosts = {name: node.host for name, node in cluster.status.nodes.items()}
  assert len(set(hosts.values())) == 3, hosts
  assert hosts['evaluator/0'] == cluster.hosts[0].ip
  assert hosts['replay/0'] != hosts['replay/1']
  assert {'actor/1', 'cacher/1'} <= set(hosts)
  assert cluster.status.launch_type == 'ray'
  assert '[Learner]' in cluster.output
  assert '[Learner]' in (cluster._workdir / 'output' / 'learner' / '0').read_text()


def test_killed_node_is_started_again_in_place(cluster):
  before = cluster.node('actor/0')
  with cluster.progress():
    os.kill(before.pid, signal.SIGKILL)
    cluster.wait_until(lambda: cluster.node('actor/0').restarts == 1)
  assert cluster.node('actor/0').host == before.host
  assert cluster.node('actor/0').pid != before.pid


def test_lost_ray_worker_is_replaced(cluster):
  before = cluster.node('evaluator/0')
  worker = psutil.Process(before.pid).parent()
  assert 'ray::' in helpers.command_line(worker)
  with cluster.progress():
    worker.kill()
    cluster.wait_until(lambda: cluster.node('evaluator/0').restarts == 1)
  helpers.wait_until(lambda: not helpers.is_alive(before.pid), _ORPHAN_TIMEOUT)


def test_network_that_is_cut_for_a_short_while_costs_nothing(cluster):
  before = {name: node.restarts for name, node in cluster.status.nodes.items()}
  host = cluster.host_of('replay/0')
  with cluster.progress():
    host.cut()
    time.sleep(_SHORT_CUT)
    host.connect()
  after = {name: node.restarts for name, node in cluster.status.nodes.items()}
  assert after == before, cluster.output


def test_network_that_is_cut_for_a_while_costs_no_host(cluster):
  """It is cut for longer than servers keep a connection, which clients do not notice.

  They ask the servers while they wait, and so connect again.
  """
  host, before = cluster.host_of('replay/0'), cluster.node('replay/0').restarts
  num_lost = cluster.output.count(_LOST)
  with cluster.progress():
    host.cut()
    time.sleep(_CUT)
    host.connect()
  assert cluster.node('replay/0').restarts == before, cluster.output
  assert cluster.output.count(_LOST) == num_lost
  # The launcher hears of the nodes there again.
  start = time.monotonic()
  os.kill(cluster.node('replay/0').pid, signal.SIGKILL)
  cluster.wait_until(lambda: cluster.node('replay/0').restarts > before)
  assert time.monotonic() < start + _NEWS_TIMEOUT, cluster.output
  with cluster.progress():
    pass


def test_lost_host_of_the_learner_moves_it_and_others_learn_its_address(cluster):
  host = cluster.host_of('learner/0')
  steps = cluster.status.counts['learner_steps']
  nodes = cluster.status.nodes
  lost = [name for name, node in nodes.items() if node.host == host.ip]
  (other,) = {'replay/0', 'replay/1'} - set(lost)
  with cluster.progress():
    host.raylet().kill()
    cluster.wait_until(
      lambda: all(cluster.node(name).host not in ('', host.ip) for name in lost)
    )
  assert f'node=learner/0 cause="{_LOST} {host.ip}' in cluster.output
  for name in {'evaluator/0', 'cacher/0', 'cacher/1'} - set(lost):
    cause = f'node={name} cause="must learn that learner/0 has moved to'
    assert cause in cluster.output
  for name in {'actor/0', 'actor/1'} - set(lost):  # of the replay, or of the learner
    assert f'node={name} cause="must learn that ' in cluster.output
  # The other shard does not know the learner.
  assert cluster.node(other).restarts == nodes[other].restarts, cluster.output
  assert cluster.status.counts['learner_steps'] > 0.5 * steps


def test_killed_launcher_leaves_nothing_and_is_resumed(cluster):
  steps = cluster.status.counts['learner_steps']
  os.kill(cluster.pid, signal.SIGKILL)
  cluster.wait()
  start = time.monotonic()
  while left := cluster.nodes_left():
    assert time.monotonic() < start + _ORPHAN_TIMEOUT, left
    time.sleep(0.1)
  cluster.start(f'{cluster.hosts[0].ip}:6379', f'--max_learner_steps={steps + 30:.0f}')
  assert cluster.wait() == 0, cluster.output
  assert cluster.status.exit_code == 0
  assert cluster.status.counts['learner_steps'] >= steps + 30
  helpers.wait_until(lambda: not cluster.nodes_left(), 20)
