"""The programs in `launch/` as processes: how they run, end, fail and go on.

Starts are dear, some 30 seconds of CPU time each, so one serves many tests, and each
goes on in the workdir of the one before.
"""

import contextlib
import fcntl
import os
import pathlib
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping

import psutil
import pytest

from r2d2_acme.running import launching
from r2d2_acme.system import runtime, stopping
from r2d2_acme.workdir import checkpointing, locking, sittings, status
from tests import helpers, starts

pytestmark = pytest.mark.timeout(900)

_LAUNCH = helpers.LAUNCH
_TIMEOUT = 240  # seconds to start in
_STOP_TIMEOUT = 20  # seconds; promised to the user
_SMALL = starts.SMALL
_NODES = {'replay/0', 'learner/0', 'actor/0', 'evaluator/0'}
_ROW = re.compile(
  r'\[(Learner|Actor|Actor 1|Evaluator)\] (\w+( \w+)* = (nan|[-\d.]+)( \| )?)+'
)


class _Program:
  """A program of `launch/` in a process group of its own, as from a terminal.

  Attributes:
    workdir: its workdir.
    pid: of the process that a user starts, and sees.
    code: its exit code.
    seconds: from start to end.
    seen: all nodes that were ever seen, by name, such as 'actor/0'.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    *flags: str,
    script: str = 'atari_distributed',
    env: Mapping[str, str] | None = None,
    nohup: bool = False,
    terminal: bool = False,
  ):
    self.workdir = workdir
    self.seen: dict[str, psutil.Process] = {}
    self.code = 0
    self.seconds = 0.0
    number = len(list(workdir.parent.glob('*.out')))
    self._path = workdir.with_name(f'{number}.out')
    self._started = time.time()
    # A user's, who has not imported what these tests have.
    environ = {k: v for k, v in os.environ.items() if k not in runtime._ENVIRONMENT}
    self._terminal = -1
    with contextlib.ExitStack() as stack:
      if terminal:
        self._terminal, child_side = pty.openpty()
        stack.callback(os.close, child_side)
      else:
        child_side = stack.enter_context(self._path.open('w')).fileno()

      def prepare():
        if terminal:
          fcntl.ioctl(child_side, termios.TIOCSCTTY, 0)
        if nohup:
          signal.signal(signal.SIGHUP, signal.SIG_IGN)

      self._popen = subprocess.Popen(
        [sys.executable, _LAUNCH / f'{script}.py', f'--workdir={workdir}', *flags],
        stdin=child_side if terminal else subprocess.DEVNULL,
        stdout=child_side,
        stderr=subprocess.STDOUT,
        env={**environ, **(env or {})},
        start_new_session=True,
        preexec_fn=prepare,
      )
    self._process = psutil.Process(self._popen.pid)

  @property
  def pid(self) -> int:
    return self._popen.pid

  @property
  def lines(self) -> list[str]:
    """What the user sees."""
    return self._path.read_text().splitlines()

  @property
  def cause(self) -> str:
    """Why it has failed: what comes before the command that resumes."""
    cause, command = self.lines[-2:]
    assert command.startswith('resume with: ')
    return cause

  def nodes(self) -> dict[str, psutil.Process]:
    """Those that run, each by the file that it writes to."""
    prefix = f'{self.workdir}/output/'
    with contextlib.suppress(psutil.NoSuchProcess):
      for process in self._process.children():  # not an environment's, of theirs
        with contextlib.suppress(OSError):
          path = os.readlink(f'/proc/{process.pid}/fd/1')
          if path.startswith(prefix):
            self.seen[path.removeprefix(prefix)] = process
    return {name: p for name, p in self.seen.items() if helpers.is_alive(p)}

  def rows(self, label: str) -> list[dict[str, float]]:
    return helpers.read_rows(self.workdir / 'logs' / label / 'logs.csv')

  def counts(self) -> dict[str, float]:
    return checkpointing.verify(str(self.workdir))

  def wait_until(self, condition: Callable[[], bool]):
    def is_so():
      self.nodes()
      assert self._popen.poll() is None, '\n'.join(self.lines)
      return condition()

    helpers.wait_until(is_so, timeout=_TIMEOUT)

  def wait(self, timeout: float = _TIMEOUT) -> '_Program':
    def has_ended() -> bool:
      self.nodes()
      return self._popen.poll() is not None

    helpers.wait_until(has_ended, timeout)
    self.code = self._popen.wait(0)
    self.seconds = time.time() - self._started
    return self

  def hang_up(self):
    """Closes its terminal: it gets SIGHUP, and whatever it prints is an error."""
    os.close(self._terminal)

  def kill(self):
    for process in [*self.nodes().values(), self._process]:
      with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
    self._popen.wait()


@contextlib.contextmanager
def _started(*arguments, **keywords) -> Iterator[_Program]:
  program = _Program(*arguments, **keywords)
  try:
    yield program
  finally:
    program.kill()


@pytest.fixture(scope='module')
def workdir(tmp_path_factory) -> pathlib.Path:
  return tmp_path_factory.mktemp('distributed') / 'run'


def _other_lines(program: _Program) -> list[str]:
  """What the user sees apart from the rows of the nodes."""
  return [line for line in program.lines if not _ROW.fullmatch(line)]


def _statuses(program: _Program) -> set[str]:
  return {process.status() for process in program.nodes().values()}


_LOCAL_MP = '--lp_launch_type=local_mp'

# Each has two processes of its own, in sessions of their own, one of them without any
# environment variable. They work in the folder of this file, and it notes whether it is
# closed.
_WORLDS = """
import ctypes, os, pathlib, subprocess
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

