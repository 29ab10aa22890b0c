"""The programs in `launch/` as processes: how they run, end, fail and go on.

Starts are dear, some 30 seconds of CPU time each, so one serves many tests, and each
goes on in the workdir of the one before.
"""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import psutil
import pytest

from r2d2_acme import checkpointing, runtime, sittings
from tests import helpers

pytestmark = pytest.mark.timeout(900)

_LAUNCH = pathlib.Path(__file__).parent.parent / 'launch'
_TIMEOUT = 240  # seconds to start in
_STOP_TIMEOUT = 20  # seconds; promised to the user
_SMALL = (
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
_NODES = {'replay/0', 'counter/0', 'learner/0', 'actor/0', 'evaluator/0'}
_ROW = re.compile(
  r'\[(Learner|Actor|Actor 1|Evaluator)\] (\w+( \w+)* = [-\d.]+( \| )?)+'
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
    with self._path.open('w') as file:
      self._popen = subprocess.Popen(
        [sys.executable, _LAUNCH / f'{script}.py', f'--workdir={workdir}', *flags],
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=subprocess.STDOUT,
        env={**environ, **(env or {})},
        start_new_session=True,
      )
    self._process = psutil.Process(self._popen.pid)

  @property
  def pid(self) -> int:
    return self._popen.pid

  @property
  def lines(self) -> list[str]:
    """What the user sees."""
    return self._path.read_text().splitlines()

  def nodes(self) -> dict[str, psutil.Process]:
    """Those that run, each by the file that it writes to."""
    prefix = f'{self.workdir}/output/'
    with contextlib.suppress(psutil.NoSuchProcess):
      for process in self._process.children(recursive=True):
        with contextlib.suppress(OSError):
          path = os.readlink(f'/proc/{process.pid}/fd/1')
          if path.startswith(prefix):
            self.seen[path.removeprefix(prefix)] = process
    return {name: p for name, p in self.seen.items() if _is_running(p)}

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
    deadline = time.time() + timeout
    while self._popen.poll() is None and time.time() < deadline:
      self.nodes()
      time.sleep(0.05)
    self.code = self._popen.wait(0)
    self.seconds = time.time() - self._started
    return self

  def kill(self):
    for process in [*self.nodes().values(), self._process]:
      with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
    self._popen.wait()


def _is_running(process: psutil.Process) -> bool:
  with contextlib.suppress(psutil.NoSuchProcess):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
  return False


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


_LOCAL_MP = '--lp_launch_type=local_mp'


@pytest.fixture(scope='module')
def terminated(workdir):
  """A first start, which learns until the user's SIGTERM."""
  with _started(workdir, _LOCAL_MP, '--env=CartPole-v1', *_SMALL) as program:
    program.wait_until(
      lambda: (
        len(program.rows('learner')) > 2
        and program.rows('actor')
        and program.rows('evaluator')
      )
    )
    program.visible_gpus = {
      name.split('/')[0]: process.environ().get('CUDA_VISIBLE_DEVICES')
      for name, process in program.nodes().items()
    }
    os.kill(program.pid, signal.SIGTERM)
    yield program.wait(_STOP_TIMEOUT)


@pytest.fixture(scope='module')
def without_counter(terminated, workdir):
  """A second, whose counter hangs, and is then killed."""
  num_rows = len(terminated.rows('learner'))
  with _started(workdir, _LOCAL_MP, '--noevaluator') as program:
    program.before = terminated.counts()
    program.wait_until(lambda: len(program.rows('learner')) > num_rows)
    program.first_row = program.rows('learner')[num_rows]
    counter = program.nodes()['counter/0']
    counter.suspend()
    time.sleep(3)  # by now all that ask it wait
    program.last_row = program.rows('learner')[-1]
    counter.kill()
    yield program.wait(_STOP_TIMEOUT)


@pytest.fixture(scope='module')
def limited(without_counter, workdir):
  """A third, with one more actor, to a number of learner steps."""
  before = without_counter.counts()
  limit = int(before['learner_steps']) + 20
  flags = (_LOCAL_MP, '--num_actors=2', f'--max_learner_steps={limit}', '--noevaluator')
  with _started(workdir, *flags) as program:
    program.before, program.limit = before, limit
    yield program.wait()


@pytest.fixture(scope='module')
def interrupted(limited, workdir):
  """A fourth, until the user's Ctrl-C."""
  num_rows = len(limited.rows('actor'))
  with _started(workdir, _LOCAL_MP, '--num_actors=1', '--noevaluator') as program:
    program.before = limited.counts()
    # Counts that are saved may be some seconds old.
    program.wait_until(lambda: len(program.rows('actor')) > num_rows)
    time.sleep(3)
    os.killpg(program.pid, signal.SIGINT)
    yield program.wait(_STOP_TIMEOUT)


_BROKEN_ENVIRONMENT = """
import gymnasium

class Broken(gymnasium.Env):
  observation_space = gymnasium.spaces.Box(-1, 1, (3,))
  action_space = gymnasium.spaces.Discrete(2)

  def reset(self, *, seed=None, options=None):
    return self.observation_space.sample(), {}

  def step(self, action):
    raise RuntimeError('the ball is out of reach')

gymnasium.register('Broken-v0', Broken)
"""


@pytest.fixture(scope='module')
def broken(tmp_path_factory):
  """One whose environment raises."""
  folder = tmp_path_factory.mktemp('broken')
  (folder / 'broken.py').write_text(_BROKEN_ENVIRONMENT)
  with _started(
    folder / 'run',
    *(_LOCAL_MP, '--env=broken:Broken-v0', '--noevaluator', *_SMALL),
    env={'PYTHONPATH': f'{folder}:{os.environ.get("PYTHONPATH", "")}'},
  ) as program:
    yield program.wait()


@pytest.fixture(scope='module')
def unsaved(tmp_path_factory):
  """One that cannot save any more when it is stopped."""
  workdir = tmp_path_factory.mktemp('unsaved') / 'run'
  flags = (_LOCAL_MP, '--env=CartPole-v1', '--noevaluator', *_SMALL)
  with _started(workdir, *flags) as program:
    program.wait_until(lambda: bool(program.rows('learner')))
    shutil.rmtree(workdir / 'checkpoints')
    (workdir / 'checkpoints').touch()
    os.kill(program.pid, signal.SIGTERM)
    yield program.wait(_STOP_TIMEOUT)


@pytest.fixture(scope='module')
def without_learner(tmp_path_factory):
  """One whose learner is killed while another node hangs."""
  workdir = tmp_path_factory.mktemp('without_learner') / 'run'
  flags = (_LOCAL_MP, '--env=CartPole-v1', '--noevaluator', *_SMALL)
  with _started(workdir, *flags, '--lp_termination_notice_secs=5') as program:
    program.wait_until(lambda: bool(program.rows('actor')))
    nodes = program.nodes()
    nodes['counter/0'].suspend()
    nodes['learner/0'].kill()
    yield program.wait(_STOP_TIMEOUT)


def test_sigterm_ends_it_with_code_0(terminated):
  assert terminated.code == 0


def test_sigterm_saves(terminated):
  *_, before, last = terminated.rows('learner')
  counts = terminated.counts()
  assert counts['learner_steps'] >= last['learner_steps']
  # Those of others may be a second or two old; the rows are five apart.
  assert counts['actor_steps'] >= before['actor_steps'] > 0
  assert counts['wall_time'] >= before['wall_time'] > 0


def test_only_the_learner_sees_the_gpu(terminated):
  gpus = dict(terminated.visible_gpus)
  assert gpus.pop('learner') == os.environ.get('CUDA_VISIBLE_DEVICES')
  assert gpus == dict.fromkeys(['replay', 'counter', 'actor', 'evaluator'], '-1')


def test_user_sees_rows_and_nothing_else(terminated, limited):
  for program in (terminated, limited):
    assert [line for line in program.lines if not _ROW.fullmatch(line)] == []


def test_user_sees_at_most_a_line_a_second_of_each_node(terminated):
  labels = [line[: line.index(']')] for line in terminated.lines]
  assert set(labels) == {'[Learner', '[Actor', '[Evaluator'}
  for label in set(labels):
    assert labels.count(label) <= terminated.seconds


def test_all_that_a_node_says_is_in_its_file(terminated):
  files = {f'{p.parent.name}/{p.name}' for p in terminated.workdir.glob('output/*/*')}
  assert _NODES <= files
  assert terminated.seen.keys() == _NODES


def test_resumed_program_counts_on(without_counter):
  before = without_counter.before
  row = without_counter.first_row
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
    assert set(numbers) == {0, 1, 2}


def test_dead_counter_ends_it_and_is_named(without_counter):
  assert without_counter.code == 1
  assert without_counter.lines[-1].startswith('counter/0 was killed by signal 9')


def test_learner_saves_although_the_counter_is_gone(without_counter):
  last = without_counter.last_row['learner_steps']
  assert without_counter.counts()['learner_steps'] >= last


def test_limit_of_learner_steps_ends_it_with_code_0(limited):
  assert limited.code == 0
  assert limited.counts()['learner_steps'] >= limited.limit
  # The counter looks once a second.
  assert limited.counts()['learner_steps'] < limited.limit + 1_000


def test_number_of_actors_may_change(limited):
  assert {'actor/0', 'actor/1'} <= limited.seen.keys()
  assert limited.rows('actor_1')


def test_ctrl_c_ends_it_with_code_0_and_no_traceback(interrupted):
  assert interrupted.code == 0
  assert [line for line in interrupted.lines if not _ROW.fullmatch(line)] == []


def test_ctrl_c_saves(interrupted):
  assert interrupted.counts()['actor_steps'] > interrupted.before['actor_steps']


def test_failing_environment_ends_it_and_is_the_last_thing_said(broken):
  assert broken.code == 1
  cause, last = broken.lines[-2:]
  assert cause == 'RuntimeError: the ball is out of reach'
  assert last == (
    f'actor/0 failed with exit code 1; all it said: {broken.workdir}/output/actor/0'
  )


def test_dead_learner_ends_it_and_is_named_although_another_node_hangs(without_learner):
  assert without_learner.code == 1
  assert without_learner.lines[-1].startswith('learner/0 was killed by signal 9')


def test_learner_that_cannot_save_at_the_end_is_named(unsaved):
  assert unsaved.code == 1
  assert unsaved.lines[-1].startswith('learner/0 failed with exit code 1')


@pytest.mark.parametrize(
  'name',
  [
    *('terminated', 'without_counter', 'limited', 'interrupted', 'broken'),
    *('without_learner', 'unsaved'),
  ],
)
def test_no_process_is_left(name, request):
  program = request.getfixturevalue(name)
  assert {'replay/0', 'counter/0', 'learner/0', 'actor/0'} <= program.seen.keys()
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


def test_single_process_runs_saves_and_resumes(tmp_path):
  flags = ('--env=CartPole-v1', '--max_learner_steps=3', *_SMALL)
  with _started(tmp_path / 'run', *flags, script='single_process') as first:
    first.wait()
  assert first.code == 0
  assert [line for line in first.lines if not _is_expected_of_one_process(line)] == []
  before = first.counts()
  assert before['learner_steps'] >= 3
  num_rows = len(first.rows('actor'))
  with _started(tmp_path / 'run', script='single_process') as second:
    second.wait_until(lambda: len(second.rows('actor')) > num_rows)
    os.kill(second.pid, signal.SIGTERM)
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
    second.wait(_STOP_TIMEOUT)
  assert second.code == 0
  assert len(second.rows('evaluator')) == len(rows)


def test_first_limit_of_threads_counts():
  """In `local_mt` each node sets one, in any order."""
  subprocess.run(
    [
      sys.executable,
      '-c',
      'from r2d2_acme import runtime\n'
      'runtime.limit_threads(3)\n'
      'runtime.limit_threads(1)\n'
      'import tensorflow as tf\n'
      'assert tf.config.threading.get_intra_op_parallelism_threads() == 3\n'
      'assert tf.config.threading.get_inter_op_parallelism_threads() == 3\n',
    ],
    check=True,
  )
