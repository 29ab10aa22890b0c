"""`stopping.py`: how real processes react to signals."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from r2d2_acme.system import runtime, stopping
from tests import helpers

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@pytest.fixture
def run():
  """`run(code)` starts Python with that code, and waits until it prints 'ready'."""
  started = []

  def run(code: str, **keywords) -> subprocess.Popen:
    process = subprocess.Popen(
      [sys.executable, '-c', f'from r2d2_acme.system import stopping\n{code}'],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      **keywords,
    )
    started.append(process)
    assert process.stdout.readline() == 'ready\n'
    return process

  yield run
  for process in started:
    process.kill()
    process.communicate()


_AT_ONCE = """
import subprocess, time
child = subprocess.Popen(['sleep', '1000'], start_new_session=1, stderr=-3, stdout=-3)
stopping.end_at_once({arguments})
print('ready', flush=True)
while True:
  time.sleep(0.1)  # a signal just before a sleep is handled after it
"""


@pytest.mark.parametrize('number', _NUMBERS)
@pytest.mark.parametrize('code', [0, None])
def test_signal_ends_it_at_once_with_its_children_and_no_traceback(run, number, code):
  process = run(_AT_ONCE.format(arguments=f'{code}, "stopped\\n"'))
  (child,) = psutil.Process(process.pid).children()
  process.send_signal(number)
  out, err = process.communicate(timeout=10)
  assert process.returncode == (128 + number if code is None else code)
  assert (out, err) == ('', 'stopped\n')
  helpers.wait_until(lambda: not child.is_running() or child.status() == 'zombie')


def test_hangup_that_is_ignored_stays_ignored(run):
  process = run(
    _AT_ONCE.format(arguments='0'),
    preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
  )
  process.send_signal(signal.SIGHUP)
  time.sleep(0.5)
  assert process.poll() is None
  process.send_signal(signal.SIGTERM)
  assert process.wait(10) == 0


def test_what_is_printed_on_a_full_disk_is_lost_and_no_error():
  code = (
    'import os, sys; from r2d2_acme.system import stopping\n'
    'stopping.forgive_streams()\n'
    'for stream in (sys.stdout, sys.stderr):\n'
    '  for _ in range(3): print("x" * 100_000, file=stream, flush=True)\n'
    'os.dup2(int(sys.argv[1]), 1)\nprint("goes on")'
  )
  for unbuffered in ('', '1'):
    reader, writer = os.pipe()
    with open('/dev/full', 'w') as full, open(reader) as end:
      done = subprocess.run(
        [sys.executable, '-c', code, str(writer)],
        env={**os.environ, 'PYTHONUNBUFFERED': unbuffered},
        stdout=full,
        stderr=full,
        pass_fds=[writer],
      )
      os.close(writer)
      assert done.returncode == 0
      assert end.read().endswith('goes on\n')


_REQUESTS = """
import os, time
with stopping.Requests(on_quit=lambda: os._exit(130)) as requests:
  print('ready', flush=True)
  while not requests.stop:
    time.sleep(0.01)
  begun = time.monotonic()
  while time.monotonic() - begun < {saving}:
    time.sleep(0.1)
