"""Hosts with Ray on this machine: network namespaces that a bridge connects.

Each has an address, a name and a folder for Ray's files of its own; the rest, such as
the workdir, they share. They need root, and a kernel that permits namespaces.
"""

import contextlib
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

import psutil

_PORT = 6379  # of Ray
_RAY_FOLDER = '/tmp/ray'
_OBJECT_STORE = 80_000_000  # bytes; Ray wants 75 MB
_PATIENCE = 120.0  # seconds
_POLL_PERIOD = 0.1  # seconds


class NotPermitted(RuntimeError):
  """Namespaces cannot be made here; the message is the reason."""


class Host:
  """One of the hosts.

  Attributes:
    name: such as 'host1'.
    ip: its address.
  """

  def __init__(self, network: str, number: int, folder: pathlib.Path):
    """Makes the host, without Ray.

    Args:
      network: the namespace with the bridge, whose name the host's begins with.
      number: of the host, from 1.
      folder: for Ray's files.
    """
    self.name = f'host{number}'
    self.ip = f'10.77.0.{number}'
    self._network = network
    self._namespace = f'{network}-{number}'
    self._port = f'port{number}'
    self._folder = folder
    folder.mkdir()
    os.makedirs(_RAY_FOLDER, exist_ok=True)
    _ip(f'netns add {self._namespace}')
    _ip(
      f'link add eth0 netns {self._namespace} type veth '
      f'peer name {self._port} netns {network}'
    )
    _ip(f'-n {network} link set {self._port} up')
    self.connect()
    _ip(f'-n {self._namespace} addr add {self.ip}/24 dev eth0')
    for device in ('lo', 'eth0'):
      _ip(f'-n {self._namespace} link set {device} up')
    _ip(f'-n {self._namespace} route add default via 10.77.0.254')

  def connect(self):
    """Joins the network, after `cut` too."""
    _ip(f'-n {self._network} link set {self._port} master bridge')

  def cut(self):
    """Leaves the network: what is sent gets lost."""
    _ip(f'-n {self._network} link set {self._port} nomaster')

  def command(self, arguments: Sequence[str]) -> list[str]:
    """Returns the command that runs another one on this host."""
    enter = f'mount --bind {shlex.quote(str(self._folder))} {_RAY_FOLDER} && '
    enter += f'hostname {self.name} && exec "$@"'
    return [
      *('nsenter', f'--net=/run/netns/{self._namespace}'),
      *('unshare', '--mount', '--uts', 'sh', '-c', enter, 'sh', *arguments),
    ]

  def start_ray(
    self,
    env: Mapping[str, str],
    head: str | None = None,
    *,
    num_cpus: int,
    resources: Mapping[str, float] | None = None,
  ):
    """Starts Ray, and does not wait until it runs.

    Args:
      env: environment variables.
      head: address of the host that has started the cluster; None starts one.
      num_cpus: that Ray may give away.
      resources: others that it may give away.
    """
    joins = [f'--address={head}:{_PORT}'] if head else ['--head', f'--port={_PORT}']
    options = [f'--node-ip-address={self.ip}', f'--num-cpus={num_cpus}']
    options += [f'--object-store-memory={_OBJECT_STORE}', '--disable-usage-stats']
    options.append(f'--resources={json.dumps(resources or {})}')
    if not head:
      options.append('--include-dashboard=false')
    ray = [sys.executable, '-m', 'ray.scripts.scripts', 'start', *joins, *options]
    with open(self._folder / 'start', 'ab') as output:
      subprocess.Popen(
        self.command(ray),
        env={**env, 'RAY_worker_niceness': '0'},  # else they yield to all others
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
      )

  def wait_for_ray(self):
    """Waits until the raylet runs."""
    deadline = time.monotonic() + _PATIENCE
    while self.raylet() is None:
      assert time.monotonic() < deadline, (self._folder / 'start').read_text()
      time.sleep(_POLL_PERIOD)

  def raylet(self) -> psutil.Process | None:
    """Returns the process that is Ray on this host."""
    for process in self.processes():
      with contextlib.suppress(psutil.Error):  # it has ended
        if process.name() == 'raylet':
          return process
    return None

  def processes(self) -> list[psutil.Process]:
    """Returns what runs on this host."""
    found = subprocess.run(
      ['ip', 'netns', 'pids', self._namespace], capture_output=True, text=True
    )
    processes = []
    for pid in found.stdout.split():
      with contextlib.suppress(psutil.Error):
        process = psutil.Process(int(pid))
        if process.status() != psutil.STATUS_ZOMBIE:
          processes.append(process)
    return processes

  def kill_all(self):
    """Kills what runs on this host."""
    while processes := self.processes():
      for process in processes:
        with contextlib.suppress(psutil.Error):
          process.send_signal(signal.SIGKILL)
      time.sleep(0.01)

  def remove(self):
    self.kill_all()
    _ip(f'netns del {self._namespace}')


@contextlib.contextmanager
def made(folder: pathlib.Path, number: int = 3) -> Iterator[list[Host]]:
  """Yields hosts without Ray, and removes them at the end, with all that runs there.

  Args:
    folder: for Ray's files.
    number: of the hosts.

  Raises:
    NotPermitted: no namespace can be made here.
  """
  network = f'r2d2-{os.getpid()}'
  hosts: list[Host] = []
  try:
    _ip(f'netns add {network}')
  except (OSError, subprocess.CalledProcessError) as error:
    raise NotPermitted(f'cannot make network namespaces: {error}') from error
  try:
    _ip(f'-n {network} link add bridge type bridge')
    _ip(f'-n {network} addr add 10.77.0.254/24 dev bridge')
    _ip(f'-n {network} link set bridge up')
    for i in range(1, number + 1):
      hosts.append(Host(network, i, folder / f'ray{i}'))
    yield hosts
  finally:
    for host in hosts:
      host.remove()
    _ip(f'netns del {network}')


def _ip(arguments: str):
  subprocess.run(['ip', *arguments.split()], check=True, stderr=subprocess.DEVNULL)
