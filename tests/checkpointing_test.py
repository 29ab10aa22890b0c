"""What a checkpoint brings back, and what happens when it is damaged."""

import collections
import itertools
import os
import pathlib
import shutil
from typing import NamedTuple

import numpy as np
import pytest
import sonnet as snt
import tensorflow as tf
import tree
from acme.utils import counting

from r2d2_acme import checkpointing, loggers
from r2d2_acme.builder import R2D2Builder
from r2d2_acme.learner import R2D2Learner
from r2d2_acme.types import Batch, Observation
from tests import helpers

_CONFIG = helpers.make_config(
  burn_in_length=0, trace_length=2, sequence_period=2, batch_size=4
)
_ROWS = _CONFIG.sequence_length + 1
_FOR_EVER = 1e9  # seconds


def _make_batch(seed: int) -> Batch:
  rng = np.random.default_rng(seed)
  rows, size = (_ROWS, _CONFIG.batch_size), _CONFIG.batch_size
  state = np.zeros((size, 3, _CONFIG.core_size), np.float32)
  batch = Batch(
    observations=Observation(
      observation=rng.normal(size=(*rows, 7)).astype(np.float32),
      action=rng.integers(helpers.NUM_ACTIONS, size=rows, dtype=np.int32),
      reward=rng.normal(size=rows).astype(np.float32),
    ),
    discount=np.ones(rows, np.float32),
    mask=np.ones(rows, np.float32),
    core_state=snt.LSTMState(state, state),
    learner_steps=np.zeros(size, np.int64),
    keys=np.arange(size, dtype=np.uint64),
    probabilities=np.full(size, 0.1),
    table_size=np.full(size, 10),
  )
  return tree.map_structure(tf.constant, batch)


class _Sitting(NamedTuple):
  learner: R2D2Learner
  counter: counting.Counter
  checkpointer: checkpointing.Checkpointer


def _sit_down(workdir: pathlib.Path, batches=(), period: float = _FOR_EVER) -> _Sitting:
  """As the program does."""
  counts = checkpointing.verify(str(workdir))
  learner = R2D2Builder(_CONFIG, helpers.make_spec(image=False)).make_learner(
    iter(batches)
  )
  checkpointer = checkpointing.Checkpointer(str(workdir), learner, counts, period)
  counter = loggers.WallTimeCounter(counts)
  return _Sitting(learner, counter, checkpointer)


def _state(learner: R2D2Learner):
  """Copies of all variables that decide what the learner does next."""
  with learner.locked:
    optimizer = learner.state['optimizer']
    return {
      'network': [v.numpy() for v in learner.state['network'].variables],
      'target': [v.numpy() for v in learner.state['target_network'].variables],
      'moments': [v.numpy() for v in (*optimizer.m, *optimizer.v)],
      'adam_step': optimizer.step.numpy(),
      'num_steps': learner.num_steps,
    }


def _differ(a, b) -> list[str]:
  def is_same(x, y):
    pairs = zip(tree.flatten(x), tree.flatten(y), strict=True)
    return all(np.array_equal(*pair) for pair in pairs)

  return [name for name in a if not is_same(a[name], b[name])]


class _Saved(NamedTuple):
  workdir: pathlib.Path
  states: dict[int, dict]  # by learner step; 1 … 4 were saved
  last: dict  # one step after the last that was saved


@pytest.fixture(scope='module')
def saved(tmp_path_factory) -> _Saved:
  """A first sitting: a checkpoint after each of 4 steps, and one step more."""
  workdir = tmp_path_factory.mktemp('first')
  sitting = _sit_down(workdir, [_make_batch(seed) for seed in range(5)])
  sitting.counter.increment(actor_steps=123)
  states = {}
  for step in (1, 2, 3, 4):
    sitting.learner.step()
    states[step] = _state(sitting.learner)
    if step == 1:  # always due
      sitting.checkpointer.save(sitting.counter.get_counts())
    else:
      sitting.checkpointer.save(force=True)
  sitting.learner.step()
  return _Saved(workdir, states, _state(sitting.learner))


@pytest.fixture
def workdir(saved, tmp_path) -> pathlib.Path:
  """A copy of the first sitting's."""
  return shutil.copytree(saved.workdir, tmp_path / 'workdir')


def _names(workdir: pathlib.Path) -> list[str]:
  return [os.path.basename(prefix) for prefix in checkpointing.find(str(workdir))]


def _contents(workdir: pathlib.Path) -> dict[str, bytes]:
  files = (path for path in workdir.rglob('*') if path.is_file())
  return {str(path.relative_to(workdir)): path.read_bytes() for path in files}


