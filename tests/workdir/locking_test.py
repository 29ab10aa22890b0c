"""`locking.py`: which of several real processes may write in a workdir."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import acme
import pytest

from r2d2_acme import program
from r2d2_acme.agent import R2D2
from r2d2_acme.environments import make_cue_recall
from r2d2_acme.experiment import BadInput, Experiment
from r2d2_acme.workdir import locking, sittings
from tests import helpers

# Takes a lock, prints so, and keeps it until its input ends.
_HOLDER = """
import sys
sys.path.insert(0, {root!r})
from r2d2_acme.workdir import locking
try:
  {take}
except locking.WorkdirInUse as error:
  print(error, flush=True)
else:
  print('held', flush=True)
  sys.stdin.read()
"""
_ROOT = str(helpers.ROOT)
_PROGRAM = 'locking.hold_program({workdir!r})'
_LEARNER = 'locking.hold({workdir!r}, "learner")'
_ACTOR = 'locking.hold({workdir!r}, "actor", {index})'


@contextlib.contextmanager
def _holding(take: str, workdir: pathlib.Path, **values):
  """Yields the pid of a process that takes a lock, and its output."""
  code = take.format(workdir=str(workdir), **values)
  with subprocess.Popen(
    [sys.executable, '-c', _HOLDER.format(root=_ROOT, take=code)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    try:
      yield process.pid, process.stdout.readline().rstrip('\n')
    finally:
      process.kill()


@pytest.mark.parametrize(
  ('first', 'second'),
  [
    (_PROGRAM, _PROGRAM),
    (_LEARNER, _PROGRAM),
    (_ACTOR, _PROGRAM),
    (_LEARNER, _LEARNER),
    # A program's own nodes know its name; these processes do not.
    (_PROGRAM, _LEARNER),
  ],
)
def test_second_writer_is_refused_and_told_by_which_process(tmp_path, first, second):
  with _holding(first, tmp_path, index=70) as (pid, said):
    assert said == 'held'
    with _holding(second, tmp_path, index=0) as (_, said):
      assert f'another program runs in {tmp_path} (process {pid}): ' in said
      assert '--workdir' in said
  with _holding(second, tmp_path, index=0) as (_, said):
    assert said == 'held'  # the lock is free again


def test_nodes_of_one_program_hold_theirs_beside_it(tmp_path):
  locking.hold_program(str(tmp_path))
  takes = ((_LEARNER, 0), (_ACTOR, 0), (_ACTOR, 1), (_ACTOR, 200))
  with contextlib.ExitStack() as stack:
    for take, index in takes:
      _, said = stack.enter_context(_holding(take, tmp_path, index=index))
      assert said == 'held'


def test_node_waits_for_its_earlier_process_of_the_same_program(tmp_path):
  """It may be on a machine that was lost, and end later than it was replaced."""
  locking.hold_program(str(tmp_path))
  with _holding(_LEARNER, tmp_path) as (pid, _):
    killer = threading.Timer(0.5, os.kill, (pid, signal.SIGKILL))
    killer.start()
    start = time.monotonic()
    with _holding(_LEARNER, tmp_path) as (_, said):
      assert said == 'held'
    assert time.monotonic() - start > 0.4
    killer.join()


def test_own_lock_is_told_from_that_of_another_program(tmp_path):
  assert not locking.is_ours(str(tmp_path))
  assert not list(tmp_path.iterdir())
  locking.hold_program(str(tmp_path / 'ours'))
  assert locking.is_ours(str(tmp_path / 'ours'))
  with _holding(_PROGRAM, tmp_path / 'theirs'):
    assert not locking.is_ours(str(tmp_path / 'theirs'))


def test_release_ends_it_when_the_last_of_this_process_is_released(tmp_path):
  release, release_too = (locking.hold(str(tmp_path), 'learner') for _ in range(2))
  release()
  with _holding(_PROGRAM, tmp_path) as (_, said):
    assert f'process {os.getpid()}' in said
  release_too()
  with _holding(_PROGRAM, tmp_path) as (_, said):
    assert said == 'held'


def test_program_that_was_refused_holds_nothing(tmp_path):
  with _holding(_ACTOR, tmp_path, index=3):
    with pytest.raises(locking.WorkdirInUse):
      locking.hold_program(str(tmp_path))
  with _holding(_PROGRAM, tmp_path) as (_, said):
    assert said == 'held'


def test_lock_survives_further_locks_and_lookups_of_its_process(tmp_path):
  """POSIX locks are lost when their process closes any descriptor of the file."""
  locking.hold_program(str(tmp_path))
  locking.hold_program(str(tmp_path))
  locking.hold(str(tmp_path), 'evaluator')()
  with _holding(_PROGRAM, tmp_path) as (_, said):
    assert f'process {os.getpid()}' in said


def test_another_host_is_named(tmp_path):
  with _holding(_PROGRAM, tmp_path) as (pid, _):
    (tmp_path / 'lock').write_text('elsewhere:7\n')
    with pytest.raises(locking.WorkdirInUse, match=f'process {pid} of the host elsewh'):
      locking.hold_program(str(tmp_path))


def test_workdir_that_was_made_anew_is_locked_anew(tmp_path):
  workdir = tmp_path / 'run'
  locking.hold_program(str(workdir))
  os.remove(workdir / 'lock')
  workdir.rmdir()
  locking.hold_program(str(workdir))
  with _holding(_PROGRAM, workdir) as (_, said):
    assert f'process {os.getpid()}' in said


def test_agent_by_hand_keeps_others_out_as_long_as_it_lives(tmp_path):
  spec = acme.make_environment_spec(make_cue_recall(delay=1))
  config = helpers.make_config()
  agent = R2D2(spec, config, workdir=str(tmp_path))
  with _holding(_PROGRAM, tmp_path) as (_, said):
    assert f'process {os.getpid()}' in said
  with _holding(_LEARNER, tmp_path / 'other'):
    with pytest.raises(locking.WorkdirInUse):
      R2D2(spec, config, workdir=str(tmp_path / 'other'))
  del agent
  with _holding(_PROGRAM, tmp_path) as (_, said):
    assert said == 'held'


@pytest.mark.parametrize('holder', [_PROGRAM, _LEARNER])
def test_program_made_by_hand_is_refused_and_begins_no_sitting(tmp_path, holder):
  """Otherwise readers of the logs would cut off the other program's rows."""
  with _holding(holder, tmp_path) as (pid, _):
    with pytest.raises(BadInput, match=str(pid)):
      program.make_program(
        Experiment(
          helpers.make_config(), lambda seed: make_cue_recall(), workdir=str(tmp_path)
        )
      )
  assert sittings.read(str(tmp_path)) == []