_FOLDER = pathlib.Path(__file__).parent

class Helped(CartPoleEnv):
  def __init__(self):
    super().__init__()
    self.helpers = [
      subprocess.Popen(['sleep', '1000'], cwd=_FOLDER, start_new_session=1, env=env)
      for env in (None, {})
    ]
    with open(_FOLDER / 'gpus', 'a') as file:
      print(os.getpid(), os.environ.get('CUDA_VISIBLE_DEVICES'), file=file)

  def step(self, action):
    if os.path.exists(os.environ.get('BREAK', '')):
      raise RuntimeError('the ball is out of reach')
    if os.path.exists(os.environ.get('HANG', '')):
      ctypes.PyDLL(None).sleep(1000)  # with Python's lock
    return super().step(action)

  def close(self):
    with open(_FOLDER / 'closed', 'a') as file:
      print(os.getpid(), file=file)
    for helper in self.helpers:
      helper.kill()
      helper.wait()

class Leaving(Helped):
  def close(self):
    pass

gymnasium.register('Helped-v0', Helped, max_episode_steps=500)
gymnasium.register('Leaving-v0', Leaving, max_episode_steps=500)
"""


@pytest.fixture(scope='module')
def worlds(tmp_path_factory) -> Mapping[str, str]:
  """The environment variables of a user who has environments of their own."""
  folder = tmp_path_factory.mktemp('worlds')
  (folder / 'worlds.py').write_text(_WORLDS)
  return {
    'PYTHONPATH': f'{folder}:{os.environ.get("PYTHONPATH", "")}',
    'TMPDIR': str(folder),
    'WORLDS': str(folder),
  }


def _helpers(worlds: Mapping[str, str]) -> list[psutil.Process]:
  """The processes of environments that run."""
  found = []
  for process in psutil.process_iter():
    with contextlib.suppress(psutil.Error):
      if process.name() == 'sleep' and process.cwd() == worlds['WORLDS']:
        found.append(process)
  return [process for process in found if helpers.is_alive(process)]


def _ports(program: _Program) -> list[int]:
  """The ports that its nodes listen on, in whatever network they are."""
  ports = set()
  for process in program.nodes().values():
    for version in ('tcp', 'tcp6'):
      lines = (
        pathlib.Path(f'/proc/{process.pid}/net/{version}').read_text().splitlines()
      )
      for fields in map(str.split, lines[1:]):
        if fields[3] == '0A':  # it listens
          ports.add(int(fields[1].rpartition(':')[2], 16))
  return sorted(ports)


def _can_connect(port: int) -> bool:
  with socket.socket() as client:
    return client.connect_ex(('127.0.0.1', port)) == 0


@pytest.fixture(scope='module')
def terminated(worlds, workdir):
  """A first start, which learns until the user's SIGTERM."""
  flags = (_LOCAL_MP, '--env=worlds:Helped-v0', *_SMALL)
  with _started(workdir, *flags, env=worlds) as program:
    program.wait_until(
      lambda: (
        len(program.rows('learner')) > 2
        and program.rows('actor')
        and program.rows('evaluator')
      )
    )
    gpus = pathlib.Path(worlds['WORLDS'], 'gpus').read_text().splitlines()
    pids = dict(line.split() for line in gpus)
    program.visible_gpus = {
      name: pids.get(str(process.pid)) for name, process in program.nodes().items()
    }
    program.reachable = {port: _can_connect(port) for port in _ports(program)}
    os.kill(program.pid, signal.SIGTSTP)  # Ctrl-Z
    helpers.wait_until(lambda: _statuses(program) == {psutil.STATUS_STOPPED})
    os.kill(program.pid, signal.SIGCONT)
    helpers.wait_until(lambda: psutil.STATUS_STOPPED not in _statuses(program))
    node_pids = {str(process.pid) for process in program.nodes().values()}
    program.num_helpers = len(_helpers(worlds))
    os.kill(program.pid, signal.SIGTERM)
    program.wait(_STOP_TIMEOUT)
    closed = pathlib.Path(worlds['WORLDS'], 'closed').read_text().split()
    program.num_closed = sum(pid in node_pids for pid in closed)
    yield program


