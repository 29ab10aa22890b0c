"""`launch/checkpoints.py` on a real run's workdir."""

import functools
import os
import pathlib
import shutil

import pytest

from r2d2_acme import environments
from r2d2_acme.agent import run_experiment
from r2d2_acme.experiment import Experiment
from tests import helpers

pytestmark = pytest.mark.timeout(200)

_CONFIG = helpers.make_config(envs_per_actor=2, evaluation_period=0.0)


def make_cue_recall(seed: int):
  return environments.make_cue_recall(seed=seed)


@pytest.fixture
def list_checkpoints(start):
  """`list_checkpoints(*arguments)` runs the program."""
  return functools.partial(start, script=helpers.LAUNCH / 'checkpoints.py')


@pytest.fixture(scope='module')
def workdir(tmp_path_factory) -> pathlib.Path:
  workdir = tmp_path_factory.mktemp('run')
  experiment = Experiment(_CONFIG, make_cue_recall, workdir=str(workdir))
  sizes = []

  for limit in (400, 600):
    run_experiment(
      Experiment(**{**vars(experiment), 'max_actor_steps': limit}),
      observe=lambda agent, steps: sizes.append(agent._num_restored),
    )
  assert sizes[0] == 0
  assert sizes[-1] > _CONFIG.min_replay_size  # the replay is resumed, too
  return workdir


def test_all_are_listed_and_damage_is_found(workdir, list_checkpoints):
  before = {path: path.stat().st_mtime_ns for path in workdir.rglob('*')}
  listed = list_checkpoints(f'--workdir={workdir}', '--verify')
  assert listed.code == 0, listed.err
  header, *lines = listed.out.splitlines()
  assert header.split()[:3] == ['name', 'steps', 'frames']
  learners = [line.split() for line in lines if line.startswith('ckpt-')]
  assert int(learners[-1][1]) > 0
  assert learners[-1][5] == 'replay-2'
  assert [x.split()[0] for x in lines if x.startswith('rep')] == [
    *('replay-1', 'replay-2')
  ]
  assert 'damaged' not in listed.out
  chunks = workdir / 'checkpoints/replay/replay-2/chunks.tfrecord'
  data = bytearray(chunks.read_bytes())
  data[len(data) // 2] ^= 1
  chunks.write_bytes(data)
  assert list_checkpoints(f'--workdir={workdir}').code == 0  # a cheap look
  verified = list_checkpoints(f'--workdir={workdir}', '--verify')
  assert verified.code == 1
  (line,) = [x for x in verified.out.splitlines() if 'damaged' in x]
  assert line.startswith('replay-2')
  os.truncate(chunks, 10)
  assert 'damaged' in list_checkpoints(f'--workdir={workdir}').out
  del before[chunks]
  after = {path: path.stat().st_mtime_ns for path in workdir.rglob('*')}
  assert before.items() <= after.items()


def test_checkpoints_of_a_lost_folder_are_damaged(workdir, tmp_path, list_checkpoints):
  copy = tmp_path / 'run'
  shutil.copytree(workdir, copy)
  shutil.rmtree(copy / 'checkpoints/learner')
  for flags, code in (([], 0), (['--verify'], 1)):
    listed = list_checkpoints(f'--workdir={copy}', *flags)
    assert listed.code == code, listed.err
    learners = [x.split() for x in listed.out.splitlines() if x.startswith('ckpt-')]
    assert learners
    assert all(line[-1] == 'damaged' for line in learners)


def test_file_that_a_running_program_deletes_is_damage(tmp_path, list_checkpoints):
  folder = tmp_path / 'checkpoints/learner'
  folder.mkdir(parents=True)
  (folder / 'ckpt-1.index').symlink_to('gone')  # it is listed, but has no size
  listed = list_checkpoints(f'--workdir={tmp_path}')
  assert listed.code == 0, listed.err
  assert listed.out.splitlines()[1].split() == [
    *('ckpt-1', '-', '-', '-', '0.0', '-', 'damaged')
  ]


def test_folder_without_checkpoints_is_bad_input(tmp_path, list_checkpoints):
  listed = list_checkpoints(f'--workdir={tmp_path}')
  assert listed.code == 2
  assert listed.err.count('\n') == 1
  assert 'there is no checkpoint in' in listed.err
