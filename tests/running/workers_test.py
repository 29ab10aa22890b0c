"""A node, in a process or a thread, is asked, ends, fails, and is started again."""

import signal

import launchpad as lp
import pytest
from absl import flags

from r2d2_acme.running import outputs, workers
from r2d2_acme.system import processes, stopping
from tests import helpers


@pytest.fixture
def family():
  with processes.Family(1.0) as family:
    yield family


@pytest.fixture
def make_thread():
  flags.FLAGS(['test'])
  with stopping.Requests() as requests, requests.kept():
    yield lambda function: workers.ThreadWorker('actor/0', function)


def test_process_can_be_started_again(family, tmp_path):
  output = outputs.Output(str(tmp_path / 'actor' / '0'))
  command = ['/bin/sh', '-c', 'echo "$GREETING"; exec sleep 1000']
  worker = workers.ProcessWorker(
    'actor/0', command, {'GREETING': 'hello'}, family, output
  )
  assert (worker.pid, worker.num_starts) == (None, 0)
  worker.start()
  first_pid, lines = worker.pid, []
  helpers.wait_until(lambda: lines.extend(output.new_lines()) or lines == ['hello'])
  assert worker.poll() is None
  assert not workers.is_failed(worker)
  worker.kill()
  assert worker.poll() == -signal.SIGKILL
  assert workers.is_failed(worker)
  assert 'actor/0 was killed by signal 9' in worker.describe_failure()
  worker.start()
  assert worker.pid != first_pid
  assert worker.num_starts == 2
  helpers.wait_until(lambda: lines.extend(output.new_lines()) or len(lines) == 2)
  worker.ask()
  helpers.wait_until(lambda: worker.poll() is not None)
  assert not workers.is_failed(worker)


def test_process_that_ends_unasked_has_failed_whatever_its_code(family, tmp_path):
  output = outputs.Output(str(tmp_path / 'actor' / '0'))
  worker = workers.ProcessWorker('actor/0', ['true'], {}, family, output)
  worker.start()
  helpers.wait_until(lambda: worker.poll() is not None)
  assert worker.poll() == 0
  assert workers.is_failed(worker)
  assert worker.describe_failure().startswith('actor/0 ended although nobody asked it')


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