@pytest.fixture(scope='module')
def without_replay(worlds, terminated, workdir):
  """A second, whose replay hangs, and is then killed."""
  num_rows = len(terminated.rows('learner'))
  flags = (_LOCAL_MP, '--noevaluator', '--config.max_restarts=0')
  with _started(workdir, *flags, env=worlds) as program:
    program.before = terminated.counts()
    program.wait_until(lambda: len(program.rows('learner')) > num_rows)
    program.first_row = program.rows('learner')[num_rows]
    replay = program.nodes()['replay/0']
    replay.suspend()
    time.sleep(3)  # by now all that ask it wait
    program.last_row = program.rows('learner')[-1]
    replay.kill()
    yield program.wait(_STOP_TIMEOUT)


@pytest.fixture(scope='module')
def limited(worlds, without_replay, workdir):
  """A third, with one more actor, to a number of learner steps."""
  before = without_replay.counts()
  limit = int(before['learner_steps']) + 20
  flags = (_LOCAL_MP, '--num_actors=2', f'--max_learner_steps={limit}', '--noevaluator')
  with _started(workdir, *flags, env=worlds) as program:
    program.before, program.limit = before, limit
    yield program.wait()


@pytest.fixture(scope='module')
def interrupted(worlds, limited, workdir):
  """A fourth, until the user's Ctrl-C."""
  num_rows = len(limited.rows('actor'))
  flags = (_LOCAL_MP, '--num_actors=1', '--noevaluator')
  with _started(workdir, *flags, env=worlds) as program:
    program.before = limited.counts()
    # Counts that are saved may be some seconds old.
    program.wait_until(lambda: len(program.rows('actor')) > num_rows)
    time.sleep(3)
    os.killpg(program.pid, signal.SIGINT)
    yield program.wait(_STOP_TIMEOUT)


@pytest.fixture(scope='module')
def orphaned(worlds, interrupted, workdir, tmp_path_factory):
  """A fifth, whose launcher is killed while all are suspended and a node hangs."""
  num_rows = len(interrupted.rows('learner'))
  folder = tmp_path_factory.mktemp('tmp')
  env = {**worlds, 'TMPDIR': str(folder), 'HANG': str(folder / 'hang')}
  with _started(workdir, _LOCAL_MP, '--noevaluator', env=env) as program:
    program.wait_until(lambda: len(program.rows('learner')) > num_rows)
    time.sleep(3)
    program.last_row = program.rows('learner')[-1]
    program.actor_pid = program.nodes()['actor/0'].pid
    (folder / 'hang').touch()
    time.sleep(1)
    os.kill(program.pid, signal.SIGTSTP)
    helpers.wait_until(lambda: _statuses(program) == {psutil.STATUS_STOPPED})
    os.kill(program.pid, signal.SIGKILL)
    helpers.wait_until(lambda: set(program.nodes()) == {'actor/0'}, _STOP_TIMEOUT)
    with pytest.raises(locking.WorkdirInUse) as program.refused:
      locking.hold_program(str(workdir))  # as a start does
    helpers.wait_until(lambda: not program.nodes(), _STOP_TIMEOUT)
    yield program.wait(0)


@pytest.fixture(scope='module')
def impatient(worlds, orphaned, workdir):
  """A sixth under nohup, which gets SIGHUP, and then Ctrl-C twice."""
  num_rows = len(orphaned.rows('learner'))
  flags = (_LOCAL_MP, '--noevaluator')
  with _started(workdir, *flags, env=worlds, nohup=True) as program:
    program.wait_until(lambda: len(program.rows('learner')) > num_rows)
    os.killpg(program.pid, signal.SIGHUP)
    time.sleep(2)
    program.survived = set(program.nodes())
    program.nodes()['replay/0'].suspend()
    os.killpg(program.pid, signal.SIGINT)
    time.sleep(1)
    os.killpg(program.pid, signal.SIGINT)
    again_at = time.time()
    program.wait(_STOP_TIMEOUT)
    program.seconds_to_quit = time.time() - again_at
    yield program


@pytest.fixture(scope='module')
def broken(worlds, tmp_path_factory):
  """One whose environment raises, and leaves a process behind when it is closed."""
  workdir = tmp_path_factory.mktemp('broken') / 'run'
  env = {**worlds, 'BREAK': __file__}  # from the start
  flags = (_LOCAL_MP, '--env=worlds:Leaving-v0', '--noevaluator', *_SMALL)
  flags += ('--config.max_restarts=0',)
  with _started(workdir, *flags, env=env) as program:
    yield program.wait()


