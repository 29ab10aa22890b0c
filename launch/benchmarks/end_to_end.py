"""Whole programs on this machine: env steps/s at the paper's replay ratio.

Both programs run at once, but all processes of one are suspended while the other is
measured.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

import psutil
import reverb

from benchmarks.measuring import SideFailed, progress
from benchmarks.report import ACME, OURS, Comparison
from r2d2_acme import config as config_lib

LAUNCH = pathlib.Path(__file__).parent.parent
_NUM_ACTORS = 2  # of either, on two cores
_RATIO = config_lib.paper().samples_per_insert
_MIN_REPLAY_SIZE = 100  # windows: learning begins soon
_SETTLE = 8.0  # seconds
_WAKE, _TURN = 0.5, 6.0  # seconds, before and while a turn counts
_START_TIMEOUT = 300.0  # seconds until the first learner step
_PORT = re.compile(r'Started replay server on port (\d+)')


def config(num_actors: int) -> config_lib.R2D2Config:
  """Of Acme's program; `our_program` has the same by its flags."""
  return dataclasses.replace(
    config_lib.laptop(),
    num_actors=num_actors,
    samples_per_insert=_RATIO,
    min_replay_size=_MIN_REPLAY_SIZE,
  )


def run(rounds: int) -> list[Comparison]:
  case = f'local_mp, pong, {_RATIO:g} samples per insert'
  programs = {OURS: our_program(_NUM_ACTORS), ACME: _acme_program()}
  samples = alternate_programs(case, programs, rounds)
  return [
    Comparison(
      case,
      'steps/s',
      samples,
      goal='>= 2.5 x Acme',
      note=(
        f'laptop network and windows; {_NUM_ACTORS} actors each, ours of '
        f"{config_lib.laptop().envs_per_actor} environments, Acme's of 1; ours "
        'multiplies the torso in bfloat16 where the CPU can'
      ),
    )
  ]


def alternate_programs(
  case: str, programs: Mapping[str, 'Program'], rounds: int
) -> dict[str, list[float]]:
  """Steps/s of each, over `rounds` turns; they start together.

  One number: replay takes windows in by bursts, and of Acme's program a turn saw 44,
  the next 88.

  Raises:
    SideFailed: one ended, or learns nothing.
  """
  with contextlib.ExitStack() as stack:
    progress(f'{case}: starting {", ".join(programs)}')
    for program in programs.values():
      stack.enter_context(program)
    for program in programs.values():
      program.wait_until_it_learns()
    for program in programs.values():
      program.settle()
    for i in range(rounds):
      progress(f'{case}: round {i + 1} of {rounds}')
      for program in programs.values():
        program.take_turn()
    return {name: [program.steps_per_second] for name, program in programs.items()}


def our_program(num_actors: int) -> 'Program':
  return Program(
    'ours',
    [
      str(LAUNCH / 'atari_distributed.py'),
      '--lp_launch_type=local_mp',
      '--game=pong',
      '--network=host',  # the replay is asked from outside
      '--noevaluator',
      f'--num_actors={num_actors}',
      f'--config.samples_per_insert={_RATIO}',
      '--config.full_action_space=True',  # as Acme's, which `emulator` makes
      f'--config.min_replay_size={_MIN_REPLAY_SIZE}',
    ],
  )


def _acme_program() -> 'Program':
  return Program(
    'Acme',
    [
      str(LAUNCH / 'benchmarks' / 'acme_program.py'),
      f'--num_actors={_NUM_ACTORS}',
    ],
  )


class Program:
  """A training program that can be suspended; runs inside `with`."""

  def __init__(self, name: str, command: Sequence[str]):
    self._name = name
    self._command = command
    self._windows = 0
    self._seconds = 0.0

  def __enter__(self) -> 'Program':
    self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    search_path = os.pathsep.join([str(LAUNCH), *filter(None, sys.path)])
    self._process = subprocess.Popen(
      [sys.executable, *self._command, f'--workdir={self._folder.name}'],
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      # What its processes would remove at their end, had they not been killed.
      env=os.environ | {'PYTHONPATH': search_path, 'TMPDIR': self._folder.name},
      text=True,
      start_new_session=True,  # the terminal's Ctrl-C reaches the benchmark only
    )
    return self

  def __exit__(self, *unused_exception):
    self._signal(signal.SIGKILL)
    self._process.wait()
    self._folder.cleanup()

  def wait_until_it_learns(self):
    """And suspends it then.

    Raises:
      SideFailed: it ended, or learns nothing.
    """
    log = pathlib.Path(self._folder.name, 'logs', 'learner', 'logs.csv')
    deadline = time.monotonic() + _START_TIMEOUT
    while not log.exists() or len(log.read_text().splitlines()) < 2:
      if self._process.poll() is not None:
        lines = self._process.communicate()[1].splitlines()
        raise SideFailed(f'{self._name}: it ended: {" / ".join(lines[-3:])}')
      if time.monotonic() > deadline:
        raise SideFailed(f'{self._name}: it learns nothing in {_START_TIMEOUT:.0f} s')
      time.sleep(0.5)
    output = pathlib.Path(self._folder.name, 'output', 'replay', '0').read_text()
    self._replay = reverb.Client(f'localhost:{_PORT.findall(output)[-1]}')
    self._signal(signal.SIGSTOP)

  def resume(self):
    """Lets it go on."""
    self._signal(signal.SIGCONT)

  def settle(self):
    """Runs it alone for a while."""
    self.resume()
    time.sleep(_SETTLE)
    self._signal(signal.SIGSTOP)

  def take_turn(self):
    """Resumes it for a while; counts the windows that replay takes in."""
    self.resume()
    time.sleep(_WAKE)
    windows, start = self._num_windows(), time.monotonic()
    time.sleep(_TURN)
    self._windows += self._num_windows() - windows
    self._seconds += time.monotonic() - start
    self._signal(signal.SIGSTOP)

  @property
  def steps_per_second(self) -> float:
    """Over all turns."""
    return self._windows * config_lib.laptop().sequence_period / self._seconds

  def nodes(self) -> dict[str, psutil.Process]:
    """Its processes, each by the file that it writes to, such as `actor/0`."""
    folder, nodes = f'{self._folder.name}/output/', {}
    for process in self.tree()[1:]:
      with contextlib.suppress(OSError):  # it ended
        path = os.readlink(f'/proc/{process.pid}/fd/1')
        if path.startswith(folder):
          nodes[path.removeprefix(folder)] = process
    return nodes

  @property
  def replay_size(self) -> int:
    """Windows in the table."""
    return self._table().current_size

  def _num_windows(self) -> int:
    return self._table().rate_limiter_info.insert_stats.completed

  def _table(self):
    (table,) = self._replay.server_info(timeout=60).values()
    return table

  def _signal(self, number: signal.Signals):
    tree = self.tree()  # some have process groups of their own
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._process.pid, number)  # and some have lost their parent
    for process in tree:
      with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)

  def tree(self) -> list[psutil.Process]:
    """Returns the process that was started, and all below it."""
    try:
      process = psutil.Process(self._process.pid)
      return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
      return []
