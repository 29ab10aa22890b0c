"""`forking.py`: children of this process, forked from one that has only imported."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import psutil
import pytest

from r2d2_acme.system import forking, processes
from tests import helpers

_FOLDER = pathlib.Path(__file__).parent  # of `forked.py`, which children import
_TIMEOUT = 20


@pytest.fixture(autouse=True)
def search_path(monkeypatch):
  monkeypatch.setenv('PYTHONPATH', f'{_FOLDER}:{helpers.ROOT}')


@pytest.fixture
def server():
  with forking.ForkServer(['json'], private=False) as server:
    assert server.wait() == ''
    yield server


@pytest.fixture
def family():
  with processes.Family(1.0) as family:
    yield family


@pytest.fixture
def fork(server, family, tmp_path):
  """`fork(function, *arguments)` starts a child that calls a function of `forked`."""

  def start(function: str, *arguments, name='a', env=None, fresh=False, of=server):
    return of.fork(
      name,
      family,
      f'forked:{function}',
      list(map(str, arguments)),
      env=env or {},
      output=str(tmp_path / 'output'),
      fresh=fresh,
    )

  return start


@pytest.fixture
def describe(fork, tmp_path):
  """`describe()` starts a child and returns what it says of itself."""

  def start(**keywords):
    path = tmp_path / f'{len(list(tmp_path.iterdir()))}.json'
    child = fork('describe', path, **keywords)
    assert child.wait() == 0, (tmp_path / 'output').read_text()
    return {'waited': child.pid, **json.loads(path.read_text())}

  return start


def _is_gone(pid: int) -> bool:
  try:
    return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
  except psutil.NoSuchProcess:
    return True


def _read(path: pathlib.Path):
  helpers.wait_until(path.exists, _TIMEOUT)
  return json.loads(path.read_text())


@pytest.mark.parametrize('fresh', [False, True])
def test_child_is_one_of_this_process_and_has_what_it_was_given(
  describe, tmp_path, monkeypatch, fresh
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('OURS', 'at the fork')
  found = describe(env={'GIVEN': 'a b\n\u00e9', 'HOME': '/nowhere'}, fresh=fresh)
  assert found['pid'] == found['waited'] == found['session']
  assert found['ppid'] == os.getpid()
  environ = found['environ']
  assert environ.pop(processes._MARK).endswith(':a')
  ours = {k: v for k, v in os.environ.items() if k != processes._MARK}
  assert environ == {**ours, 'GIVEN': 'a b\n\u00e9', 'HOME': '/nowhere'}
  assert found['directory'] == str(tmp_path)
  assert found['handlers']['SIGHUP'] == 'Handlers.SIG_IGN'
  for name in ('SIGTERM', 'SIGQUIT'):
    assert found['handlers'][name] == 'Handlers.SIG_DFL'
  # Neither the server's socket nor anything else of this process.
  output = str(tmp_path / 'output')
  files = [target for target in found['files'].values() if target]
  assert files == ['/dev/null', output, output]


@pytest.mark.parametrize('fresh', [False, True])
def test_current_directory_is_not_searched(describe, tmp_path, monkeypatch, fresh):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'random.py').write_text('raise SystemExit("this is not the library")')
  found = describe(fresh=fresh)
  assert str(tmp_path) not in found['path']
  assert '' not in found['path']
  assert found['path'][:2] == [str(_FOLDER), str(helpers.ROOT)]


def test_fork_has_what_the_server_has_imported_and_a_fresh_child_has_not(
  fork, family, tmp_path
):
  with forking.ForkServer(['statistics'], private=False) as server:
    for fresh in (False, True):
      path = tmp_path / f'{fresh}.json'
      assert fork('describe', path, of=server, fresh=fresh).wait() == 0
      assert json.loads(path.read_text())['has_statistics'] is not fresh


def test_exit_codes_are_those_of_popen(fork, tmp_path):
  assert fork('leave', 0).wait() == 0
  assert fork('leave', 3).wait() == 3
  assert fork('leave', 255).wait() == 255
  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGSEGV, signal.SIGKILL):
    if number != signal.SIGINT:  # which raises KeyboardInterrupt
      assert fork('end_by', int(number)).wait() == -number
  child = fork('wait')
  assert child.poll() is None
  os.kill(child.pid, signal.SIGKILL)
  assert child.wait() == child.poll() == child.returncode == -signal.SIGKILL


def test_child_that_raises_says_why_and_has_code_1(fork, tmp_path):
  assert fork('raise_error').wait() == 1
  assert fork('no_such_function').wait() == 1
  printed = (tmp_path / 'output').read_text()
  assert 'RuntimeError: the ball is out of reach' in printed
  assert "no attribute 'no_such_function'" in printed


def test_all_that_children_print_is_appended_to_the_file(fork, tmp_path):
  (tmp_path / 'output').write_text('before\n')
  for text in ('first', 'second'):
    assert fork('say', text).wait() == 0
  lines = (tmp_path / 'output').read_text().splitlines()
  assert lines[0] == 'before'
  assert sorted(lines[1:3]) == ['first', 'to stderr']
  assert sorted(lines[3:]) == ['second', 'to stderr']


def test_global_generators_of_two_children_differ(fork, tmp_path):
  with forking.ForkServer(['numpy.random'], private=False) as server:
    found = []
    for number in range(2):
      path = tmp_path / f'{number}.json'
      assert fork('describe', path, of=server).wait() == 0
      found.append(json.loads(path.read_text()))
  assert len({one['random'] for one in found}) == 2
  assert None not in {one['numpy'] for one in found}
  assert len({one['numpy'] for one in found}) == 2


def test_family_kills_a_child_with_all_that_it_has_started(fork, family, tmp_path):
  children = [fork('wait_with_children', tmp_path / n, name=n) for n in ('a', 'ab')]
  killed, others = (_read(tmp_path / name) for name in ('a', 'ab'))
  family.kill('a')
  assert children[0].wait() == -signal.SIGKILL
  assert all(map(_is_gone, killed))
  assert not any(map(_is_gone, others))
  children[1].poll()
  family.kill()
  assert all(map(_is_gone, others))


def test_what_a_dead_child_leaves_behind_is_killed(fork, family, tmp_path):
  child = fork('wait_with_children', tmp_path / 'pids')
  pid, *left = _read(tmp_path / 'pids')
  os.kill(pid, signal.SIGKILL)
  assert child.wait() == -signal.SIGKILL
  assert not any(map(_is_gone, left))
  family.kill('a')
  # One without any environment, whose parent is gone, is left to the guard.
  assert all(map(_is_gone, left[:2]))


@pytest.mark.parametrize('fresh', [False, True])
def test_child_that_is_asked_in_its_first_moment_stops(fork, fresh):
  """However early that is, it must not miss it."""
  for i in range(20):
    child = fork('wait', name=f'child/{i}', fresh=fresh)
    processes.ask(child.pid)
    helpers.wait_until(lambda: child.poll() is not None, timeout=_TIMEOUT)  # noqa: B023
    assert child.returncode == -signal.SIGTERM


def test_hangup_does_not_reach_a_child(fork):
  child = fork('wait')
  os.kill(child.pid, signal.SIGHUP)
  time.sleep(0.2)
  assert child.poll() is None


def test_thirty_forks_leave_nothing_behind(server, fork):
  def counts() -> list[int]:
    us, of_server = psutil.Process(), psutil.Process(server._popen.pid)
    return [
      *(process.num_fds() for process in (us, of_server)),
      *(len(process.children()) for process in (us, of_server)),
    ]

  assert fork('leave', 0).wait() == 0
  before = counts()
  children = [fork('leave', number, os.getpid()) for number in range(30)]
  assert [child.wait() for child in children] == list(range(30))
  # One descriptor may be another's, such as gRPC's; what a fork left would be there 30
  # times.
  assert max(now - then for now, then in zip(counts(), before, strict=True)) < 10


def test_killed_server_is_replaced_and_its_children_live_on(server, fork):
  child = fork('wait')
  os.kill(server._popen.pid, signal.SIGKILL)
  server._popen.wait()
  assert child.poll() is None
  assert fork('leave', 5).wait() == 5
  assert child.poll() is None


_PROGRAM = """
import json, os, sys, time
from r2d2_acme.system import forking, processes
with (
  processes.Family(1.0) as family,
  forking.ForkServer(['json'], private=False) as server,
):
  child = server.fork(
    'a', family, 'forked:wait_with_children', [sys.argv[1]], env={}, output=sys.argv[2]
  )
  print(server._popen.pid, flush=True)
  time.sleep(1000)
