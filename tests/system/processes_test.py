"""`processes.py`: children and their descendants end when their parent does."""

import json
import os
import select
import signal
import subprocess
import sys
import time

import psutil
import pytest

from r2d2_acme.system import processes
from tests import helpers

_ROOT = str(helpers.ROOT)
# Starts two processes in sessions of their own, one of them without any environment
# variable, and waits.
_CHILD = """
import signal, subprocess, sys, time
for number in {ignored}:
  signal.signal(number, signal.SIG_IGN)
child = subprocess.Popen(['sleep', '1000'], start_new_session=True)
stray = subprocess.Popen(['sleep', '1000'], start_new_session=True, env={{}})
print(child.pid, stray.pid, flush=True)
time.sleep(1000)
"""
_PARENT = """
import json, signal, subprocess, sys, time
sys.path.insert(0, {root!r})
from r2d2_acme.system import processes
family = processes.Family({patience})
child = family.start('a', [sys.executable, '-c', {child!r}], stdout=subprocess.PIPE)
grandchildren = map(int, child.stdout.readline().split())
print(json.dumps([child.pid, *grandchildren, family._guard.pid]), flush=True)
{then}
time.sleep(1000)
"""


def _start_family(patience: float, ignored: tuple[int, ...] = (), then: str = ''):
  """Starts parent, child and grandchildren; the guard is returned last."""
  child = _CHILD.format(ignored=[int(n) for n in ignored])
  code = _PARENT.format(root=_ROOT, patience=patience, child=child, then=then)
  parent = subprocess.Popen(
    [sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
  )
  pids = json.loads(parent.stdout.readline())
  return parent, [psutil.Process(pid) for pid in pids]


def _are_gone(family: list[psutil.Process]) -> bool:
  return not any(map(helpers.is_alive, family))


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


def test_suspended_family_is_asked_when_the_parent_is_killed():
  parent, family = _start_family(patience=60.0)
  for process in family[:-1]:
    process.suspend()
  parent.kill()
  parent.wait()
  helpers.wait_until(lambda: _are_gone(family), timeout=20)


def test_what_a_killed_child_leaves_without_a_mark_ends_with_the_parent():
  parent, family = _start_family(
    patience=60.0, then='sys.stdin.readline(); processes.kill_descendants(); 1 / 0'
  )
  family[0].kill()
  helpers.wait_until(lambda: _are_gone(family[:1]), timeout=20)
  assert not _are_gone(family[2:3])
  parent.communicate(b'\n')
  helpers.wait_until(lambda: _are_gone(family), timeout=20)


@pytest.mark.parametrize('inner', [False, True])
def test_family_is_suspended_and_goes_on_with_the_parent(inner):
  """Also with a family in it."""
  then = 'with family: time.sleep(1000)'
  if inner:
    then = 'with family, processes.Family(9.0): time.sleep(1000)'
  parent, family = _start_family(patience=60.0, then=then)
  time.sleep(0.3)

  def are_stopped() -> list[bool]:
    return [process.status() == psutil.STATUS_STOPPED for process in family[:-1]]

  parent.send_signal(signal.SIGTSTP)
  helpers.wait_until(lambda: all(are_stopped()), timeout=20)
  parent.send_signal(signal.SIGCONT)
  helpers.wait_until(lambda: not any(are_stopped()), timeout=20)
  parent.kill()
  parent.wait()
  helpers.wait_until(lambda: _are_gone(family), timeout=20)


_ALONE = """
import sys, time
sys.path.insert(0, {root!r})
from r2d2_acme.system import processes
processes.guard_children()
processes.guard_children()
{child}
"""


def test_children_of_a_process_without_a_family_end_with_it_too():
  code = _ALONE.format(root=_ROOT, child=_CHILD.format(ignored=()))
  parent = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE)
  parent.stdout.readline()
  children = psutil.Process(parent.pid).children()
  assert len(children) == 3  # one guard
  time.sleep(1.5 * processes._LOOK_PERIOD)
  parent.kill()
  parent.wait()
  helpers.wait_until(lambda: _are_gone(children), timeout=20)