@pytest.fixture(scope='module')
def unsaved(tmp_path_factory):
  """One that cannot save any more when its terminal is closed."""
  workdir = tmp_path_factory.mktemp('unsaved') / 'run'
  flags = (_LOCAL_MP, '--env=CartPole-v1', '--noevaluator', *_SMALL)
  with _started(workdir, *flags) as program:
    program.wait_until(lambda: bool(program.rows('learner')))
    shutil.rmtree(workdir / 'checkpoints')
    (workdir / 'checkpoints').touch()
    for _ in range(2):  # of the terminal, and of its shell
      os.killpg(program.pid, signal.SIGHUP)
      time.sleep(0.01)
    yield program.wait(_STOP_TIMEOUT)


@pytest.fixture(scope='module')
def without_learner(tmp_path_factory):
  """One whose learner is killed while another node hangs."""
  workdir = tmp_path_factory.mktemp('without_learner') / 'run'
  flags = (_LOCAL_MP, '--env=CartPole-v1', '--noevaluator', *_SMALL)
  flags += ('--lp_termination_notice_secs=5', '--config.max_restarts=0')
  with _started(workdir, *flags) as program:
    program.wait_until(lambda: bool(program.rows('actor')))
    nodes = program.nodes()
    nodes['replay/0'].suspend()
    nodes['learner/0'].kill()
    yield program.wait(_STOP_TIMEOUT)


def _wait_for_another(program: _Program, name: str, pid: int):
  """Waits until a node has started again, and the learner has written three rows."""
  program.wait_until(lambda: name in program.nodes() and program.seen[name].pid != pid)
  num_rows = len(program.rows('learner'))
  program.wait_until(lambda: len(program.rows('learner')) >= num_rows + 3)


_KILLED = ('actor/0', 'evaluator/0', 'cacher/0', 'replay/0', 'learner/0')


@pytest.fixture(scope='module')
def survivor(worlds, tmp_path_factory):
  """One whose nodes are each killed once, and one of which is suspended for long."""
  workdir = tmp_path_factory.mktemp('survivor') / 'run'
  flags = (_LOCAL_MP, '--env=worlds:Helped-v0', *_SMALL)
  flags += ('--config.progress_timeout=15', '--config.checkpoint_period=5')
  flags += ('--num_actors=2', '--config.actors_per_cacher=2')
  flags += ('--config.max_replay_size=200', '--config.variable_update_period=10')
  with _started(workdir, *flags, env=worlds) as program:
    program.steps_after = {}
    program.wait_until(
      lambda: len(program.rows('learner')) > 2 and bool(program.rows('evaluator'))
    )
    for name in _KILLED:
      process = program.nodes()[name]
      process.kill()
      _wait_for_another(program, name, process.pid)
      program.steps_after[name] = program.rows('learner')[-1]['learner_steps']
    process = program.nodes()['actor/0']
    process.suspend()
    _wait_for_another(program, 'actor/0', process.pid)
    # Those without any environment variable are left to the end of the program.
    marked = [helper for helper in _helpers(worlds) if helper.environ()]
    program.num_helpers = len(marked)
    os.kill(program.pid, signal.SIGTERM)
    yield program.wait(_STOP_TIMEOUT)


@pytest.fixture(scope='module')
def exhausted(worlds, tmp_path_factory):
  """One that has no restart left for an actor that is killed a second time."""
  workdir = tmp_path_factory.mktemp('exhausted') / 'run'
  flags = (_LOCAL_MP, '--env=worlds:Helped-v0', '--noevaluator', *_SMALL)
  flags += ('--config.max_restarts=1', '--max_learner_steps=100000')
  with _started(workdir, *flags, env=worlds) as program:
    program.wait_until(lambda: bool(program.rows('learner')))
    process = program.nodes()['actor/0']
    process.kill()
    _wait_for_another(program, 'actor/0', process.pid)
    program.nodes()['actor/0'].kill()
    yield program.wait(_STOP_TIMEOUT)


def test_sigterm_ends_it_with_code_0(terminated):
  assert terminated.code == 0


def test_nodes_are_suspended_and_go_on_with_the_launcher(terminated):
  assert terminated.seen.keys() == _NODES  # its fixture waits for both


@pytest.mark.skipif(os.geteuid() != 0, reason='may have no private network')
def test_nobody_outside_reaches_the_ports(terminated):
  assert len(terminated.reachable) >= 2  # of the replay and of the learner
  assert not any(terminated.reachable.values())


def test_sigterm_saves(terminated):
  *_, before, last = terminated.rows('learner')
  counts = terminated.counts()
  assert counts['learner_steps'] >= last['learner_steps']
  # Those of others may be a second or two old; the rows are five apart.
  assert counts['actor_steps'] >= before['actor_steps'] > 0
  assert counts['wall_time'] >= before['wall_time'] > 0


def test_nodes_that_act_do_not_see_the_gpu(terminated):
  for name in ('actor/0', 'evaluator/0'):
    assert terminated.visible_gpus[name] == '-1'


def test_user_sees_rows_and_nothing_else(limited):
  (resumed,) = _other_lines(limited)
  assert re.fullmatch(r'\[replay/0\] The replay goes on with [\d,]+ windows\.', resumed)


