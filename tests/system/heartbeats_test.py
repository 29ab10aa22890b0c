"""Beats are seen by the watcher, from other processes and threads."""

import os
import subprocess
import sys
import time

import pytest

from r2d2_acme.system import heartbeats
from tests import helpers


@pytest.fixture
def watched(tmp_path, monkeypatch):
  """The beats of this process, as if another one watched it."""
  watched = heartbeats.Watched(str(tmp_path / 'actor' / '0'))
  monkeypatch.setenv(heartbeats.VARIABLE, watched.path)
  return watched


def _state(watched) -> tuple[bool, bool]:
  watched.look()
  return watched.is_announced, watched.has_beaten


def test_beats_are_announced_seen_and_forgotten_at_the_next_start(watched):
  assert _state(watched) == (False, False)
  heartbeat = heartbeats.Heartbeat()
  assert _state(watched) == (True, False)
  heartbeat.beat()
  assert _state(watched) == (True, True)
  watched.start()
  assert _state(watched) == (False, False)


def test_time_since_the_newest_beat(watched):
  heartbeat = heartbeats.Heartbeat()
  heartbeat.beat()
  watched.look()
  time.sleep(heartbeats._PERIOD + 0.1)
  watched.look()
  assert watched.seconds_since > heartbeats._PERIOD
  heartbeat.beat()
  watched.look()
  assert watched.seconds_since < 0.1
  time.sleep(0.3)
  watched.excuse(0.3)
  assert watched.seconds_since < 0.2


def test_beats_are_rare_enough_to_cost_nothing(watched):
  heartbeat = heartbeats.Heartbeat()
  heartbeat.beat()
  before = os.stat(watched.path).st_mtime_ns
  for _ in range(100):
    heartbeat.beat()
  assert os.stat(watched.path).st_mtime_ns == before


def test_wait_for_another_node_beats_until_its_end(watched):
  heartbeat = heartbeats.Heartbeat()
  with heartbeat.waiting():
    helpers.wait_until(lambda: _state(watched)[1], 10)
    watched.start()
    helpers.wait_until(lambda: _state(watched)[1], 10)
  watched.start()
  time.sleep(2 * heartbeats._PERIOD)
  assert _state(watched) == (False, False)


def test_exception_ends_the_beats_of_a_wait(watched):
  with pytest.raises(ZeroDivisionError), heartbeats.Heartbeat().waiting():
    raise ZeroDivisionError
  watched.start()
  time.sleep(2 * heartbeats._PERIOD)
  assert _state(watched) == (False, False)


def test_nobody_watches(monkeypatch, watched):
  monkeypatch.delenv(heartbeats.VARIABLE)
  heartbeats.Heartbeat().beat()
  assert _state(watched) == (False, False)
  # The watcher's folder is gone, as at the program's end.
  monkeypatch.setenv(heartbeats.VARIABLE, f'{watched.path}.gone')
  heartbeats.Heartbeat().beat()


def test_busy_call_with_pythons_lock_does_not_beat(watched):
  code = (
    'import ctypes\n'
    'from r2d2_acme.system import heartbeats\n'
    'with heartbeats.Heartbeat().waiting():\n'
    '  ctypes.PyDLL(None).sleep(1000)\n'
  )
  with subprocess.Popen(
    [sys.executable, '-c', code], env={**os.environ, 'PYTHONPATH': str(helpers.ROOT)}
  ) as process:
    helpers.wait_until(lambda: _state(watched)[0], 20)
    time.sleep(3 * heartbeats._PERIOD)
    assert _state(watched) == (True, False)
    process.kill()