def test_guard_never_kills_the_parent_itself():
  """A closed pipe is not the parent's end: the parent and its family live on."""
  code = _ALONE.format(
    root=_ROOT,
    child='import os; print("ready", flush=True); os.closerange(3, 99)\n'
    + _CHILD.format(ignored=()),
  )
  parent = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE)
  for _ in range(2):
    parent.stdout.readline()
  family = [psutil.Process(parent.pid), *psutil.Process(parent.pid).children()]
  time.sleep(2 + 2 * processes._OWN_PATIENCE)
  assert all(map(psutil.Process.is_running, family))
  parent.kill()
  parent.wait()
  helpers.wait_until(lambda: _are_gone(family), timeout=20)


def test_marks_are_taken_back():
  before = dict(os.environ)
  with processes.Family(patience=0.0) as family:
    with family.marking('a'):
      child = subprocess.Popen(['sleep', '1000'])
    assert dict(os.environ) == before
    family.kill('a')
    assert child.wait(10) == -signal.SIGKILL


def test_guard_outlives_signals_to_all():
  parent, family = _start_family(patience=0.0)
  for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    family[-1].send_signal(number)
  parent.kill()
  parent.wait()
  helpers.wait_until(lambda: _are_gone(family), timeout=20)


def _start(family: processes.Family, name: str):
  command = [sys.executable, '-c', _CHILD.format(ignored=())]
  child = family.start(name, command, stdout=subprocess.PIPE)
  return child, *map(int, child.stdout.readline().split())


def test_what_a_child_leaves_is_killed_and_other_children_are_not():
  with processes.Family(patience=0.0) as family:
    child, grandchild, _ = _start(family, 'actor/1')
    other, *_ = _start(family, 'actor/10')
    child.kill()
    child.wait()
    assert helpers.is_alive(grandchild)
    family.kill('actor/1')
    assert not helpers.is_alive(grandchild)
    assert other.poll() is None
  assert other.wait(10) == -signal.SIGKILL  # killed at the end of `with`


def test_what_a_child_started_without_a_mark_is_killed_with_it():
  with processes.Family(patience=0.0) as family:
    child, *pids = _start(family, 'a')
    grandchildren = [psutil.Process(pid) for pid in pids]
    family.kill('a')
    assert child.wait(10) == -signal.SIGKILL
    helpers.wait_until(lambda: _are_gone(grandchildren), timeout=20)


def test_child_has_a_session_of_its_own_and_no_hangup():
  with processes.Family(patience=0.0) as family:
    child, *_ = _start(family, 'a')
    assert os.getsid(child.pid) == child.pid
    child.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert child.poll() is None


# Waits in its main thread while other threads run, as nodes do.
_NODE = """
import signal, threading, time
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *unused: stop.set())
for _ in range(20):
  threading.Thread(target=time.sleep, args=[1000], daemon=True).start()
while True:
  print('waits', flush=True)
  stop.wait()
  stop.clear()
"""


def test_asking_wakes_what_was_suspended_just_now():
  node = subprocess.Popen([sys.executable, '-c', _NODE], stdout=subprocess.PIPE)
  process = psutil.Process(node.pid)
  for _ in range(10):
    assert select.select([node.stdout], [], [], 20)[0], 'never woke up'
    assert node.stdout.readline() == b'waits\n'
    time.sleep(0.1)
    process.suspend()
    helpers.wait_until(lambda: process.status() == psutil.STATUS_STOPPED)
    process.resume()
    processes.ask(node.pid)
  node.kill()
  node.wait()
  with pytest.raises(ProcessLookupError):
    processes.ask(node.pid)


def test_descendants_are_found_in_whatever_session():
  child = subprocess.Popen(
    [sys.executable, '-c', _CHILD.format(ignored=())], stdout=subprocess.PIPE
  )
  grandchildren = {*map(int, child.stdout.readline().split())}
  assert {child.pid, *grandchildren} <= processes._kin({os.getpid()})
  assert processes._kin({child.pid}) == {child.pid, *grandchildren}
  for pid in grandchildren:
    os.kill(pid, signal.SIGKILL)
  child.kill()
  child.wait()


def test_library_beside_the_guard_does_not_hide_the_standard_one():
  """A `types.py` beside the guard's file must not hide that of the standard library."""
  ended = subprocess.run(
    [sys.executable, '-I', '-S', processes.__file__, 'none', '0', '0', 'marked'],
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    check=True,
  )
  assert (ended.stdout, ended.stderr) == ('', '')
