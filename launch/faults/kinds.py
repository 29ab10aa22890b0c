"""The kinds of faults. Each is a function that makes one happen to a program.

A function returns what it did. Once it has returned, the program must make progress
again, or it must have ended as it promises.
"""

import contextlib
import os
import pathlib
import random
import signal
import time
from collections.abc import Callable

import psutil

from faults import world
from faults.hosts import Host
from faults.program import CHECKPOINT_PERIOD, PROGRESS_TIMEOUT, Program

NODES = ('replay/0', 'learner/0', 'actor/0', 'evaluator/0')
_SUSPENDED = 30.0  # seconds
_CUT = 20.0  # seconds
_WAIT = 20.0  # seconds for the moment at which a fault is to happen
_START_PERIOD = 1.0  # seconds between starts while an earlier one still ends
_START_TIMEOUT = 40.0  # seconds

Fault = Callable[[Program, random.Random], str]


def kill_node(program: Program, rng: random.Random) -> str:
  """Kills one node."""
  node = rng.choice(NODES)
  program.signal([node], signal.SIGKILL)
  return node


def crash_node(program: Program, rng: random.Random) -> str:
  """Lets one node crash as by an error in C++."""
  node = rng.choice(NODES)
  program.signal([node], signal.SIGSEGV)
  return node


def kill_several(program: Program, rng: random.Random) -> str:
  """Kills two to four nodes at once."""
  nodes = rng.sample(NODES, rng.randint(2, len(NODES)))
  program.signal(nodes, signal.SIGKILL)
  return ', '.join(nodes)


def kill_replay_in_checkpoint(program: Program, rng: random.Random) -> str:
  """Kills the replay while it writes a checkpoint."""
  del rng
  unfinished = program.workdir / 'checkpoints' / 'replay' / 'unfinished'
  was_seen = _wait_for(lambda: any(unfinished.glob('*')))
  program.signal(['replay/0'], signal.SIGKILL)
  return 'replay/0, half-way' if was_seen else 'replay/0'


def kill_learner_in_checkpoint(program: Program, rng: random.Random) -> str:
  """Kills the learner while it writes a checkpoint."""
  del rng
  unfinished = program.workdir / 'checkpoints' / 'learner' / 'unfinished'
  was_seen = _wait_for(unfinished.exists)
  program.signal(['learner/0'], signal.SIGKILL)
  return 'learner/0, half-way' if was_seen else 'learner/0'


def kill_launcher(program: Program, rng: random.Random) -> str:
  """Kills the launcher, and starts the program again."""
  del rng
  program.kill_launcher()
  return f'started {_start_again(program)}'


def kill_all(program: Program, rng: random.Random) -> str:
  """Kills all processes, and starts the program again."""
  del rng
  program.kill_all()
  return f'started {_start_again(program)}'


def suspend_node(program: Program, rng: random.Random) -> str:
  """Suspends a node for 30 s, which is longer than it may make no progress."""
  node = rng.choice(NODES)
  pid = program.status.nodes[node].pid
  assert pid is not None
  os.kill(pid, signal.SIGSTOP)
  time.sleep(_SUSPENDED)
  with contextlib.suppress(ProcessLookupError):  # it was replaced
    os.kill(pid, signal.SIGCONT)
  return node


def exhaust_memory(program: Program, rng: random.Random) -> str:
  """Gives the learner no more memory, until it dies or a while has passed.

  The other nodes would go on for minutes with the memory that they have.
  """
  del rng
  pid = program.status.nodes['learner/0'].pid
  assert pid is not None
  process = psutil.Process(pid)
  _, hard = process.rlimit(psutil.RLIMIT_AS)  # stays: not everybody may raise it again
  process.rlimit(psutil.RLIMIT_AS, (0, hard))
  with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
    process.wait(PROGRESS_TIMEOUT)
    return 'learner/0, died of it'
  with contextlib.suppress(psutil.NoSuchProcess):
    process.rlimit(psutil.RLIMIT_AS, (hard, hard))
  return 'learner/0, needed none'


def fill_disk(program: Program, rng: random.Random) -> str:
  """Fills the file system of the workdir for some checkpoints' time."""
  del rng
  path = program.workdir / 'ballast'
  with contextlib.suppress(OSError), path.open('wb', buffering=0) as file:
    while True:
      file.write(bytes(1 << 16))
  time.sleep(3 * CHECKPOINT_PERIOD)
  path.unlink()
  return 'full for three checkpoints'


def damage_learner(program: Program, rng: random.Random) -> str:
  """Damages the learner's newest checkpoint, then kills the learner."""
  what = _damage(program, rng, 'learner/ckpt-*')
  program.signal(['learner/0'], signal.SIGKILL)
  return what


def damage_replay(program: Program, rng: random.Random) -> str:
  """Damages the replay's newest checkpoint, then kills the replay."""
  what = _damage(program, rng, 'replay/replay-*/*.tfrecord')
  program.signal(['replay/0'], signal.SIGKILL)
  return what


