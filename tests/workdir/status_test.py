"""`status.json` says how a program is doing and how it ended, and is always whole."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from r2d2_acme.workdir import locking, status
from tests import helpers
from tests.running import progress_test

_TINY = helpers.ROOT / 'tests' / 'running' / 'tiny_program.py'
_TIMEOUT = 120  # seconds to start in
_NODES = {'replay/0', 'learner/0', 'actor/0', 'evaluator/0'}

pytestmark = pytest.mark.timeout(600)


def _read(workdir: pathlib.Path) -> status.Status | None:
  try:
    return status.read(str(workdir))
  except status.NoStatus:
    return None


def _states(workdir: pathlib.Path) -> dict[str, str]:
  found = _read(workdir)
  return {name: node.state for name, node in found.nodes.items()} if found else {}


def _start(workdir: pathlib.Path, launch_type: str) -> subprocess.Popen:
  """Starts a program and waits until all of its nodes run."""
  with open(workdir / 'out', 'w') as out:
    program = subprocess.Popen(
      [sys.executable, _TINY, workdir, launch_type], stdout=out, stderr=out
    )
  try:
    helpers.wait_until(
      lambda: _states(workdir) == dict.fromkeys(_NODES, 'running'), _TIMEOUT
    )
  except BaseException:
    program.kill()
    raise
  return program


def _print_status(*arguments) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, helpers.LAUNCH / 'status.py', *arguments],
    capture_output=True,
    text=True,
    timeout=60,
  )


class _Seen:
  """What was seen of a program that ran, and of its end.

  Attributes:
    workdir: its workdir.
    statuses: all that were read while it ran.
    pids: its processes then.
    printed: what launch/status.py printed then.
  """

  def __init__(self, workdir: pathlib.Path):
    self.workdir = workdir
    self.statuses: list[status.Status] = []


@pytest.fixture(scope='module')
def seen(tmp_path_factory) -> Iterator[_Seen]:
  """A program in processes, read as often as possible, until SIGTERM."""
  seen = _Seen(tmp_path_factory.mktemp('seen'))
  program = _start(seen.workdir, 'local_mp')
  try:
    process = psutil.Process(program.pid)
    seen.pids = {child.pid for child in process.children()}
    deadline = time.time() + 6
    while time.time() < deadline:
      seen.statuses.append(status.read(str(seen.workdir)))  # raises if it is not whole
    seen.printed = _print_status(f'--workdir={seen.workdir}')
    program.send_signal(signal.SIGSTOP)
    time.sleep(11)
    seen.suspended = _print_status(f'--workdir={seen.workdir}')
    program.send_signal(signal.SIGCONT)
    program.terminate()
    assert program.wait(30) == 0
    yield seen
  finally:
    program.kill()


def test_status_is_whole_and_fresh_while_it_is_rewritten_each_second(seen):
  times = sorted({x.written_at for x in seen.statuses})
  assert len(seen.statuses) > 10 * len(times)  # read far more often than written
  assert len(times) >= 3
  assert 0.9 <= (times[-1] - times[0]) / (len(times) - 1) <= 2.0


def test_status_names_nodes_and_their_processes(seen):
  for found in seen.statuses:
    assert found.nodes.keys() == _NODES
    assert {node.pid for node in found.nodes.values()} < seen.pids  # and the guard
    assert all(node.restarts == 0 for node in found.nodes.values())
    assert all(0 <= node.seconds_since_progress < 5 for node in found.nodes.values())


def test_status_counts(seen):
  first, last = seen.statuses[0], seen.statuses[-1]
  for name in ('actor_steps', 'actor_frames', 'learner_steps', 'wall_time'):
    assert last.counts[name] > first.counts[name] > 0
  # Ten rows a second, of 100 steps each, if the machine is not busy.
  assert 200 < last.rates['actor_steps'] <= 1100
  assert last.rates['learner_steps'] == pytest.approx(last.rates['actor_steps'] / 100)
  assert last.limits == {'learner_steps': 10_000}
  assert last.replay == {'size': 500, 'sampled_to_inserted': 1.25}
  assert len(last.evaluator_returns) == 10
  assert all(x == int(x) and 0 <= x < 7 for x in last.evaluator_returns)


def test_status_of_a_running_program_is_printed(seen):
  assert seen.printed.returncode == 0
  first, *_ = lines = seen.printed.stdout.splitlines()
  assert first.startswith('program    running for 0:')
  assert max(map(len, lines)) <= 80
  assert 'replay     500 windows, sampled/inserted 1.25' in seen.printed.stdout
  assert 'learner/0 running' in seen.printed.stdout


def test_suspended_program_is_told_from_a_killed_one(seen):
  assert 'suspended, or slow: silent for 0:00:1' in seen.suspended.stdout


def test_status_of_an_ended_program(seen):
  ended = status.read(str(seen.workdir))
  assert (ended.exit_code, ended.message) == (0, '')
  assert _states(seen.workdir) == dict.fromkeys(_NODES, 'ended')
  assert not status.is_running(str(seen.workdir), ended)
  printed = _print_status(f'--workdir={seen.workdir}')
  assert printed.returncode == 0
  assert printed.stdout.startswith('program    ended after 0:')
  assert 'ETA' not in printed.stdout


def test_status_of_a_failed_program_in_threads(tmp_path):
  program = _start(tmp_path, 'local_mt')
  try:
    assert {x.pid for x in status.read(str(tmp_path)).nodes.values()} == {program.pid}
    (tmp_path / 'fail-actor').touch()
    assert program.wait(30) == 1
  finally:
    program.kill()
  assert _states(tmp_path) == {**dict.fromkeys(_NODES, 'ended'), 'actor/0': 'failed'}
  printed = _print_status(f'--workdir={tmp_path}')
  first, *_, last = printed.stdout.splitlines()
  assert first.startswith('program    failed after 0:')
  assert last == 'actor/0 failed: the ball is out of reach'


def test_status_of_a_program_that_was_killed(tmp_path):
  program = _start(tmp_path, 'local_mp')
  assert status.is_running(str(tmp_path), status.read(str(tmp_path)))
  program.kill()
  program.wait()
  printed = _print_status(f'--workdir={tmp_path}')
  assert printed.stdout.startswith('program    killed after 0:')
  assert 'running' not in printed.stdout
  pids = [node.pid for node in status.read(str(tmp_path)).nodes.values()]
  helpers.wait_until(lambda: not any(map(helpers.is_alive, pids)), 30)


def test_status_that_cannot_be_written_does_not_end_the_program(tmp_path):
  (tmp_path / 'status.json.new').mkdir()
  with open(tmp_path / 'out', 'w') as out:
    program = subprocess.Popen(
      [sys.executable, _TINY, tmp_path, 'local_mt'], stdout=out, stderr=out
    )
  try:
    helpers.wait_until((tmp_path / 'logs' / 'evaluator').exists, _TIMEOUT)
    time.sleep(3)
    assert program.poll() is None
    program.terminate()
    assert program.wait(30) == 0
  finally:
    program.kill()
  assert not (tmp_path / 'status.json').exists()


def test_full_disk_leaves_the_old_status(tmp_path):
  old = progress_test.make_status()
  status.write(str(tmp_path), old)
  (tmp_path / 'status.json.new').symlink_to('/dev/full')
  with pytest.raises(OSError, match='No space'):
    status.write(str(tmp_path), progress_test.make_status(exit_code=0))
  assert status.read(str(tmp_path)) == old


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    (None, 'has no status.json: give the --workdir of a program that launch/atari_'),
    ('', 'cannot be read'),
    ('{', 'cannot be read'),
    ('[]', 'cannot be read'),
    ('{"nodes": {}}', 'cannot be read'),
    ('{"nodes": {"actor/0": {"pid": "x"}}}', 'cannot be read'),
  ],
)
def test_folder_that_is_no_run_is_one_line_and_code_2(tmp_path, text, expected):
  if text is not None:
    (tmp_path / 'status.json').write_text(text)
  printed = _print_status(f'--workdir={tmp_path}')
  assert (printed.returncode, printed.stdout) == (2, '')
  (line,) = printed.stderr.splitlines()
  assert line.startswith('error: ')
  assert expected in line


def test_values_of_other_types_are_refused(tmp_path):
  path = tmp_path / 'status.json'
  for name, value in (('counts', {'actor_steps': 'x'}), ('evaluator_returns', 3)):
    status.write(str(tmp_path), progress_test.make_status())
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(status.NoStatus, match=name):
      status.read(str(tmp_path))


@pytest.mark.parametrize(
  ('arguments', 'expected'),
  [
    ([], 'the following arguments are required: --workdir'),
    (['--workdir=/no/such/folder'], 'there is no folder /no/such/folder'),
    (['--workdir='], 'cannot be the path of a folder'),
    (['--workdir=/tmp', '--nonsense'], 'unrecognized arguments: --nonsense'),
  ],
)
def test_bad_input_is_one_line_and_code_2(arguments, expected):
  printed = _print_status(*arguments)
  assert printed.returncode == 2
  (line,) = printed.stderr.splitlines()
  assert expected in line


def test_lock_of_a_program_in_this_process_is_seen_and_kept(tmp_path):
  workdir = str(tmp_path)
  assert not locking.is_held(workdir)
  locking.hold_program(workdir)
  assert locking.is_held(workdir)
  code = f'from r2d2_acme.workdir import locking; print(locking.is_held({workdir!r}))'
  seen = subprocess.run(
    [sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, env=os.environ
  )
  assert seen.stdout == 'True\n'