"""


@pytest.mark.parametrize('is_stopped', [False, True])
def test_all_end_when_the_parent_is_killed(tmp_path, is_stopped):
  code = _PROGRAM
  arguments = [str(tmp_path / 'pids'), str(tmp_path / 'output')]
  with subprocess.Popen(
    [sys.executable, '-c', code, *arguments], stdout=subprocess.PIPE
  ) as parent:
    pids = [int(parent.stdout.readline()), *_read(tmp_path / 'pids')]
    if is_stopped:
      os.kill(pids[1], signal.SIGSTOP)
    parent.kill()
  helpers.wait_until(lambda: all(map(_is_gone, pids)), _TIMEOUT)


def test_server_that_still_imports_ends_with_its_parent(tmp_path):
  (tmp_path / 'slow.py').write_text('import time; time.sleep(3)')
  code = (
    'from r2d2_acme.system import forking\n'
    "forking.prepare(['slow'], private=False)\n"
    'print(forking._PREPARED[0]._popen.pid, flush=True)\n'
    'input()\n'
  )
  with subprocess.Popen(
    [sys.executable, '-c', code],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    env={**os.environ, 'PYTHONPATH': f'{tmp_path}:{helpers.ROOT}'},
  ) as parent:
    pid = int(parent.stdout.readline())
    parent.kill()
  assert not _is_gone(pid)
  helpers.wait_until(lambda: _is_gone(pid), _TIMEOUT)


def test_prepared_server_is_taken_if_it_fits():
  for modules, fits in ((['json'], True), (['csv'], False)):
    forking.prepare(['json'], private=False)
    (prepared,) = forking._PREPARED
    with forking.take(modules, private=False) as server:
      assert (server is prepared) == fits
      server.wait()
    assert not forking._PREPARED
    assert prepared._popen.poll() is not None


def test_import_that_fails_is_one_line(capfd, tmp_path, monkeypatch):
  (tmp_path / 'broken.py').write_text('raise RuntimeError("of another\\nversion")')
  monkeypatch.setenv('PYTHONPATH', f'{tmp_path}:{helpers.ROOT}')
  for module, cause in (('no_such_module', 'no_such_module'), ('broken', 'of another')):
    with (
      forking.ForkServer([module], private=False) as server,
      pytest.raises(forking.ForkServerFailed, match=cause) as failed,
    ):
      server.wait()
    assert str(failed.value).startswith(f'cannot import {module}: ')
    assert '\n' not in str(failed.value)
  assert capfd.readouterr().err == ''


def test_large_environment_reaches_the_child(describe):
  values = {f'LARGE_{number}': 1_000 * 'x' for number in range(500)}
  assert values.items() <= describe(env=values)['environ'].items()


def test_child_starts_although_the_current_directory_is_gone(
  fork, tmp_path, monkeypatch
):
  folder = tmp_path / 'vanishing'
  folder.mkdir()
  monkeypatch.chdir(folder)
  folder.rmdir()
  assert fork('leave', 4).wait() == 4


# The server becomes a user of its own, who may have three processes.
_LIMITED = """
import os, resource
import forked
os.setresuid(61234, 61234, 61234)
resource.setrlimit(resource.RLIMIT_NPROC, (3, 3))
"""


@pytest.mark.skipif(os.getuid() != 0, reason='only root can become another user')
@pytest.mark.parametrize('num_others', [1, 2])  # the second fork fails, or the first
def test_server_outlives_a_fork_that_fails(family, tmp_path, monkeypatch, num_others):
  (tmp_path / 'limited.py').write_text(_LIMITED)
  monkeypatch.setenv('PYTHONPATH', f'{tmp_path}:{_FOLDER}:{helpers.ROOT}')
  request = {
    'mark': family.mark('a'),
    'function': 'forked:leave',
    'arguments': ['7'],
    'env': {},
    'directory': '/',
    'output': os.devnull,
    'fresh': False,
  }
  others = [subprocess.Popen(['sleep', '1000'], user=61234) for _ in range(num_others)]
  with forking.ForkServer(['limited'], private=False) as server:
    for _ in range(2):
      with pytest.raises(forking.ForkServerFailed, match='^cannot fork: '):
        server._ask(request)
    for other in others:
      other.kill()
      other.wait()
    assert processes.Child(server._ask(request)).wait() == 7
    assert not psutil.Process(server._popen.pid).children()