def damage_manifest(program: Program, rng: random.Random) -> str:
  """Damages the newest manifest, then kills everything and starts again."""
  program.kill_all()
  what = _damage(program, rng, 'manifest-*.json')
  return f'{what}; started {_start_again(program)}'


def break_environment(program: Program, rng: random.Random) -> str:
  """Lets an environment raise, hang, or return what it must not."""
  kind = rng.choice(world.KINDS)
  program.request(kind)
  was_seen = _wait_for(lambda: not program.is_requested(kind))
  assert was_seen, 'no environment takes steps'
  if kind == 'hang':
    time.sleep(PROGRESS_TIMEOUT)
  return kind


def kill_worker(program: Program, rng: random.Random) -> str:
  """Kills the Ray worker of a node, which then ends."""
  node = rng.choice(NODES)
  process = psutil.Process(program.status.nodes[node].pid)
  parent = process.parent()
  assert parent is not None
  parent.kill()
  assert _wait_for(lambda: not process.is_running()), f'{node} has outlived its worker'
  return node


def lose_host(program: Program, rng: random.Random) -> str:
  """Kills all that runs on a host, and starts Ray there again."""
  host, what = _choose_host(program, rng)
  host.kill_all()
  program.start_ray(host)
  return what


def kill_raylet(program: Program, rng: random.Random) -> str:
  """Kills Ray on a host, where nodes may go on for a while, and starts it again."""
  host, what = _choose_host(program, rng)
  raylet = host.raylet()
  assert raylet is not None
  raylet.kill()
  raylet.wait()
  program.start_ray(host)
  return what


def cut_network(program: Program, rng: random.Random) -> str:
  """Cuts a host off the network for 20 s."""
  host, what = _choose_host(program, rng)
  host.cut()
  time.sleep(_CUT)
  host.connect()
  return what


def _choose_host(program: Program, rng: random.Random) -> tuple[Host, str]:
  """Returns a host with nodes but without the launcher, and what to call both."""
  nodes = program.status.nodes
  there = {
    host.ip: [name for name, node in nodes.items() if node.host == host.ip]
    for host in program.hosts
  }
  host = rng.choice([host for host in program.hosts[1:] if there[host.ip]])
  return host, f'{host.name} with {", ".join(there[host.ip])}'


def _by_name(*faults: Fault) -> dict[str, Fault]:
  return {fault.__name__: fault for fault in faults}


KINDS = _by_name(
  *(kill_node, crash_node, kill_several),
  *(kill_replay_in_checkpoint, kill_learner_in_checkpoint),
  *(kill_launcher, kill_all, suspend_node, exhaust_memory, fill_disk),
  *(damage_learner, damage_replay, damage_manifest, break_environment),
)
ON_RAY = _by_name(
  *(kill_node, kill_worker, kill_raylet, lose_host, cut_network),
  *(kill_launcher, kill_several, break_environment),
)


def _wait_for(condition: Callable[[], bool]) -> bool:
  """Waits for the moment at which something holds; returns whether it came."""
  deadline = time.monotonic() + _WAIT
  while time.monotonic() < deadline:
    if condition():
      return True
    time.sleep(0.001)
  return False


def _start_again(program: Program) -> str:
  """Starts the program; while what is left of the last start ends, it is refused."""
  deadline = time.monotonic() + _START_TIMEOUT
  for number in range(1, 100):
    program.start()
    time.sleep(_START_PERIOD)
    while program.poll() is None:
      if program.is_new():
        return f'at attempt {number}'
      time.sleep(0.1)
    assert program.poll() == 2, f'the start ended with code {program.poll()}'
    assert time.monotonic() < deadline, 'it is still refused'
  raise AssertionError


def _damage(program: Program, rng: random.Random, pattern: str) -> str:
  """Truncates a file of the newest checkpoint, or flips one of its bits."""
  folder = program.workdir / 'checkpoints'
  paths = sorted(folder.glob(pattern), key=_age)
  same = [path for path in paths if _group(path) == _group(paths[-1])]
  path = rng.choice([path for path in same if path.stat().st_size])
  size = path.stat().st_size
  with path.open('r+b') as file:
    if rng.random() < 0.5:
      file.truncate(rng.randrange(size))
      how = 'truncated'
    else:
      file.seek(rng.randrange(size))
      byte = file.read(1)[0]
      file.seek(-1, os.SEEK_CUR)
      file.write(bytes([byte ^ 1 << rng.randrange(8)]))
      how = 'bit flipped'
  return f'{path.relative_to(folder)} {how}'


def _age(path: pathlib.Path) -> float:
  return path.stat().st_mtime


def _group(path: pathlib.Path) -> pathlib.Path:
  """Returns what the files of one checkpoint have in common."""
  is_folder = path.suffix == '.tfrecord'
  return path.parent if is_folder else path.with_name(path.name.partition('.')[0])
