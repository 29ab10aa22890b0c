"""Dead and silent nodes are started again, within a budget; all end together."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from absl import flags

from r2d2_acme.running import outputs, supervision, workers
from r2d2_acme.system import forking, heartbeats, processes, stopping
from tests import helpers

pytestmark = pytest.mark.timeout(60)

_LINE = re.compile(
  r'\[supervisor\] event=restart node=(\S+) cause="([^"]+)" restart=(\d+) '
  r'budget=(\d+) period=(\d+)s pause=(\d+)s'
)
# The first start of a node does what the test says; later ones wait to be stopped.
_NODE = """
import ctypes, os, signal, sys, threading, time
from r2d2_acme.system import heartbeats

def first():
{first}

def wait():
  heartbeat = heartbeats.Heartbeat()
  while True:
    heartbeat.beat()
    time.sleep(0.05)

def silent():
  time.sleep(1000)

def main(restarts_to_fail):
  print('start', os.environ['R2D2_RESTARTS'], flush=True)
  if int(os.environ['R2D2_RESTARTS']) <= int(restarts_to_fail):
    first()
  wait()
"""


class Nodes:
  """Nodes as processes, and a supervisor of them that works in this thread.

  Attributes:
    workers: by name.
    requests: to stop.
    restarted: the names of those that were started again, in order.
  """

  def __init__(self, folder: pathlib.Path, family, server):
    self.workers: dict[str, workers.ProcessWorker] = {}
    self.requests = stopping.Requests()
    self.restarted: list[str] = []
    self._folder, self._family, self._server = folder, family, server
    self._threads: list[threading.Thread] = []

  def add(self, name: str, first: str = 'silent()', *, failures=1, stop_order=0):
    """Adds a node whose first starts, so many, run this code."""
    module = f'node_{name.replace("/", "_")}'
    code = _NODE.format(first=textwrap.indent(first, '  '))
    (self._folder / f'{module}.py').write_text(code)
    output = outputs.Output(str(self._folder / 'output' / name))

    def start(env):
      return self._server.fork(
        name,
        self._family,
        f'{module}:main',
        [str(failures - 1)],
        env=env,
        output=output.path,
      )

    self.workers[name] = workers.ProcessWorker(
      name,
      start,
      self._family,
      output,
      heartbeats.Watched(str(self._folder / 'beats' / name)),
      stop_order=stop_order,
    )
    return self.workers[name]

  def printed(self, name: str) -> list[str]:
    return (self._folder / 'output' / name).read_text().splitlines()

  def when(self, condition, then):
    """Calls `then` in a thread once a condition holds."""

    def wait():
      helpers.wait_until(condition, 30)
      then()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    self._threads.append(thread)

  def stop_when(self, condition):
    self.when(condition, self.requests.ask)

  def run(self, **policy) -> tuple[int, str]:
    policy = {'max_restarts': 5, 'progress_timeout': 30.0, **policy}
    return supervision.Supervisor(
      list(self.workers.values()),
      self.requests,
      supervision.Policy(**policy),
      on_restart=lambda worker: self.restarted.append(worker.name),
    ).run()


@pytest.fixture
def nodes(tmp_path, monkeypatch):
  flags.FLAGS(['test'])
  monkeypatch.setenv('PYTHONPATH', f'{tmp_path}:{helpers.ROOT}')
  with (
    processes.Family(1.0) as family,
    forking.ForkServer(['r2d2_acme.system.heartbeats'], private=False) as server,
  ):
    yield Nodes(tmp_path, family, server)


def _restarts(capfd) -> list[tuple[str, ...]]:
  lines = capfd.readouterr().err.splitlines()
  return [match.groups() for match in map(_LINE.fullmatch, lines) if match]


@pytest.mark.parametrize(
  ('first', 'cause'),
  [
    (
      'os.kill(os.getpid(), signal.SIGKILL)',
      'was killed by signal 9, perhaps for want',
    ),
    ('os.kill(os.getpid(), signal.SIGSEGV)', 'was killed by signal 11'),
    ('raise RuntimeError("the ball is out of reach")', 'failed with exit code 1'),
    ('os._exit(0)', 'ended although nobody asked it to'),
    ('os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)', 'was killed by signal 15'),
  ],
)
def test_node_that_ends_is_started_again(nodes, capfd, first, cause):
  node, other = nodes.add('actor/0', first), nodes.add('actor/1', failures=0)
  nodes.stop_when(lambda: 'start 1' in nodes.printed('actor/0'))
  assert nodes.run() == (0, '')
  assert (node.num_starts, other.num_starts) == (2, 1)
  assert nodes.restarted == ['actor/0']
  ((name, why, *rest),) = _restarts(capfd)
  assert name == 'actor/0'
  assert why.startswith(cause)
  assert rest == ['1', '5', '600', '0']


_BEAT = 'heartbeats.Heartbeat().beat()\n'


@pytest.mark.parametrize(
  'first',
  [
    _BEAT + 'time.sleep(1000)',
    _BEAT + 'os.kill(os.getpid(), signal.SIGSTOP)',
    _BEAT + 'ctypes.PyDLL(None).sleep(1000)',  # with Python's lock
    _BEAT + 'signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)',
  ],
  ids=['waiting', 'suspended', 'busy', 'deaf'],
)
def test_node_without_progress_is_killed_and_started_again(nodes, capfd, first):
  node = nodes.add('actor/0', first)
  nodes.stop_when(lambda: 'start 1' in nodes.printed('actor/0'))
  assert nodes.run(progress_timeout=1.0) == (0, '')
  assert node.num_starts == 2
  ((_, cause, *_),) = _restarts(capfd)
  assert re.fullmatch('made no progress for [12] s and was killed', cause)


def test_node_that_announces_no_beats_is_never_killed_for_silence(nodes, capfd):
  node = nodes.add('replay/0', 'silent()')
  begun = time.monotonic()
  nodes.stop_when(lambda: time.monotonic() > begun + 2.5)
  assert nodes.run(progress_timeout=0.5) == (0, '')
  assert node.num_starts == 1
  assert _restarts(capfd) == []


def test_node_that_only_announces_beats_has_longer_to_start(nodes, monkeypatch, capfd):
  monkeypatch.setattr(supervision, '_START_TIMEOUT', 2.0)
  node = nodes.add('actor/0', 'heartbeats.Heartbeat(); time.sleep(1000)')
  nodes.stop_when(lambda: 'start 1' in nodes.printed('actor/0'))
  assert nodes.run(progress_timeout=0.5) == (0, '')
  assert node.num_starts == 2
  ((_, cause, *_),) = _restarts(capfd)
  assert re.fullmatch('made no progress for [23] s and was killed', cause)


def test_budget_that_is_used_up_ends_all_with_the_cause(nodes, capfd):
  node = nodes.add('actor/0', 'raise RuntimeError("out of reach")', failures=99)
  other = nodes.add('learner/0', failures=0)
  begun = time.monotonic()
  code, message = nodes.run(max_restarts=2)
  assert code == 1
  *_, error, last = message.splitlines()
  assert error == 'RuntimeError: out of reach'
  assert last == (f'actor/0 failed with exit code 1; full output: {node._output.path}')
  assert node.num_starts == 3
  # The second restart waits for a second.
  assert [rest[-1] for rest in _restarts(capfd)] == ['0', '1']
  assert time.monotonic() - begun > 1.0
  assert other.is_asked
  assert other.poll() is not None


def test_restarts_are_forgotten_after_the_period(nodes, capfd):
  node = nodes.add('actor/0', 'os._exit(1)', failures=99)
  nodes.stop_when(lambda: node.num_starts >= 7)
  # Of pauses of 0 and 1 s, no third restart would fall in a period this short.
  assert nodes.run(max_restarts=2, period=1.2) == (0, '')
  found = _restarts(capfd)
  assert len(found) >= 6
  assert {rest[2] for rest in found} <= {'1', '2'}


def test_failure_that_is_final_is_not_tried_again(nodes, capfd):
  node = nodes.add('actor/0', f'os._exit({workers.FINAL_CODE})')
  code, message = nodes.run()
  assert (code, node.num_starts) == (1, 1)
  assert message.splitlines()[-1].startswith('actor/0 failed for good; full output: ')
  assert _restarts(capfd) == []


def test_no_restarts_where_none_are_wanted(nodes, capfd):
  node = nodes.add('actor/0', 'os._exit(0)')
  assert nodes.run(max_restarts=0)[0] == 1
  assert node.num_starts == 1
  assert _restarts(capfd) == []


def test_pauses_double_and_a_stop_during_one_is_heeded(nodes, capfd):
  node = nodes.add('actor/0', 'os._exit(1)', failures=99)
  other = nodes.add('actor/1', failures=0)
  # The fourth restart is due after 4 s.
  nodes.when(
    lambda: node.num_starts == 4 and node.poll() is not None,
    lambda: (time.sleep(0.5), nodes.requests.ask()),
  )
  begun = time.monotonic()
  assert nodes.run(max_restarts=9) == (0, '')
  assert time.monotonic() - begun < 6.0
  assert node.num_starts == 4
  assert other.poll() is not None
  assert [rest[-1] for rest in _restarts(capfd)] == ['0', '1', '2', '4']


_SAY_WHEN = """
def say(number, frame):
  with open(os.environ['ENDS'], 'a') as file:
    print(sys.argv[0] and {name!r}, flush=True, file=file)
  time.sleep(0.5)
  os._exit(0)