print('saved', flush=True)
"""


@pytest.mark.parametrize('number', [*_NUMBERS, signal.SIGUSR1])
def test_first_signal_asks_to_stop_and_says_so_unless_the_program_asks(run, number):
  process = run(_REQUESTS.format(saving=0))
  process.send_signal(number)
  out, err = process.communicate(timeout=10)
  assert (process.returncode, out) == (0, 'saved\n')
  assert err == ('' if number == signal.SIGUSR1 else stopping._STOPPING)


@pytest.mark.parametrize('second', _NUMBERS)
def test_second_signal_quits(run, second):
  process = run(_REQUESTS.format(saving=100))
  process.send_signal(signal.SIGINT)
  time.sleep(stopping._ONE_REQUEST + 0.2)
  process.send_signal(second)
  out, err = process.communicate(timeout=10)
  assert (process.returncode, out, err) == (130, '', stopping._STOPPING)


def test_several_signals_of_one_gesture_are_one(run):
  """A closed terminal sends SIGHUP, and its shell sends another."""
  process = run(_REQUESTS.format(saving=1))
  for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
    process.send_signal(number)
    time.sleep(0.01)
  out, err = process.communicate(timeout=10)
  assert (process.returncode, out, err) == (0, 'saved\n', stopping._STOPPING)


def test_handlers_are_restored():
  before = [signal.getsignal(n) for n in (*_NUMBERS, signal.SIGUSR1)]
  with stopping.Requests(message='') as requests:
    os.kill(os.getpid(), signal.SIGINT)
    assert requests.stop
    assert not requests.quit
  assert [signal.getsignal(n) for n in (*_NUMBERS, signal.SIGUSR1)] == before


def test_any_thread_may_ask():
  with stopping.Requests() as requests:
    thread = threading.Thread(target=requests.ask)
    thread.start()
    thread.join()
    assert requests.stop
    assert not requests.quit


def test_what_is_printed_to_nobody_is_lost_and_no_error(run):
  process = run(
    'stopping.end_at_once(0)\nprint("ready", flush=True)\ninput()\n'
    'for _ in range(3): print("x" * 100_000, flush=True)\n'
    'import os; os._exit(7)'
  )
  process.stdout.close()
  process.stdin.write('\n')
  process.stdin.flush()
  assert process.wait(10) == 7
  assert process.stderr.read() == ''


# Programs that have children and nothing to save.

_LAUNCH = helpers.LAUNCH
_PROGRAMS = {
  'atari_distributed.py': 0,
  'single_process.py': 0,
  'sweep.py': 0,
  'atari57.py': 0,
  'evaluate.py': 143,
  'plot.py': 143,
  'study.py': 143,
}


@pytest.mark.parametrize(('name', 'code'), _PROGRAMS.items())
def test_program_ends_quietly_in_its_first_moments(tmp_path, name, code):
  """Programs that save when they are stopped end with code 0, others with 128 + 15."""
  with subprocess.Popen(
    [sys.executable, _LAUNCH / name],
    cwd=tmp_path,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  ) as program:

    def is_ready() -> bool:
      with open(f'/proc/{program.pid}/status') as file:
        (caught,) = [line.split()[1] for line in file if line.startswith('SigCgt')]
      return bool(int(caught, 16) & 1 << (signal.SIGTERM - 1))

    helpers.wait_until(is_ready)
    program.send_signal(signal.SIGTERM)
    assert program.wait(10) == code
    assert 'Traceback' not in program.stdout.read()


def test_what_a_terminal_cannot_show_is_printed_as_escapes():
  code = (
    'import sys; from r2d2_acme.system import stopping; stopping.end_at_once()\n'
    'for stream in (sys.stdout, sys.stderr): print("ε ≤ 0.05 \\udcff", file=stream)'
  )
  for encoding, printed in (
    ('ascii', b'\\u03b5 \\u2264 0.05 \\udcff\n'),
    ('utf-8', 'ε ≤ 0.05 \\udcff\n'.encode()),
  ):
    ended = subprocess.run(
      [sys.executable, '-c', code],
      env={**os.environ, 'PYTHONIOENCODING': encoding},
      capture_output=True,
      check=True,
    )
    assert (ended.stdout, ended.stderr) == (printed, printed)


_ABLATION = ('ablation', '--cases=zero_state', '--max_steps=1000000', '--out=out')
_MEMORY = ('memory_tasks', '--tasks=memory/cue_recall/10', '--seeds=0')


@pytest.mark.parametrize(
  ('command', 'number', 'code'),
  [
    (_ABLATION, signal.SIGKILL, -9),
    (_ABLATION, signal.SIGTERM, 143),
    (_MEMORY, signal.SIGKILL, -9),
    (_MEMORY, signal.SIGHUP, 129),
  ],
  ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_runs_of_a_study_end_with_it(tmp_path, command, number, code):
  with subprocess.Popen(
    [sys.executable, _LAUNCH / 'study.py', *command, '--workdir=work'],
    cwd=tmp_path,
    env={k: v for k, v in os.environ.items() if k not in runtime._ENVIRONMENT},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  ) as program:
    process = psutil.Process(program.pid)
    runs: list[psutil.Process] = []

    def has_runs() -> bool:
      runs[:] = [
        child for child in process.children() if '--run=' in helpers.command_line(child)
      ]
      return bool(runs)

    helpers.wait_until(has_runs, timeout=120)
    program.send_signal(number)
    assert program.wait(10) == code
    helpers.wait_until(
      lambda: not any(r.is_running() and r.status() != 'zombie' for r in runs), 10
    )
    said = program.stdout.read()
  assert said in ('', 'Stopped. Start again to go on after the last finished run.\n')
  assert bool(said) == (code > 0)
