"""The program that chaos befalls: started, watched through its files, and killed."""

import contextlib
import csv
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import psutil

from faults import world
from faults.hosts import Host
from r2d2_acme.workdir import status

LAUNCH = pathlib.Path(__file__).parents[1]
CHECKPOINT_PERIOD = 5.0  # seconds
PROGRESS_TIMEOUT = 15.0  # seconds
_SAMPLE_PERIOD = 0.25  # seconds
_RECOVERED = re.compile(r'event=recovered node=(\S+) seconds=([\d.]+)')
RECOVERY, RECOVERY_ON_RAY = 60.0, 120.0  # seconds until it must make progress again
_MARK = 'R2D2_CHAOS'  # an environment variable of all its processes
_NODE_MARK = b'R2D2_PROCESS='  # what the environments of nodes contain
# The launcher's host does not fail, but those of the others do.
_RESOURCES = """
replay: {custom: {moves: 1}, placement: spread}
learner: {custom: {moves: 1}, placement: spread}
actor: {custom: {moves: 1}, placement: spread}
"""

# Small windows and a small network, so that each node does much in little time.
_CONFIG = {
  'burn_in_length': 2,
  'trace_length': 4,
  'sequence_period': 4,
  'n_step': 2,
  'batch_size': 4,
  'conv_channels': '(2,2,2)',
  'torso_size': 8,
  'core_size': 8,
  'head_size': 8,
  'envs_per_actor': 2,
  'min_replay_size': 20,
  'max_replay_size': 2_000,
  'samples_per_insert': 1,
  'samples_per_insert_tolerance': 1,
  'evaluation_period': 0.5,
  'max_evaluation_steps': 200,
  'checkpoint_period': CHECKPOINT_PERIOD,
  'replay_checkpoint_period': CHECKPOINT_PERIOD,
  'progress_timeout': PROGRESS_TIMEOUT,
  # Chaos is not to end because of these budgets.
  'max_restarts': 10_000,
  'max_environment_failures': 10_000,
}


class Sample(NamedTuple):
  """How the program was doing.

  Attributes:
    time: of the monotonic clock, in seconds.
    status: as `status.json` had it.
    bytes: of resident memory, by node.
  """

  time: float
  status: status.Status
  bytes: Mapping[str, int]