def test_files_are_where_the_next_start_looks_and_only_the_newest_are_kept(saved):
  folder = saved.workdir / 'checkpoints' / 'learner'
  assert str(folder) == checkpointing.directory(str(saved.workdir))
  assert sorted(path.name for path in folder.glob('*.index')) == [
    'ckpt-2.index',
    'ckpt-3.index',
    'ckpt-4.index',
  ]
  assert _names(saved.workdir) == ['ckpt-2', 'ckpt-3', 'ckpt-4']
  others = {path for path in saved.workdir.rglob('*') if folder not in path.parents}
  assert others == {folder, folder.parent}


def test_checkpoint_of_another_network_is_refused(workdir):
  builder = R2D2Builder(_CONFIG, helpers.make_spec(image=False))
  other = builder.make_learner(iter(()))
  # What an older version called otherwise.
  other.state['network'].renamed = snt.Linear(3)
  other.state['network'].renamed(tf.zeros([1, 2]))
  counts = checkpointing.verify(str(workdir))
  before = _contents(workdir)
  with pytest.raises(checkpointing.CheckpointError, match='ckpt-4 .* other variables'):
    checkpointing.Checkpointer(str(workdir), other, counts, _FOR_EVER)
  assert _contents(workdir) == before


def test_tenth_checkpoint_is_newer_than_the_ninth(tmp_path):
  folder = pathlib.Path(checkpointing.directory(str(tmp_path)))
  folder.mkdir(parents=True)
  for number in (10, 9):
    (folder / f'ckpt-{number}.index').touch()
  assert _names(tmp_path) == ['ckpt-9', 'ckpt-10']


def test_new_learner_goes_on_exactly_where_the_last_one_was(saved, workdir):
  # The learner draws nothing: what follows a checkpoint is the same, bit for bit.
  resumed = _sit_down(workdir, [_make_batch(4)])
  assert resumed.learner.num_steps == 4
  assert not _differ(_state(resumed.learner), saved.states[4])
  resumed.learner.step()
  assert not _differ(_state(resumed.learner), saved.last)


def test_what_is_compared_here_does_change(saved):
  assert _differ(saved.states[3], saved.states[4]) == [
    'network',
    'moments',
    'adam_step',
    'num_steps',
  ]
  network, target = saved.states[4]['network'], saved.states[4]['target']
  assert not all(map(np.array_equal, network, target))


def test_counts_come_back_with_the_learners_own_steps(workdir):
  counts = checkpointing.verify(str(workdir))
  assert counts['learner_steps'] == 4  # although the counts were told at 1
  assert counts['actor_steps'] == 123
  assert counts['wall_time'] > 0


def test_resumed_sitting_counts_on(workdir):
  before = checkpointing.verify(str(workdir))
  resumed = _sit_down(workdir, [_make_batch(4)])
  resumed.counter.increment(actor_steps=1)
  resumed.learner.step()
  resumed.checkpointer.save(resumed.counter.get_counts())
  after = checkpointing.verify(str(workdir))
  assert (after['learner_steps'], after['actor_steps']) == (5, 124)
  assert after['wall_time'] > before['wall_time']
  assert _names(workdir) == ['ckpt-3', 'ckpt-4', 'ckpt-5']


def test_sitting_without_a_step_saves_what_it_began_with(saved, workdir):
  before = checkpointing.verify(str(workdir))
  _sit_down(workdir).checkpointer.save(force=True)
  assert _names(workdir)[-1] == 'ckpt-5'
  assert checkpointing.verify(str(workdir)) == before
  assert not _differ(_state(_sit_down(workdir).learner), saved.states[4])


@pytest.mark.parametrize(('period', 'number'), [(_FOR_EVER, 1), (0.0, 3)])
def test_saves_once_a_period(tmp_path, period, number):
  sitting = _sit_down(tmp_path, period=period)
  for _ in range(3):
    sitting.checkpointer.save()
  assert len(_names(tmp_path)) == number


def test_empty_workdir_has_no_counts(tmp_path):
  assert checkpointing.verify(str(tmp_path)) == {}
  assert not os.listdir(tmp_path)


def _flip(path: pathlib.Path, share: float):
  data = bytearray(path.read_bytes())
  data[int(share * (len(data) - 1))] ^= 0x10
  path.write_bytes(data)


def _truncate(path: pathlib.Path, share: float):
  os.truncate(path, int(share * (path.stat().st_size - 1)))


def _remove(path: pathlib.Path, _):
  path.unlink()


def _biggest(workdir: pathlib.Path, pattern: str) -> pathlib.Path:
  folder = pathlib.Path(checkpointing.directory(str(workdir)))
  return max(folder.glob(pattern), key=lambda path: path.stat().st_size)


