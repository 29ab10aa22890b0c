"""Fixtures that start programs of `launch/`, in forks of one that imports it all."""

import json
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

import pytest

from r2d2_acme.system import runtime
from tests import helpers

DISTRIBUTED = helpers.LAUNCH / 'atari_distributed.py'
# A user's, who has not imported what these tests have.
ENVIRON = {k: v for k, v in os.environ.items() if k not in runtime._ENVIRONMENT}
# Flags for small windows and a small network: each node does much in little time.
SMALL = (
  '--envs_per_actor=2',
  '--config.burn_in_length=2',
  '--config.trace_length=4',
  '--config.sequence_period=4',
  '--config.n_step=2',
  '--config.batch_size=4',
  '--config.conv_channels=(2,2,2)',
  '--config.torso_size=8',
  '--config.core_size=8',
  '--config.head_size=8',
  '--config.min_replay_size=20',
  '--config.samples_per_insert=1',
  '--config.samples_per_insert_tolerance=1',
  '--config.evaluation_period=0.5',
)

# Runs scripts, each in a fork of a process that has the imports behind it.
_SERVER = """
import json, os, runpy, signal, sys, time, traceback
import experiment_flags
from r2d2_acme import agent, experiment, program
from r2d2_acme.running import launching

for line in sys.stdin:
  request = json.loads(line)
  pid = os.fork()
  if pid:
    deadline = time.time() + request['seconds']
    ended, status = 0, 0
    while not ended:
      time.sleep(0.01)
      ended, status = os.waitpid(pid, os.WNOHANG)
      if not ended and time.time() > deadline:
        os.kill(pid, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(status), flush=True)
    continue
  code = 1
  try:
    os.chdir(request['folder'])
    for number in (1, 2):
      os.dup2(os.open(str(number), os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    sys.argv = request['argv']
    runpy.run_path(sys.argv[0], run_name='__main__')
  except SystemExit as error:
    code = error.code
  except BaseException:
    traceback.print_exc()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
"""


class Ended(NamedTuple):
  code: int
  out: str
  err: str


@pytest.fixture(scope='session')
def home(tmp_path_factory) -> pathlib.Path:
  """The user's, in these programs."""
  return tmp_path_factory.mktemp('home')


@pytest.fixture(scope='session')
def starter(home):
  with subprocess.Popen(
    [sys.executable, '-c', _SERVER],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    env={**ENVIRON, 'HOME': str(home), 'PYTHONPATH': str(helpers.LAUNCH)},
    text=True,
  ) as process:
    yield process
    process.stdin.close()


@pytest.fixture
def start(starter, tmp_path):
  """`start(*arguments)` runs a program of `launch/` in `tmp_path`.

  A program that takes longer than `seconds` is killed.
  """

  def start(
    *arguments: str, script: pathlib.Path = DISTRIBUTED, seconds: float = 60.0
  ) -> Ended:
    argv = [str(script), *arguments]
    request = json.dumps({'folder': str(tmp_path), 'argv': argv, 'seconds': seconds})
    starter.stdin.write(request + '\n')
    starter.stdin.flush()
    code = int(starter.stdout.readline())
    return Ended(code, *((tmp_path / str(i)).read_text() for i in (1, 2)))

  return start


@pytest.fixture
def refuse(start):
  """`refuse(*arguments)` is the one line that a start ends with."""

  def refuse(*arguments: str) -> str:
    ended = start(*arguments)
    assert ended.err.startswith('error: '), ended
    assert ended.err.count('\n') == 1
    assert ended.out == ''
    assert ended.code == 2
    return ended.err.rstrip('\n')

  return refuse
