"""`processes.py`: children end when their parent does, and theirs too."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import psutil
import pytest

from r2d2_acme import processes
from tests import helpers

_ROOT = str(pathlib.Path(__file__).parent.parent)
# Starts a process in a session of its own, with its parent's mark, and waits.
_CHILD = """
import signal, subprocess, sys, time
for number in {ignored}:
  signal.signal(number, signal.SIG_IGN)
child = subprocess.Popen(['sleep', '1000'], start_new_session=True)
print(child.pid, flush=True)
time.sleep(1000)
"""
_PARENT = """
import json, signal, subprocess, sys, time
sys.path.insert(0, {root!r})
from r2d2_acme import processes
family = processes.Family({patience})
child = family.start('a', [sys.executable, '-c', {child!r}], stdout=subprocess.PIPE)
grandchild = int(child.stdout.readline())
print(json.dumps([child.pid, grandchild, family._guard.pid]), flush=True)
time.sleep(1000)
"""


def _start_family(patience: float, ignored: tuple[int, ...] = ()):
  """Starts parent, child and grandchild; the guard is returned last."""
  child = _CHILD.format(ignored=[int(n) for n in ignored])
  code = _PARENT.format(root=_ROOT, patience=patience, child=child)
  parent = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE)
  pids = json.loads(parent.stdout.readline())
  return parent, [psutil.Process(pid) for pid in pids]


def _are_gone(family: list[psutil.Process]) -> bool:
  return not any(
    process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    for process in family
  )


@pytest.mark.parametrize(
  'ignored',
  [(), (signal.SIGTERM,)],
  ids=['asked', 'killed'],
)
def test_all_end_when_the_parent_is_killed(ignored):
  patience = 1.0 if ignored else 60.0
  parent, family = _start_family(patience, ignored)
  parent.kill()
  parent.wait()
  helpers.wait_until(lambda: _are_gone(family), timeout=20)


def test_suspended_child_ends_when_the_parent_is_killed():
  parent, family = _start_family(patience=1.0)
  family[0].suspend()
  parent.kill()
  parent.wait()
  helpers.wait_until(lambda: _are_gone(family), timeout=20)


def test_guard_outlives_signals_to_all():
  parent, family = _start_family(patience=0.0)
  for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    family[-1].send_signal(number)
  parent.kill()
  parent.wait()
  helpers.wait_until(lambda: _are_gone(family), timeout=20)


def _start(family: processes.Family, name: str) -> tuple[subprocess.Popen, int]:
  command = [sys.executable, '-c', _CHILD.format(ignored=())]
  child = family.start(name, command, stdout=subprocess.PIPE)
  return child, int(child.stdout.readline())


def test_what_a_child_leaves_is_killed_and_other_children_are_not():
  with processes.Family(patience=0.0) as family:
    child, grandchild = _start(family, 'actor/1')
    other, _ = _start(family, 'actor/10')
    child.kill()
    child.wait()
    assert psutil.pid_exists(grandchild)
    family.kill('actor/1')
    assert not psutil.pid_exists(grandchild) or (
      psutil.Process(grandchild).status() == psutil.STATUS_ZOMBIE
    )
    assert other.poll() is None
  assert other.wait(10) == -signal.SIGKILL  # at the end of `with`


def test_child_has_a_session_of_its_own_and_no_hangup():
  with processes.Family(patience=0.0) as family:
    child, _ = _start(family, 'a')
    assert os.getsid(child.pid) == child.pid
    child.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert child.poll() is None


def test_descendants_are_found_in_whatever_session():
  child = subprocess.Popen(
    [sys.executable, '-c', _CHILD.format(ignored=())], stdout=subprocess.PIPE
  )
  grandchild = int(child.stdout.readline())
  assert {child.pid, grandchild} <= processes._descendants(os.getpid())
  assert processes._descendants(child.pid) == {grandchild}
  os.kill(grandchild, signal.SIGKILL)
  child.kill()
  child.wait()


def test_library_beside_the_guard_does_not_hide_the_standard_one():
  """`r2d2_acme/types.py` is in the guard's folder."""
  ended = subprocess.run(
    [sys.executable, '-I', '-S', processes.__file__, 'none', '0', '0'],
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    check=True,
  )
  assert (ended.stdout, ended.stderr) == ('', '')