def test_user_who_stops_it_is_told_once_what_that_means(terminated, interrupted):
  for program in (terminated, interrupted):
    assert _other_lines(program)[-1:] == [stopping._STOPPING.strip()]
  assert len(_other_lines(terminated)) == 1


def test_user_sees_all_rows_of_the_evaluator_and_others_every_ten_seconds(terminated):
  rows = [line for line in terminated.lines if _ROW.fullmatch(line)]
  labels = [line[: line.index(']')] for line in rows]
  assert set(labels) == {'[Learner', '[Actor', '[Evaluator'}
  assert labels.count('[Evaluator') == len(terminated.rows('evaluator'))
  for label in ('[Learner', '[Actor'):
    assert labels.count(label) <= 1 + terminated.seconds / 10


def test_all_that_a_node_says_is_in_its_file(terminated):
  files = {f'{p.parent.name}/{p.name}' for p in terminated.workdir.glob('output/*/*')}
  assert _NODES <= files
  assert terminated.seen.keys() == _NODES


def test_resumed_program_counts_on(without_replay):
  before = without_replay.before
  row = without_replay.first_row
  assert row['learner_steps'] == before['learner_steps'] + 1
  assert row['actor_steps'] > before['actor_steps']
  assert row['wall_time'] > before['wall_time']


def test_resumed_program_goes_on_in_the_same_files(limited):
  for label in ('learner', 'actor', 'evaluator'):
    lines = (limited.workdir / 'logs' / label / 'logs.csv').read_text().splitlines()
    assert [line.startswith('actor_') for line in lines].count(True) == 1  # the header
  steps = [row['learner_steps'] for row in limited.rows('learner')]
  assert steps == sorted(steps)
  for label in ('learner', 'actor'):
    numbers = [row['sitting'] for row in limited.rows(label)]
    assert numbers == sorted(numbers)
    # Rows of the actor that no checkpoint counts may have been set aside.
    assert label == 'actor' or set(numbers) == set(range(int(numbers[-1]) + 1))
    assert numbers[-1] >= 2


def test_dead_and_silent_nodes_are_started_again(survivor):
  assert survivor.code == 0
  restarts = {**dict.fromkeys(_KILLED, 1), 'actor/0': 2, 'actor/1': 0}
  found = status.read(str(survivor.workdir))
  assert {name: node.restarts for name, node in found.nodes.items()} == restarts
  lines = [x for x in survivor.lines if x.startswith('[supervisor] event=restart')]
  assert [line.split()[2] for line in lines] == [
    f'node={name}' for name in (*_KILLED, 'actor/0')
  ]
  assert 'cause="made no progress for 15 s and was killed"' in lines[-1]
  last = survivor.rows('supervisor')[-1]
  for role in ('evaluator', 'cacher', 'replay', 'learner'):
    assert last[f'{role}_restarts'] == 1
  assert last['actor_restarts'] == 2


def test_counts_go_on_after_restarts(survivor):
  for label in ('actor', 'evaluator'):
    steps = [row['actor_steps'] for row in survivor.rows(label)]
    assert steps == sorted(steps)
  rows = survivor.rows('learner')
  assert {row['sitting'] for row in rows} == {0}
  # A learner that starts again goes back by what it has learned since its checkpoint.
  pairs = list(zip(rows, rows[1:], strict=False))
  back = [(a, b) for a, b in pairs if b['learner_steps'] < a['learner_steps']]
  assert len(back) <= 1
  for before, after in back:
    seconds = after['wall_time'] - before['wall_time']
    limit = (5 + 5 + seconds) * max(row['steps_per_second'] for row in rows)
    assert before['learner_steps'] - after['learner_steps'] < limit
  assert all(b['wall_time'] > a['wall_time'] for a, b in pairs)
  assert survivor.counts()['learner_steps'] >= rows[-1]['learner_steps']


def test_dead_nodes_leave_no_environments_behind(survivor):
  assert survivor.num_helpers == 5  # one for each environment of those that run


@pytest.mark.parametrize('name', ['cacher/0', 'learner/0'])
def test_actors_get_new_parameters_after_the_death_of_a(name, survivor):
  last = survivor.rows('learner')[-1]
  assert last['parameter_age'] < last['learner_steps'] - survivor.steps_after[name]


def test_used_up_budget_ends_it_with_a_command_that_resumes(exhausted, worlds):
  assert exhausted.code == 1
  assert exhausted.cause.startswith('actor/0 was killed by signal 9')
  command = exhausted.lines[-1].removeprefix('resume with: ')
  num_rows = len(exhausted.rows('learner'))
  with subprocess.Popen(
    f'exec {command}',
    shell=True,
    env={**os.environ, **worlds},
    stdin=subprocess.DEVNULL,
    stdout=subprocess.DEVNULL,
    start_new_session=True,
  ) as again:
    helpers.wait_until(lambda: len(exhausted.rows('learner')) > num_rows, _TIMEOUT)
    again.terminate()
    assert again.wait(_STOP_TIMEOUT) == 0
  before, after = exhausted.rows('learner')[num_rows - 1 : num_rows + 1]
  assert after['learner_steps'] > before['learner_steps']
  assert (before['sitting'], after['sitting']) == (0, 1)


