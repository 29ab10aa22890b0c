"""A program on a Ray cluster that it starts on this machine, and ends."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys

import psutil
import pytest

from r2d2_acme.workdir import status
from tests import helpers

pytest.importorskip('ray')
pytestmark = pytest.mark.timeout(900)

_PROGRAM = pathlib.Path(__file__).with_name('one_node.py')
_TIMEOUT = 400.0  # seconds, on a busy machine
_MARK = 'R2D2_RAY_TEST'  # an environment variable of all processes of the test


def _start(workdir: pathlib.Path) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, str(_PROGRAM), str(workdir)],
    env={**os.environ, 'PYTHONPATH': str(helpers.ROOT), _MARK: str(workdir)},
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
  )


def _wait_until_it_runs(workdir: pathlib.Path, program: subprocess.Popen):
  since = psutil.Process(program.pid).create_time()

  def runs() -> bool:
    assert program.poll() is None, program.communicate()[0]
    with contextlib.suppress(status.NoStatus):
      found = status.read(str(workdir))
      is_new = found.started_at > since  # not of the program before
      return is_new and found.nodes['learner/0'].state == 'running'
    return False

  helpers.wait_until(runs, _TIMEOUT)


def _left(workdir: pathlib.Path) -> list[psutil.Process]:
  """Returns the processes of the program, of Ray and of nodes."""
  found = []
  for process in psutil.process_iter():
    with contextlib.suppress(psutil.Error):
      if process.environ().get(_MARK) == str(workdir):
        found.append(process)
  return list(filter(helpers.is_alive, found))


def test_cluster_of_this_machine_ends_with_its_program_however_that_ends(tmp_path):
  program = _start(tmp_path)
  _wait_until_it_runs(tmp_path, program)
  program.kill()
  program.communicate()
  helpers.wait_until(lambda: not _left(tmp_path), 30)  # promised to the user

  program = _start(tmp_path)
  _wait_until_it_runs(tmp_path, program)
  program.send_signal(signal.SIGTERM)
  assert program.communicate(timeout=_TIMEOUT)[0].startswith('warning: on a Ray')
  assert program.returncode == 0
  assert not _left(tmp_path)

  (tmp_path / 'fail').touch()
  program = _start(tmp_path)
  out = program.communicate(timeout=_TIMEOUT)[0]
  assert program.returncode == 1
  assert 'RuntimeError: the ball is out of reach\nlearner/0 on ' in out
  assert 'failed with exit code 1; full output: ' in out
  assert out.splitlines()[-1].startswith('resume with: ')
  assert not _left(tmp_path)
  printed = (tmp_path / 'output' / 'learner' / '0').read_text()
  # Ray has shipped the package, and its workers yield to nobody.
  assert f'nice {os.nice(0)}, package /tmp/ray/session_' in printed