_DAMAGES = [
  ('data', _remove, None),  # without its index it is no checkpoint
  *itertools.product(['data', 'index'], [_flip, _truncate], [0.0, 0.5, 1.0]),
]


@pytest.mark.parametrize(('kind', 'damage', 'share'), _DAMAGES)
def test_damage_is_refused_and_nothing_is_deleted(workdir, kind, damage, share):
  damage(_biggest(workdir, f'ckpt-4.{kind}*'), share)
  before = _contents(workdir)
  with pytest.raises(checkpointing.CheckpointError) as error:
    checkpointing.verify(str(workdir))
  assert _contents(workdir) == before
  message = str(error.value)
  folder = checkpointing.directory(str(workdir))
  assert '\n' not in message
  assert f'{folder}/ckpt-4 is corrupt' in message
  assert message.endswith(f'--checkpoint={folder}/ckpt-3')


def test_flipped_bit_anywhere_in_the_data_is_seen(workdir):
  folder = pathlib.Path(checkpointing.directory(str(workdir)))
  paths = sorted(folder.glob('ckpt-4.data*'))
  assert len(paths) == 2
  for path in paths:
    data = path.read_bytes()
    for position in np.linspace(0, len(data) - 1, 100, dtype=int):
      flipped = bytearray(data)
      flipped[position] ^= 1
      path.write_bytes(flipped)
      with pytest.raises(checkpointing.CheckpointError):
        checkpointing.verify(str(workdir))
    path.write_bytes(data)
  checkpointing.verify(str(workdir))


def test_damage_to_the_only_checkpoint_names_another_cure(workdir):
  folder = pathlib.Path(checkpointing.directory(str(workdir)))
  for path in [*folder.glob('ckpt-2.*'), *folder.glob('ckpt-3.*')]:
    path.unlink()
  _flip(_biggest(workdir, 'ckpt-4.data*'), 0.5)
  with pytest.raises(checkpointing.CheckpointError, match='another --workdir'):
    checkpointing.verify(str(workdir))


@pytest.mark.parametrize('pointer', [None, '', 'model_checkpoint_path: "ckpt-3"'])
def test_newest_is_found_although_a_crash_lost_the_pointer_to_it(
  saved, workdir, pointer
):
  path = pathlib.Path(checkpointing.directory(str(workdir))) / 'checkpoint'
  path.unlink()
  if pointer is not None:
    path.write_text(pointer)
  resumed = _sit_down(workdir)
  assert not _differ(_state(resumed.learner), saved.states[4])
  resumed.checkpointer.save()
  assert _names(workdir) == ['ckpt-3', 'ckpt-4', 'ckpt-5']


def test_half_written_checkpoint_is_ignored(saved, workdir):
  folder = pathlib.Path(checkpointing.directory(str(workdir)))
  (folder / 'ckpt-5.data-00000-of-00001.tempstate123').write_bytes(b'half')
  assert checkpointing.verify(str(workdir))['learner_steps'] == 4


def test_go_back_resumes_the_earlier_one_and_keeps_the_later_ones(saved, workdir):
  before = _contents(workdir)
  _flip(_biggest(workdir, 'ckpt-4.data*'), 0.5)
  checkpointing.go_back(
    str(workdir), os.path.join(checkpointing.directory(str(workdir)), 'ckpt-2')
  )
  assert checkpointing.verify(str(workdir))['learner_steps'] == 2
  assert not _differ(_state(_sit_down(workdir).learner), saved.states[2])
  after = collections.Counter(os.path.basename(path) for path in _contents(workdir))
  assert after == collections.Counter(os.path.basename(path) for path in before)


def test_going_back_takes_a_name_too(workdir):
  checkpointing.go_back(str(workdir), 'ckpt-3')
  assert _names(workdir)[-1] == 'ckpt-3'


def test_what_was_set_aside_stays_when_going_back_again(workdir):
  folder = checkpointing.directory(str(workdir))
  for _ in range(2):
    checkpointing.go_back(str(workdir), os.path.join(folder, 'ckpt-3'))
    _sit_down(workdir).checkpointer.save(force=True)  # another ckpt-4
    assert _names(workdir)[-1] == 'ckpt-4'
  names = [os.path.basename(path) for path in _contents(workdir)]
  assert names.count('ckpt-4.index') == 3


def test_going_back_to_what_is_not_there_names_what_is(workdir):
  before = _contents(workdir)
  with pytest.raises(checkpointing.CheckpointError) as error:
    checkpointing.go_back(str(workdir), 'ckpt-7')
  folder = checkpointing.directory(str(workdir))
  assert str(error.value).endswith(f'{folder}/ckpt-3, {folder}/ckpt-4')
  assert _contents(workdir) == before