def test_dead_replay_ends_it_and_is_named(without_replay):
  assert without_replay.code == 1
  assert without_replay.cause.startswith('replay/0 was killed by signal 9')


def test_learner_saves_although_the_replay_is_gone(without_replay):
  last = without_replay.last_row['learner_steps']
  assert without_replay.counts()['learner_steps'] >= last


def test_limit_of_learner_steps_ends_it_with_code_0(limited):
  assert limited.code == 0
  assert limited.counts()['learner_steps'] >= limited.limit
  # The learner looks once a second.
  assert limited.counts()['learner_steps'] < limited.limit + 1_000


def test_number_of_actors_may_change(limited):
  assert {'actor/0', 'actor/1'} <= limited.seen.keys()
  assert limited.rows('actor_1')


def test_ctrl_c_ends_it_with_code_0(interrupted):
  assert interrupted.code == 0


def test_ctrl_c_saves(interrupted):
  assert interrupted.counts()['actor_steps'] > interrupted.before['actor_steps']


def test_failing_environment_ends_it_and_is_the_last_thing_said(broken):
  assert broken.code == 1
  cause, last, _ = broken.lines[-3:]
  assert 'Leaving-v0 failed in step 1 of episode 1: RuntimeError: the ball' in cause
  assert last == (
    f'actor/0 failed for good; full output: {broken.workdir}/output/actor/0'
  )


def test_dead_learner_ends_it_and_is_named_although_another_node_hangs(without_learner):
  assert without_learner.code == 1
  killed, cause, _ = without_learner.lines[-3:]
  assert cause.startswith('learner/0 was killed by signal 9')
  assert killed == 'These nodes did not stop within 5 s and were killed: replay/0'


def test_learner_that_cannot_save_at_the_end_is_named(unsaved):
  assert unsaved.code == 1
  assert unsaved.cause.startswith('learner/0 failed for good')


@pytest.mark.parametrize(
  'name',
  [
    *('terminated', 'without_replay', 'limited', 'interrupted', 'orphaned'),
    *('impatient', 'broken', 'without_learner', 'unsaved'),
    *('survivor', 'exhausted'),
  ],
)
def test_no_process_is_left(name, worlds, request):
  program = request.getfixturevalue(name)
  assert {'replay/0', 'learner/0', 'actor/0'} <= program.seen.keys()
  assert not program.nodes()
  assert not _helpers(worlds)


def test_environments_are_closed_at_the_end(terminated):
  # Two environments of the actor and one of the evaluator.
  assert terminated.num_helpers == 2 * 3
  assert terminated.num_closed == 3


def test_folders_of_launchpad_are_removed(worlds, terminated, limited, broken):
  assert list(pathlib.Path(worlds['WORLDS']).glob('*/job.pkl')) == []


def test_learner_saves_when_the_launcher_is_killed(orphaned):
  last = orphaned.last_row['learner_steps']
  assert orphaned.counts()['learner_steps'] >= last


def test_start_is_refused_while_orphans_live(orphaned, impatient):
  assert f'(process {orphaned.actor_pid})' in str(orphaned.refused.value)
  assert impatient.rows('learner')  # a later start in the same workdir


def test_nohup_takes_no_notice_of_a_hangup(impatient):
  assert _NODES - {'evaluator/0'} <= impatient.survived


def test_second_ctrl_c_quits_at_once_with_code_130(impatient):
  assert impatient.code == 130
  assert impatient.seconds_to_quit < 5
  assert _other_lines(impatient).count(stopping._STOPPING.strip()) == 1


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize('when', ['at_once', 'while_importing'])
def test_stop_before_the_start_is_code_0(tmp_path, number, when):
  with _started(tmp_path / 'run', _LOCAL_MP, '--env=CartPole-v1', *_SMALL) as program:
    time.sleep({'at_once': 0.3, 'while_importing': 1.5}[when])
    os.killpg(program.pid, number)
    program.wait(_STOP_TIMEOUT)
  assert (program.code, program.lines) == (0, [])


@pytest.mark.parametrize(
  ('seconds', 'number'),
  [(0.0, signal.SIGTERM), (1.0, signal.SIGINT), (4.0, signal.SIGHUP)],
)
def test_stop_while_nodes_start_is_code_0(tmp_path, seconds, number):
  with _started(tmp_path / 'run', _LOCAL_MP, '--env=CartPole-v1', *_SMALL) as program:
    program.wait_until(lambda: bool(program.nodes()))
    time.sleep(seconds)
    os.killpg(program.pid, number)
    program.wait(_STOP_TIMEOUT)
    assert program.code == 0, program.lines
    others = [line for line in program.lines if not _ROW.fullmatch(line)]
    assert others == [stopping._STOPPING.strip()]
    assert not program.nodes()