signal.signal(signal.SIGTERM, say)
wait()
"""


def test_nodes_that_stop_last_are_asked_after_the_others_have_ended(
  nodes, tmp_path, monkeypatch
):
  monkeypatch.setenv('ENDS', str(tmp_path / 'ends'))
  for name, stop_order in (('replay/0', 2), ('actor/0', 0), ('actor/1', 0)):
    nodes.add(name, _SAY_WHEN.format(name=name), stop_order=stop_order)
  nodes.stop_when(
    lambda: all(
      worker.num_starts and worker.heartbeat.has_beaten
      for worker in nodes.workers.values()
    )
  )
  begun = time.monotonic()
  assert nodes.run() == (0, '')
  assert time.monotonic() - begun > 1.0
  assert (tmp_path / 'ends').read_text().split()[-1] == 'replay/0'


def test_node_that_cannot_be_started_again_counts_as_dead(nodes, capfd):
  node = nodes.add('actor/0', 'os._exit(1)')
  start, attempts = node._start, []

  def start_at_times(env):
    attempts.append(env)
    if len(attempts) in (2, 3):
      raise forking.ForkServerFailed('cannot fork: no memory')
    return start(env)

  node._start = start_at_times
  nodes.add('learner/0', failures=0)
  nodes.stop_when(lambda: 'start 3' in nodes.printed('actor/0'))
  assert nodes.run() == (0, '')
  causes = [cause for _, cause, *_ in _restarts(capfd)]
  assert causes == [
    'failed with exit code 1',
    *2 * ['could not be started: cannot fork: no memory'],
  ]


_SUPERVISED = """
import contextlib, os, sys
from absl import flags
from r2d2_acme.running import outputs, supervision, workers
from r2d2_acme.system import forking, heartbeats, processes, stopping
flags.FLAGS(['test'])
folder = sys.argv[1]
with (
  stopping.Requests() as requests,
  processes.Family(1.0) as family,
  forking.ForkServer(['r2d2_acme.system.heartbeats'], private=False) as server,
):
  output = outputs.Output(folder + '/output')
  worker = workers.ProcessWorker(
    'actor/0',
    lambda env: server.fork(
      'actor/0', family, 'node:main', ['-1'], env=env, output=output.path),
    family, output, heartbeats.Watched(folder + '/beats/0'))
  print(os.getpid(), flush=True)
  policy = supervision.Policy(progress_timeout=2.0)
  code, message = supervision.Supervisor([worker], requests, policy).run()
  print(code, worker.num_starts, flush=True)
"""


@pytest.mark.parametrize('suspends_all', [True, False])
def test_time_in_which_the_supervisor_was_suspended_does_not_count(
  tmp_path, suspends_all
):
  (tmp_path / 'node.py').write_text(_NODE.format(first='  pass'))
  with subprocess.Popen(
    [sys.executable, '-c', _SUPERVISED, str(tmp_path)],
    env={**os.environ, 'PYTHONPATH': f'{tmp_path}:{helpers.ROOT}'},
    stdout=subprocess.PIPE,
    text=True,
  ) as program:
    program.stdout.readline()
    beats = tmp_path / 'beats' / '0'
    helpers.wait_until(lambda: beats.exists() and beats.stat().st_mtime > 1, 30)
    # As Ctrl-Z does, the family is suspended, too.
    program.send_signal(signal.SIGTSTP if suspends_all else signal.SIGSTOP)
    time.sleep(4)
    program.send_signal(signal.SIGCONT)
    time.sleep(1.5)
    program.send_signal(signal.SIGTERM)
    assert program.stdout.read() == '0 1\n'
