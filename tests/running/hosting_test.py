"""`hosting.py`: a node's process on a host, told what to do from far away."""

import os
import signal
import socket
import time

import cloudpickle
import pytest

from r2d2_acme.running import hosting
from r2d2_acme.workdir import locking
from tests import helpers


def _work():
  import launchpad as lp

  from r2d2_acme.system import heartbeats

  heartbeat = heartbeats.Heartbeat()
  print(f'started {os.environ["TURN"]}', flush=True)
  while not lp.stop_event().wait(0.05):
    heartbeat.beat()
    if os.environ['TURN'] == 'last':
      hosting.stop_program()
  print('stopped', flush=True)


class _Launcher:
  """Asks a host for reports, and keeps them."""

  def __init__(self, host: hosting.NodeHost):
    self._host = host
    self.report = host.watch(0, (), 0)
    self.lines: list[str] = []

  def wait(self, condition):
    def holds() -> bool:
      last = self.report
      self.report = self._host.watch(last.num_lines, last.news, 1.0)
      self.lines += self.report.lines
      return condition(self.report)

    helpers.wait_until(holds)


@pytest.fixture(scope='module')
def host():
  host = hosting.NodeHost('actor/0', cloudpickle.dumps([_work]), fresh=False)
  yield host
  host.close()


@pytest.fixture
def launcher(host):
  return _Launcher(host)


def test_node_is_started_reports_and_is_started_again(host, launcher):
  assert (launcher.report.start, launcher.report.code) == (0, None)
  host.start(1, {'TURN': 'first'})
  launcher.wait(lambda report: report.has_beaten)
  assert (launcher.report.start, launcher.report.code) == (1, None)
  assert launcher.lines == ['started first']
  os.kill(launcher.report.pid, signal.SIGKILL)
  launcher.wait(lambda report: report.code is not None)
  assert launcher.report.code == -signal.SIGKILL
  assert 'signal 9' in launcher.report.end
  host.start(2, {'TURN': 'second'})
  launcher.wait(lambda report: report.start == 2 and report.has_beaten)
  host.stop(10)
  launcher.wait(lambda report: report.code is not None)
  assert launcher.report.code == 0
  assert launcher.lines == ['started first', 'started second', 'stopped']


def test_lines_that_a_launcher_has_not_got_are_told_again(host, launcher):
  before = launcher.report.num_lines
  host.start(3, {'TURN': 'third'})
  helpers.wait_until(lambda: host.watch(before, (), 0).num_lines > before)
  for _ in range(2):  # as after an answer that was lost
    assert host.watch(before, (), 0).lines == ['started third']
  assert host.watch(before + 1, (), 0).lines == []
  host.kill()
  launcher.wait(lambda report: report.code is not None)


def test_news_is_told_at_once_and_silence_lasts_a_period(host, launcher):
  report = launcher.report
  start = time.monotonic()
  assert host.watch(report.num_lines, report.news, 0.3).news == report.news
  assert 0.25 < time.monotonic() - start < 2


def test_node_can_ask_for_the_end_of_the_program(host, launcher):
  assert not launcher.report.stops_program
  host.start(4, {'TURN': 'last'})
  launcher.wait(lambda report: report.stops_program)
  host.kill()


def test_facts_tell_of_packages_and_of_the_workdir(host, tmp_path, monkeypatch):
  monkeypatch.setattr(hosting, '_SHARING_TIMEOUT', 0.2)
  locking.hold_program(str(tmp_path / 'ours'))
  env = {locking.PROGRAM: os.environ[locking.PROGRAM]}
  facts = host.describe(['numpy', 'no-such-package'], str(tmp_path / 'ours'), env)
  assert facts.versions['numpy'] == '1.24.4'
  assert facts.versions['no-such-package'] is None
  assert facts.versions['python'] == '3.10'
  assert facts.sees_workdir
  assert not host.describe([], str(tmp_path / 'other'), env).sees_workdir
  assert not (tmp_path / 'other').exists()


def test_port_is_free():
  port = hosting.pick_port()
  with socket.socket() as server:
    server.bind(('', port))
    server.listen()