def test_nodes_that_do_not_stop_in_time_are_named(tmp_path):
  flags = (_LOCAL_MP, '--env=CartPole-v1', '--noevaluator', *_SMALL)
  with _started(tmp_path / 'run', *flags, '--lp_termination_notice_secs=1') as program:
    program.wait_until(lambda: 'replay/0' in program.nodes())
    program.nodes()['replay/0'].suspend()
    os.kill(program.pid, signal.SIGTERM)
    program.wait(_STOP_TIMEOUT)
    assert program.code == 1
    assert program.cause.startswith('These nodes did not stop within 1 s and were ')
    assert 'replay/0' in program.cause
    assert not program.nodes()


def _is_expected_of_one_process(line: str) -> bool:
  # Reverb's server writes notices to stderr, here the user's.
  return bool(_ROW.fullmatch(line)) or line.startswith('[reverb/cc/')


def test_threads_of_one_process_run_to_the_limit(tmp_path):
  flags = ('--lp_launch_type=local_mt', '--env=CartPole-v1', *_SMALL)
  with _started(tmp_path / 'run', *flags, '--max_actor_steps=3000') as program:
    program.wait()
  assert program.code == 0
  assert program.rows('actor')
  assert program.counts()['actor_steps'] > 0


def test_failing_thread_lets_the_learner_save_and_is_the_last_thing_said(
  worlds, tmp_path
):
  flags = ('--lp_launch_type=local_mt', '--env=worlds:Helped-v0', '--noevaluator')
  flags = (*flags, '--config.max_environment_failures=0')
  env = {**worlds, 'BREAK': str(tmp_path / 'break')}
  with _started(tmp_path / 'run', *flags, *_SMALL, env=env) as program:
    program.wait_until(lambda: bool(program.rows('learner')))
    time.sleep(2)
    last = program.rows('learner')[-1]
    (tmp_path / 'break').touch()
    program.wait(_STOP_TIMEOUT + 5)
  assert program.code == 1
  assert program.cause.startswith('actor/0 failed: Helped-v0 failed in step ')
  assert 'RuntimeError: the ball is out of reach' in program.cause
  assert program.counts()['learner_steps'] >= last['learner_steps']
  assert not _helpers(worlds)


_BY_HAND = """
import signal, sys, threading
from r2d2_acme import Experiment, environments, make_program
from r2d2_acme.running import launching
from tests import helpers

def launch(workdir, steps):
  program = make_program(Experiment(
    helpers.make_config(), lambda seed: environments.make('CartPole-v1', seed=seed),
    workdir=workdir, evaluator=False, max_learner_steps=steps))
  return launching.launch(program, 'local_mt', workdir)

def in_a_thread():
  try:
    launch(sys.argv[1], 1)
  except RuntimeError as error:
    print(error)

thread = threading.Thread(target=in_a_thread)
thread.start()
thread.join()
print(launch(sys.argv[1], 5), launch(sys.argv[1], 10))
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


def test_launch_returns_its_code_to_a_script_twice_and_takes_the_main_thread(tmp_path):
  ended = subprocess.run(
    [sys.executable, '-c', _BY_HAND, str(tmp_path / 'run')],
    env={**os.environ, 'PYTHONPATH': f'{_LAUNCH.parent}:{_LAUNCH.parent.parent}'},
    stdout=subprocess.PIPE,
    text=True,
    timeout=_TIMEOUT,
  )
  refused, *lines = [
    line
    for line in ended.stdout.splitlines()
    if not _ROW.fullmatch(line) and not line.startswith('The replay goes on with ')
  ]
  assert 'main thread' in refused
  assert lines == ['0 0', 'True']
  assert ended.returncode == 0
  assert checkpointing.verify(str(tmp_path / 'run'))['learner_steps'] >= 10


_LEAVING = """
import os, signal, sys, time
import launchpad as lp
from r2d2_acme.running import launching, supervision

class Waiting:
  def run(self):
    lp.wait_for_stop()

class Leaving:
  def run(self):
    time.sleep(1)  # the others wait by now
    {leave}

program = lp.Program('leaving')
for name, node in (('waiting', Waiting), ('leaving', Leaving)):
  with program.group(name):
    program.add_node(lp.PyClassNode(node))
