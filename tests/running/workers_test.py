"""A node, in a process or a thread, is asked, ends, fails, and is started again."""

import signal

import launchpad as lp
import pytest
from absl import flags

from r2d2_acme.running import outputs, threads, workers
from r2d2_acme.system import forking, heartbeats, processes, stopping
from tests import helpers


@pytest.fixture
def family():
  with processes.Family(1.0) as family:
    yield family


@pytest.fixture
def make_process(family, tmp_path):
  """`make_process(code)` returns a worker that a shell's code runs in."""

  started = []

  def make(code: str) -> workers.ProcessWorker:
    output = outputs.Output(str(tmp_path / 'actor' / '0'))

    def start(env):
      with open(output.path, 'ab') as file:
        command = ['/bin/sh', '-c', code]
        popen = family.start('actor/0', command, env=env, stdout=file, stderr=file)
      started.append(popen)  # or `subprocess` would take its exit code
      return processes.Child(popen.pid)

    beats = heartbeats.Watched(str(tmp_path / 'beats' / '0'))
    return workers.ProcessWorker('actor/0', start, family, output, beats)

  return make


@pytest.fixture
def make_thread():
  flags.FLAGS(['test'])
  with stopping.Requests() as requests, requests.kept():
    yield lambda function: threads.ThreadWorker('actor/0', function)


def test_process_can_be_started_again(make_process):
  worker = make_process(
    f'echo "${workers.RESTARTS} ${heartbeats.VARIABLE}"; exec sleep 1000'
  )
  assert (worker.pid, worker.num_starts) == (None, 0)
  worker.start()
  first_pid, lines, output = worker.pid, [], worker._output
  beats = worker.heartbeat.path
  helpers.wait_until(
    lambda: lines.extend(output.new_lines()) or lines == [f'0 {beats}']
  )
  assert worker.poll() is None
  assert not workers.is_failed(worker)
  worker.kill()
  assert worker.poll() == -signal.SIGKILL
  assert workers.is_failed(worker)
  assert worker.describe_end() == 'was killed by signal 9, perhaps for want of memory'
  assert worker.describe_failure().splitlines() == [
    f'0 {beats}',
    f'actor/0 {worker.describe_end()}; full output: {output.path}',
  ]
  worker.start()
  assert worker.pid != first_pid
  assert worker.num_starts == 2
  helpers.wait_until(
    lambda: lines.extend(output.new_lines()) or lines[1:] == [f'1 {beats}']
  )
  worker.ask()
  helpers.wait_until(lambda: worker.poll() is not None)
  assert not workers.is_failed(worker)


@pytest.mark.parametrize(
  ('code', 'expected'),
  [
    ('true', 'ended although nobody asked it to'),
    ('exit 1', 'failed with exit code 1'),
    (f'exit {workers.FINAL_CODE}', 'failed for good'),
    ('kill -SEGV $$', 'was killed by signal 11'),
  ],
)
def test_process_that_ends_unasked_has_failed_whatever_its_code(
  make_process, code, expected
):
  worker = make_process(code)
  worker.start()
  helpers.wait_until(lambda: worker.poll() is not None)
  assert workers.is_failed(worker)
  assert worker.describe_end() == expected
  assert worker.describe_failure().startswith(f'actor/0 {expected}; full output: ')
  assert worker.describe_failure('hangs').startswith('actor/0 hangs; full output: ')


def test_first_start_that_fails_is_an_error(family, tmp_path):
  def start(env):
    raise forking.ForkServerFailed('cannot import numpy')

  worker = workers.ProcessWorker(
    'actor/0',
    start,
    family,
    outputs.Output(str(tmp_path / '0')),
    heartbeats.Watched(str(tmp_path / 'beats' / '0')),
  )
  with pytest.raises(forking.ForkServerFailed):
    worker.start()


def test_thread_can_be_started_again(make_thread):
  seen = []

  def run():
    seen.append(lp.stop_event().is_set())
    lp.wait_for_stop()

  worker = make_thread(run)
  for number in (1, 2):
    worker.start()
    helpers.wait_until(lambda: len(seen) == number)  # noqa: B023
    assert worker.poll() is None
    assert (worker.num_starts, worker.is_asked) == (number, False)
    worker.ask()
    helpers.wait_until(lambda: worker.poll() == 0)
    assert not workers.is_failed(worker)
  assert seen == [False, False]


def test_threads_are_asked_one_by_one(make_thread):
  first, second = make_thread(lp.wait_for_stop), make_thread(lp.wait_for_stop)
  first.start()
  second.start()
  first.ask()
  helpers.wait_until(lambda: first.poll() == 0)
  assert second.poll() is None
  second.ask()
  helpers.wait_until(lambda: second.poll() == 0)


def test_thread_that_fails_says_why(make_thread):
  def run():
    raise RuntimeError('the ball is out of reach')

  worker = make_thread(run)
  worker.start()
  helpers.wait_until(lambda: worker.poll() == 1)
  *trace, last = worker.describe_failure().splitlines()
  assert trace[0].startswith('Traceback')
  assert last == 'actor/0 failed: the ball is out of reach'