class Program:
  """A run of `atari_distributed.py`, over all of its starts.

  Attributes:
    workdir: of the run.
    samples: since the first start.
    lines: what all starts printed.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    workdir: pathlib.Path,
    network: str,
    hosts: Sequence[Host] = (),
  ):
    """Does not start it yet.

    Args:
      folder: for files beside the workdir.
      workdir: of the run.
      network: as the flag of `atari_distributed.py`.
      hosts: where it runs on Ray; the first has the launcher.
    """
    self.workdir = workdir
    self.hosts = hosts
    self.recovery = RECOVERY_ON_RAY if hosts else RECOVERY
    self.samples: list[Sample] = []
    self._faults = folder / 'faults'
    self._faults.mkdir()
    self._output = folder / 'output'
    where = ['--lp_launch_type=local_mp', f'--network={network}']
    if hosts:
      needs = folder / 'resources.yaml'
      needs.write_text(_RESOURCES)
      where = ['--ray_address=auto', f'--resources={needs}']
    self._command = [
      *(sys.executable, str(LAUNCH / 'atari_distributed.py')),
      *(*where, '--environment=faults.world:make_environment'),
      *(f'--workdir={workdir}', '--noprogress'),
      *(f'--config.{name}={value}' for name, value in _CONFIG.items()),
    ]
    if hosts:
      self._command = hosts[0].command(self._command)
    os.environ[world.FOLDER] = str(self._faults)  # for the checks, too
    self._env = {
      **os.environ,
      # Memory that is free again goes back, so that nodes need some all the time.
      'MALLOC_MMAP_THRESHOLD_': str(1 << 14),
      'MALLOC_TRIM_THRESHOLD_': '0',
      'PYTHONPATH': os.pathsep.join([str(LAUNCH), *filter(None, sys.path)]),
      _MARK: str(folder),
    }
    self._popen: subprocess.Popen
    self._is_closed = threading.Event()

  def __enter__(self) -> 'Program':
    for host in self.hosts:
      self.start_ray(host)
    self._thread = threading.Thread(target=self._sample, daemon=True)
    self._thread.start()
    return self

  def __exit__(self, *unused_exception):
    self._is_closed.set()
    self._thread.join()
    for process in self.processes():
      process.kill()

  def start_ray(self, host: Host):
    """Starts Ray on a host, and waits until it runs."""
    head = None if host is self.hosts[0] else self.hosts[0].ip
    env = {k: v for k, v in self._env.items() if k != _MARK}
    host.start_ray(env, head, num_cpus=4, resources={'moves': 0 if head is None else 4})
    host.wait_for_ray()

  @property
  def lines(self) -> list[str]:
    return self._output.read_text(errors='replace').splitlines()

  def start(self):
    """Starts it, which resumes where it was."""
    self._started_at = time.time()
    with self._output.open('a') as file:
      print(f'$ {shlex.join(self._command)}', file=file, flush=True)
      self._popen = subprocess.Popen(
        self._command,
        env=self._env,
        cwd=self._faults.parent,
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=file,
        start_new_session=True,
      )

  def is_new(self) -> bool:
    """Returns whether its last start runs: it was not refused."""
    try:
      return self.status.started_at > self._started_at
    except status.NoStatus:
      return False

  def poll(self) -> int | None:
    """Returns its exit code, or None while it runs."""
    return self._popen.poll()

  def stop(self) -> int:
    """Stops it as a user does; returns its exit code."""
    self._popen.send_signal(signal.SIGTERM)
    return self._popen.wait(30)

  def kill_launcher(self):
    self._popen.kill()
    self._popen.wait()

  def kill_all(self):
    """Kills all its processes at once."""
    for process in self.processes():
      process.kill()
    self._popen.wait()

  def signal(self, nodes: Sequence[str], number: signal.Signals):
    """Sends a signal to nodes, all at once."""
    found = self.status.nodes
    for pid in [found[node].pid for node in nodes]:
      if pid is not None:
        with contextlib.suppress(ProcessLookupError):  # the status is a second old
          os.kill(pid, number)

  def request(self, fault: str):
    """Lets an environment fail, see `world`."""
    (self._faults / fault).touch()

  def is_requested(self, fault: str) -> bool:
    """Returns whether no environment has failed so yet."""
    return (self._faults / fault).exists()

  @property
  def status(self) -> status.Status:
    """How it is doing, as it says itself.

    Raises:
      NoStatus: it does not say.
    """
    return status.read(str(self.workdir))

  def processes(self) -> list[psutil.Process]:
    """All its processes, of whatever parent."""
    found = []
    mark = f'{_MARK}={self._env[_MARK]}'.encode()
    # On Ray, nodes do not inherit the launcher's environment.
    on_hosts = {process.pid for host in self.hosts for process in host.processes()}
    for pid in psutil.pids():
      try:
        content = pathlib.Path(f'/proc/{pid}/environ').read_bytes()
        is_node = pid in on_hosts and _NODE_MARK in content
        if is_node or mark in content.split(b'\0'):
          found.append(psutil.Process(pid))
      except (OSError, psutil.Error):
        continue
    return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]

  def rows(self, label: str) -> list[dict[str, float]]:
    """Returns the rows of a node's log as a user reads them; none before the first."""
    path = self.workdir / 'logs' / label / 'logs.csv'
    if not path.exists():
      return []
    with path.open() as file:
      return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]

  def recovered(self) -> dict[str, list[float]]:
    """Returns, by node, the seconds from each death until it made progress again."""
    found: dict[str, list[float]] = {}
    for node, seconds in _RECOVERED.findall(self._output.read_text(errors='replace')):
      found.setdefault(node, []).append(float(seconds))
    return found

  def _sample(self):
    while not self._is_closed.wait(_SAMPLE_PERIOD):
      try:
        found = self.status
      except status.NoStatus:
        continue
      sizes = {}
      for name, node in found.nodes.items():
        try:
          sizes[name] = psutil.Process(node.pid).memory_info().rss
        except (psutil.Error, ValueError):
          continue
      self.samples.append(Sample(time.monotonic(), found, sizes))