policy = supervision.UNSUPERVISED
sys.exit(launching.launch(program, {launch_type!r}, sys.argv[1], policy=policy))
"""


@pytest.mark.parametrize(
  ('launch_type', 'leave'),
  [
    ('local_mp', 'os._exit(0)'),
    ('local_mp', 'os.kill(os.getpid(), signal.SIGTERM); lp.wait_for_stop()'),
    ('local_mt', 'return'),
  ],
)
def test_node_that_ends_unasked_ends_the_program_whatever_its_code(
  tmp_path, launch_type, leave
):
  code = _LEAVING.format(launch_type=launch_type, leave=leave)
  ended = subprocess.run(
    [sys.executable, '-c', code, str(tmp_path / 'output')],
    stderr=subprocess.PIPE,
    text=True,
    timeout=60,
  )
  assert ended.returncode == 1
  last = ended.stderr.splitlines()[-1]
  assert last.startswith('leaving/0 ended although nobody asked it to')


def test_single_process_runs_saves_and_resumes(tmp_path):
  flags = ('--env=CartPole-v1', '--max_learner_steps=3', *_SMALL)
  with _started(tmp_path / 'run', *flags, script='single_process') as first:
    first.wait()
  assert first.code == 0
  assert [line for line in first.lines if not _is_expected_of_one_process(line)] == []
  before = first.counts()
  assert before['learner_steps'] >= 3
  num_rows = len(first.rows('actor'))
  # A terminal that is closed.
  with _started(tmp_path / 'run', script='single_process', terminal=True) as second:
    second.wait_until(lambda: len(second.rows('actor')) > num_rows)
    second.hang_up()
    second.wait(_STOP_TIMEOUT)
  assert second.code == 0
  first_row = second.rows('actor')[num_rows]
  assert first_row['actor_steps'] > before['actor_steps']
  assert first_row['wall_time'] > before['wall_time']
  assert [second.rows('actor')[i]['sitting'] for i in (num_rows - 1, num_rows)] == [
    0,
    1,
  ]
  after = second.counts()
  assert after['actor_steps'] > before['actor_steps']
  assert after['learner_steps'] >= before['learner_steps']


_ENDLESS_ENVIRONMENT = """
import gymnasium

class Endless(gymnasium.Env):
  observation_space = gymnasium.spaces.Box(-1, 1, (3,))
  action_space = gymnasium.spaces.Discrete(2)

  def reset(self, *, seed=None, options=None):
    return self.observation_space.sample(), {}

  def step(self, action):
    return self.observation_space.sample(), 1.0, False, False, {}

gymnasium.register('Endless-v0', Endless)
"""


def test_episode_that_never_ends_does_not_keep_one_process_from_training(tmp_path):
  (tmp_path / 'endless.py').write_text(_ENDLESS_ENVIRONMENT)
  env = {'PYTHONPATH': f'{tmp_path}:{os.environ.get("PYTHONPATH", "")}'}
  flags = ('--env=endless:Endless-v0', '--max_learner_steps=9', *_SMALL)
  flags += ('--config.max_evaluation_steps=70', '--config.evaluation_period=0.1')
  with _started(tmp_path / 'run', *flags, script='single_process', env=env) as first:
    first.wait()
  assert first.code == 0
  rows = first.rows('evaluator')
  assert rows
  for row in rows:
    assert row['episode_return'] == row['episode_length'] == 70
    assert row['is_cut'] == 1
  said = [line for line in first.lines if 'cut off' in line]
  assert len(said) == len(rows)
  # The limit is free to change. Where there is none, a stop is heeded.
  flags = ('--config.max_evaluation_steps=1000000000',)
  with _started(tmp_path / 'run', *flags, script='single_process', env=env) as second:
    second.wait_until(lambda: len(sittings.read(str(second.workdir))) == 2)
    time.sleep(5)  # by now it is in an episode of that many steps
    os.kill(second.pid, signal.SIGTERM)
    second.wait()  # it may be tracing the learner's step
  assert second.code == 0
  assert len(second.rows('evaluator')) == len(rows)


def test_first_limit_of_threads_counts():
  """In `local_mt` each node sets one, in any order."""
  subprocess.run(
    [
      sys.executable,
      '-c',
      'from r2d2_acme.system import runtime\n'
      'runtime.limit_threads(3)\n'
      'runtime.limit_threads(1)\n'
      'import tensorflow as tf\n'
      'assert tf.config.threading.get_intra_op_parallelism_threads() == 3\n'
      'assert tf.config.threading.get_inter_op_parallelism_threads() == 3\n',
    ],
    check=True,
  )


@pytest.mark.parametrize(
  'flags', [['--checkpoint=ckpt-3'], ['--checkpoint', 'best'], ['-checkpoint=best'], []]
)
def test_command_that_resumes_does_not_go_back_again(flags):
  others = ['python', 'launch.py', '--config.checkpoint_period=5']
  command = [*others[:2], *flags, *others[2:], '--workdir=runs/a b']
  assert launching._resuming(command) == [*others, '--workdir=runs/a b']


def test_launch_type_that_there_is_none_of_is_one_line():
  with pytest.raises(ValueError, match="'foo'.*local_mp, local_mt"):
    launching.launch(None, 'foo', '')
