"""What a checkpoint restores, and what happens when it is damaged."""

import collections
import contextlib
import dataclasses
import errno
import itertools
import json
import os
import pathlib
import pickle
import resource
import shutil
import threading
import time
from typing import Any, NamedTuple

import numpy as np
import pytest
import sonnet as snt
import tensorflow as tf
import tree
from acme.utils import counting

from r2d2_acme.builder import R2D2Builder
from r2d2_acme.learning.learner import R2D2Learner
from r2d2_acme.types import Batch, Observation
from r2d2_acme.workdir import (
  checkpointing,
  loggers,
  manifests,
  paths,
  replay_checkpoints,
  saving,
)
from tests import helpers

_CONFIG = helpers.make_config(
  burn_in_length=0,
  trace_length=2,
  sequence_period=2,
  batch_size=4,
  checkpoint_period=1e-6,  # seconds: every checkpoint is due, and kept
)
_ROWS = _CONFIG.sequence_length + 1
_HOUR = 3600  # seconds
_NEVER = 1e9  # seconds: no checkpoint is due


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
  checkpointer: saving.Checkpointer


def _make_learner(batches=()) -> R2D2Learner:
  return R2D2Builder(_CONFIG, helpers.make_spec(image=False)).make_learner(
    iter(batches)
  )


def _sit_down(workdir: pathlib.Path, batches=(), **overrides: Any) -> _Sitting:
  """Starts a learner and its checkpointer as the program does."""
  counts = checkpointing.verify(str(workdir))
  learner = _make_learner(batches)
  checkpointer = saving.Checkpointer(
    str(workdir), learner, counts, dataclasses.replace(_CONFIG, **overrides)
  )
  counter = loggers.WallTimeCounter(counts)
  return _Sitting(learner, counter, checkpointer)


def _save_at(sitting: _Sitting, learner_step: int, **counts: float):
  """Sets the learner's number of steps and saves."""
  with sitting.learner.locked:
    sitting.learner.state['num_steps'].assign(learner_step)
  sitting.checkpointer.save({**sitting.counter.get_counts(), **counts}, force=True)


def _state(learner: R2D2Learner):
  """Copies all variables that decide what the learner does next."""
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
  states: dict[int, dict]  # keys are learner steps; 1 … 4 were saved
  last: dict  # the state one step after the last checkpoint


@pytest.fixture(scope='module')
def saved(tmp_path_factory) -> _Saved:
  """A first sitting of 5 steps, with a checkpoint after each of the first 4."""
  workdir = tmp_path_factory.mktemp('first')
  sitting = _sit_down(workdir, [_make_batch(seed) for seed in range(5)])
  sitting.counter.increment(actor_steps=123)
  states = {}
  for step in (1, 2, 3, 4):
    sitting.learner.step()
    states[step] = _state(sitting.learner)
    counts = sitting.counter.get_counts() if step == 1 else None
    sitting.checkpointer.save(counts, force=True)
  sitting.learner.step()
  return _Saved(workdir, states, _state(sitting.learner))


@pytest.fixture
def workdir(saved, tmp_path) -> pathlib.Path:
  """A copy of the first sitting's workdir."""
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
  named = {folder.parent / f'manifest-{number}.json' for number in (2, 3, 4)}
  assert others == {folder, folder.parent, *named}


def test_checkpoint_of_another_network_is_refused(workdir):
  builder = R2D2Builder(_CONFIG, helpers.make_spec(image=False))
  other = builder.make_learner(iter(()))
  # Names that older versions used.
  other.state['network'].renamed = snt.Linear(3)
  other.state['network'].renamed(tf.zeros([1, 2]))
  counts = checkpointing.verify(str(workdir))
  before = _contents(workdir)
  with pytest.raises(checkpointing.CheckpointError, match='ckpt-4 .* other variables'):
    saving.Checkpointer(str(workdir), other, counts, _CONFIG)
  assert _contents(workdir) == before


def test_tenth_checkpoint_is_newer_than_the_ninth(tmp_path):
  folder = pathlib.Path(checkpointing.directory(str(tmp_path)))
  folder.mkdir(parents=True)
  for number in (10, 9):
    (folder / f'ckpt-{number}.index').touch()
  assert _names(tmp_path) == ['ckpt-9', 'ckpt-10']


def test_new_learner_goes_on_exactly_where_the_last_one_was(saved, workdir):
  # The learner draws no random numbers, so a resumed run is the same, bit for bit.
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
  assert (
    counts['learner_steps'] == 4
  )  # although `save` was last given the counts of step 1
  assert counts['actor_steps'] == 123
  assert counts['wall_time'] > 0


def test_resumed_sitting_counts_on(workdir):
  before = checkpointing.verify(str(workdir))
  resumed = _sit_down(workdir, [_make_batch(4)])
  resumed.counter.increment(actor_steps=1)
  resumed.learner.step()
  resumed.checkpointer.save(resumed.counter.get_counts(), force=True)
  after = checkpointing.verify(str(workdir))
  assert (after['learner_steps'], after['actor_steps']) == (5, 124)
  assert after['wall_time'] > before['wall_time']
  assert _names(workdir) == ['ckpt-3', 'ckpt-4', 'ckpt-5']


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


def _empty(path: pathlib.Path, _):
  path.write_bytes(b'')


def _biggest(workdir: pathlib.Path, pattern: str) -> pathlib.Path:
  folder = pathlib.Path(checkpointing.directory(str(workdir)))
  return max(folder.glob(pattern), key=lambda path: path.stat().st_size)


_DAMAGES = [
  *itertools.product(['data', 'index'], [_remove, _empty], [None]),
  *itertools.product(['data', 'index'], [_flip, _truncate], [0.0, 0.5, 1.0]),
]


@pytest.mark.parametrize('has_manifest', [True, False])
@pytest.mark.parametrize(('kind', 'damage', 'share'), _DAMAGES)
def test_damaged_checkpoint_is_named_and_skipped_and_stays(
  saved, workdir, kind, damage, share, has_manifest
):
  if not has_manifest:  # as in a workdir of an older version
    for path in (workdir / 'checkpoints').glob('manifest-*.json'):
      path.unlink()
  damage(_biggest(workdir, f'ckpt-4.{kind}*'), share)
  before = _contents(workdir)
  for _ in range(2):  # the second start knows it
    lines: list[str] = []
    counts = checkpointing.verify(str(workdir), lines.append)
    assert counts['learner_steps'] == 3
    (line,) = lines
    assert '\n' not in line
    assert f'{checkpointing.directory(str(workdir))}/ckpt-4 ' in line
    assert line.endswith('damaged before: it is skipped and left as it is') == bool(_)
  sitting = _sit_down(workdir)
  assert not _differ(_state(sitting.learner), saved.states[3])
  for step in (4, 5, 6, 7):
    _save_at(sitting, step)
  after = _contents(workdir)
  damaged = [name for name in before if '/ckpt-4.' in name]
  assert damaged
  assert {name: after[name] for name in damaged} == {x: before[x] for x in damaged}
  assert checkpointing.verify(str(workdir), lines.append)['learner_steps'] == 7
  assert len(lines) == 1
  with pytest.raises(checkpointing.CheckpointError, match=r'ckpt-4|no checkpoint'):
    checkpointing.go_back(str(workdir), 'ckpt-4')
  assert _contents(workdir) == after


def test_flipped_bit_anywhere_in_the_data_is_seen(workdir):
  folder = pathlib.Path(checkpointing.directory(str(workdir)))
  paths = sorted(folder.glob('ckpt-4.data*'))
  assert len(paths) == 1
  for path in paths:
    data = path.read_bytes()
    for position in np.linspace(0, len(data) - 1, 100, dtype=int):
      flipped = bytearray(data)
      flipped[position] ^= 1
      path.write_bytes(flipped)
      with pytest.raises(checkpointing.Damaged):  # without the sums of a manifest, too
        checkpointing.check(str(folder / 'ckpt-4'), {})
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
  if pointer is not None:
    path.write_text(pointer)
  resumed = _sit_down(workdir)
  assert not _differ(_state(resumed.learner), saved.states[4])
  _save_at(resumed, 5)
  assert _names(workdir) == ['ckpt-3', 'ckpt-4', 'ckpt-5']


def test_checkpoint_that_another_one_replaces_is_in_no_manifest(workdir):
  resumed = _sit_down(workdir)  # at the step of `ckpt-4`
  resumed.counter.increment(actor_steps=1)
  resumed.checkpointer.save(resumed.counter.get_counts(), force=True)
  assert _names(workdir)[-1] == 'ckpt-5'
  named = [manifest.learner for manifest in manifests.read_sound(str(workdir)).values()]
  assert named == _names(workdir)
  assert 'ckpt-4' not in named


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


def test_going_back_to_the_newest_changes_nothing(workdir):
  before = sorted(workdir.rglob('*'))
  checkpointing.go_back(str(workdir), 'ckpt-4')
  assert sorted(workdir.rglob('*')) == before


def test_what_was_set_aside_stays_when_going_back_again(workdir):
  folder = checkpointing.directory(str(workdir))
  for _ in range(2):
    checkpointing.go_back(str(workdir), os.path.join(folder, 'ckpt-3'))
    _save_at(_sit_down(workdir), 4)  # a second ckpt-4
    assert _names(workdir)[-1] == 'ckpt-4'
  names = [os.path.basename(path) for path in _contents(workdir)]
  assert names.count('ckpt-4.index') == 3


def test_manifests_and_the_replay_of_later_checkpoints_are_set_aside(tmp_path):
  sitting = _sit_down(tmp_path)
  for step in (1, 2, 3):
    _save_at(sitting, step)
    folder = (
      pathlib.Path(replay_checkpoints.directory(str(tmp_path))) / f'replay-{step}'
    )
    folder.mkdir(parents=True)
    sitting.checkpointer.note_replay(manifests.Replay(folder.name, {}, {}))
  known = [replay.name for replay in replay_checkpoints.find_known(str(tmp_path))]
  assert known == ['replay-3', 'replay-2', 'replay-1']
  checkpointing.go_back(str(tmp_path), 'ckpt-2')
  newest = [*manifests.read_sound(str(tmp_path)).values()][-1]
  assert newest.learner == 'ckpt-2'
  assert [replay.name for replay in newest.replays] == ['replay-2', 'replay-1']
  assert checkpointing.verify(str(tmp_path))['learner_steps'] == 2
  folder = pathlib.Path(checkpointing.directory(str(tmp_path)))
  aside = {path.name for path in folder.glob('set_aside_*/*')}
  assert {'ckpt-3.index', 'manifest-6.json', 'replay-3'} <= aside


def test_saves_after_a_failed_one_wait_for_the_period(tmp_path):
  sitting = _sit_down(tmp_path, checkpoint_period=0.5, num_best_episodes=1)
  _observe(sitting, 1)  # due at once
  with _full_disk():
    with pytest.raises(checkpointing.CheckpointError):
      sitting.checkpointer.save()
    sitting.checkpointer.save()  # does not try
  sitting.checkpointer.save()
  assert not _names(tmp_path)
  time.sleep(0.6)
  sitting.checkpointer.save()
  assert _read_best(tmp_path)['checkpoint'] == 'ckpt-1'


def test_going_back_to_what_is_not_there_names_what_is(workdir):
  before = _contents(workdir)
  with pytest.raises(checkpointing.CheckpointError) as error:
    checkpointing.go_back(str(workdir), 'ckpt-7')
  assert str(error.value).endswith('there are: ckpt-2, ckpt-3, ckpt-4')
  assert _contents(workdir) == before


# When checkpoints are saved and which are kept.


def test_start_and_stop_without_a_step_write_nothing(workdir):
  before = _contents(workdir)
  for _ in range(3):
    sitting = _sit_down(workdir)
    sitting.checkpointer.save(sitting.counter.get_counts())
    sitting.checkpointer.save(sitting.counter.get_counts(), force=True)
  assert _contents(workdir) == before


def test_short_sittings_that_only_acted_lose_no_step_and_no_count(saved, workdir):
  for _ in range(3):
    sitting = _sit_down(workdir)
    sitting.counter.increment(actor_steps=10)
    sitting.checkpointer.save(sitting.counter.get_counts(), force=True)
  steps = [
    checkpointing.read_counts(prefix)['learner_steps']
    for prefix in checkpointing.find(str(workdir))
  ]
  assert steps == [2, 3, 4]
  assert checkpointing.verify(str(workdir))['actor_steps'] == 123 + 3 * 10
  assert not _differ(_state(_sit_down(workdir).learner), saved.states[4])


def test_counts_from_before_the_first_learner_step_are_saved_once(tmp_path):
  sitting = _sit_down(tmp_path)
  for steps in (5, 10):
    sitting.checkpointer.save({'actor_steps': steps}, force=True)
  assert _names(tmp_path) == ['ckpt-2']
  assert checkpointing.verify(str(tmp_path))['actor_steps'] == 10


def test_first_save_comes_a_period_after_the_start(tmp_path):
  sitting = _sit_down(tmp_path, checkpoint_period=0.5)
  sitting.checkpointer.save({'actor_steps': 1})
  assert not _names(tmp_path)
  time.sleep(0.6)
  sitting.checkpointer.save({'actor_steps': 1})
  sitting.checkpointer.save({'actor_steps': 2})
  assert checkpointing.verify(str(tmp_path))['actor_steps'] == 1


@pytest.mark.parametrize('number', [1, 2, 5])
def test_so_many_of_the_newest_are_kept(tmp_path, number):
  sitting = _sit_down(tmp_path, num_checkpoints=number)
  for step in range(1, 7):
    _save_at(sitting, step)
  assert _names(tmp_path) == [f'ckpt-{i}' for i in range(7 - number, 7)]


@pytest.mark.parametrize(
  ('period', 'kept'), [(0, []), (1, [3, 5, 7]), (1.2, [4, 7]), (2, [5])]
)
def test_one_is_kept_every_so_many_hours_of_the_run_over_all_sittings(
  tmp_path, period, kept
):
  config = dataclasses.replace(
    _CONFIG, checkpoint_keep_period=period, num_checkpoints=1
  )
  learner = _make_learner()
  for step in range(1, 10):  # each in its own sitting, half an hour apart
    checkpointer = saving.Checkpointer(str(tmp_path), learner, {}, config)
    with learner.locked:
      learner.state['num_steps'].assign(step)
    wall_time = (step - 1) / 2 * _HOUR  # exact
    checkpointer.save({'wall_time': wall_time}, force=True)
  assert _names(tmp_path) == [f'ckpt-{i}' for i in [*kept, 9]]


def test_short_sittings_leave_the_checkpoints_of_a_long_one(tmp_path):
  learner = _make_learner()

  def sit(*minutes: float, **overrides: Any):
    counts = checkpointing.verify(str(tmp_path))
    config = dataclasses.replace(_CONFIG, checkpoint_period=120, **overrides)
    checkpointer = saving.Checkpointer(str(tmp_path), learner, counts, config)
    for minute in minutes:
      with learner.locked:
        learner.state['num_steps'].assign(learner.num_steps + 1)
      checkpointer.save({'wall_time': 60 * minute}, force=True)

  sit(*range(2, 52, 2))
  assert _names(tmp_path) == ['ckpt-23', 'ckpt-24', 'ckpt-25']
  for number, minute in enumerate((50.1, 50.2, 50.3), start=26):
    sit(minute)
    assert _names(tmp_path) == ['ckpt-24', 'ckpt-25', f'ckpt-{number}']
  sit(52.4)  # 2 periods after ckpt-25, over 1 after ckpt-28
  assert _names(tmp_path) == ['ckpt-24', 'ckpt-25', 'ckpt-29']


def test_none_more_an_hour_leaves_those_that_were_kept(tmp_path):
  learner = _make_learner()
  for step, period in enumerate([1, 1, 1, 1, 0, 0, 0], start=1):
    config = dataclasses.replace(
      _CONFIG, checkpoint_keep_period=period, num_checkpoints=1
    )
    checkpointer = saving.Checkpointer(str(tmp_path), learner, {}, config)
    with learner.locked:
      learner.state['num_steps'].assign(step)
    checkpointer.save({'wall_time': step * _HOUR}, force=True)
  # The fourth was kept only because it was the newest at that time.
  assert _names(tmp_path) == ['ckpt-1', 'ckpt-2', 'ckpt-3', 'ckpt-7']


def test_files_of_the_users_stay(workdir):
  notes = workdir / 'checkpoints/learner/ckpt-2.notes.txt'
  notes.touch()
  _save_at(_sit_down(workdir), 5)
  assert _names(workdir) == ['ckpt-3', 'ckpt-4', 'ckpt-5']
  assert notes.exists()


def test_time_passes_although_the_programs_counter_has_none(tmp_path):
  """The caller's counter may have restored its `wall_time` from a checkpoint."""
  sitting = _sit_down(tmp_path)
  wall_times = []
  for step in (1, 2):
    time.sleep(0.05)
    with sitting.learner.locked:
      sitting.learner.state['num_steps'].assign(step)
    sitting.checkpointer.save({'wall_time': 0.0}, force=True)
    wall_times.append(checkpointing.verify(str(tmp_path))['wall_time'])
  assert 0.05 < wall_times[0] < wall_times[1] - 0.04


def test_hours_count_without_a_counter_of_them(tmp_path):
  learner = _make_learner()
  checkpointer = saving.Checkpointer(
    str(tmp_path),
    learner,
    {},
    dataclasses.replace(_CONFIG, checkpoint_keep_period=0.1 / _HOUR, num_checkpoints=1),
  )
  for step in (1, 2, 3):
    with learner.locked:
      learner.state['num_steps'].assign(step)
    checkpointer.save({}, force=True)
    time.sleep(0.11)
  assert _names(tmp_path)[-2:] == ['ckpt-2', 'ckpt-3']


def test_old_checkpoint_that_cannot_be_read_hinders_nothing(workdir):
  _flip(_biggest(workdir, 'ckpt-2.index'), 0.5)
  _save_at(_sit_down(workdir), 5)
  assert _names(workdir) == ['ckpt-2', 'ckpt-3', 'ckpt-4', 'ckpt-5']


# The best checkpoint.


def _read_best(workdir: pathlib.Path) -> dict[str, Any]:
  return json.loads((workdir / 'checkpoints/learner/best.json').read_text())


def _observe(sitting: _Sitting, *returns: float):
  for value in returns:
    sitting.checkpointer.observe_return(value)


def test_best_is_the_checkpoint_at_the_highest_mean_of_so_many_episodes(tmp_path):
  sitting = _sit_down(
    tmp_path, num_best_episodes=3, num_checkpoints=1, checkpoint_period=_NEVER
  )
  counts = sitting.counter.get_counts()
  means = {}
  for step, value in enumerate([1, 2, 3, 9, 0, 0, 8, 9, 8], start=1):
    with sitting.learner.locked:
      sitting.learner.state['num_steps'].assign(step)
    _observe(sitting, value)
    sitting.checkpointer.save(counts)  # due only because of the new best
    if (tmp_path / 'checkpoints/learner/best.json').exists():
      best = _read_best(tmp_path)
      means[best['learner_steps']] = best['mean_return']
  assert means == {3: 2.0, 4: 14 / 3, 8: 17 / 3, 9: 25 / 3}
  assert best == {
    'checkpoint': 'ckpt-4',
    'mean_return': 25 / 3,
    'episodes': 3,
    'learner_steps': 9,
  }
  assert _names(tmp_path) == ['ckpt-4']


def test_best_stays_while_newer_ones_come_and_go(tmp_path):
  sitting = _sit_down(tmp_path, num_best_episodes=1, num_checkpoints=2)
  for step, value in enumerate([1, 5, 4, 3, 2, 1], start=1):
    _observe(sitting, value)
    _save_at(sitting, step)
  assert _names(tmp_path) == ['ckpt-2', 'ckpt-5', 'ckpt-6']
  assert _read_best(tmp_path)['checkpoint'] == 'ckpt-2'
  prefix = checkpointing.choose(str(tmp_path), 'best')
  assert os.path.basename(prefix) == 'ckpt-2'


def test_best_of_another_number_of_episodes_is_no_measure(tmp_path):
  sitting = _sit_down(tmp_path, num_best_episodes=1)
  _observe(sitting, 21)
  _save_at(sitting, 1)
  sitting = _sit_down(tmp_path, num_best_episodes=3)
  _save_at(sitting, 2)
  assert _read_best(tmp_path)['learner_steps'] == 1  # until there is a better one
  _observe(sitting, 12, 12)
  _save_at(sitting, 3)
  assert _read_best(tmp_path)['mean_return'] == 15
  assert _read_best(tmp_path)['learner_steps'] == 3


def test_best_is_not_lost_when_a_save_fails(workdir):
  sitting = _sit_down(workdir, num_best_episodes=1)
  _observe(sitting, 5)
  with _full_disk(), pytest.raises(checkpointing.CheckpointError):
    _save_at(sitting, 5)
  _save_at(sitting, 6)
  assert _read_best(workdir)['learner_steps'] == 6


def test_best_so_far_and_the_last_returns_survive_a_resume(tmp_path):
  sitting = _sit_down(tmp_path, num_best_episodes=2)
  _observe(sitting, 4, 6)
  _save_at(sitting, 1)
  _observe(sitting, 7, 0)  # 6.5 is a new best mean; the last return is 0
  _save_at(sitting, 2)
  sitting = _sit_down(tmp_path, num_best_episodes=2)
  _observe(sitting, 12)  # the mean with that 0 is 6
  _save_at(sitting, 3)
  assert _read_best(tmp_path)['learner_steps'] == 2
  _observe(sitting, 2)  # the mean is 7
  _save_at(sitting, 4)
  assert _read_best(tmp_path)['mean_return'] == 7
  assert _read_best(tmp_path)['learner_steps'] == 4


def test_checkpoint_of_this_very_step_becomes_the_best_without_another(tmp_path):
  sitting = _sit_down(tmp_path, num_best_episodes=1)
  _save_at(sitting, 1)
  before = _names(tmp_path)
  _observe(sitting, 1)
  sitting.checkpointer.save()
  assert len(_names(tmp_path)) == len(before) == 1
  assert [_read_best(tmp_path)['checkpoint']] == _names(tmp_path)
  sitting.checkpointer.save({'actor_steps': 7}, force=True)  # the same learner step
  assert [_read_best(tmp_path)['checkpoint']] == _names(tmp_path)


def test_returns_that_are_not_finite_do_not_count(tmp_path):
  sitting = _sit_down(tmp_path, num_best_episodes=2, checkpoint_period=_NEVER)
  _observe(sitting, float('nan'), float('inf'), 1)
  sitting.checkpointer.save()
  assert not _names(tmp_path)
  _observe(sitting, float('-inf'), np.float32(3))
  sitting.checkpointer.save()
  assert _read_best(tmp_path)['mean_return'] == 2


def test_returns_may_come_from_threads_while_it_saves(tmp_path):
  sitting = _sit_down(tmp_path, num_best_episodes=1)
  threads = [
    threading.Thread(target=lambda: _observe(sitting, *range(1, 200))) for _ in range(4)
  ]
  for thread in threads:
    thread.start()
  for step in range(1, 20):
    _save_at(sitting, step)
  for thread in threads:
    thread.join()
  _save_at(sitting, 20)
  assert _read_best(tmp_path)['mean_return'] == 199


def test_observing_does_not_wait_for_the_learner(tmp_path):
  sitting = _sit_down(tmp_path)
  thread = threading.Thread(target=lambda: _observe(sitting, 1), daemon=True)
  with sitting.learner.locked:
    thread.start()
    thread.join(timeout=10)
  assert not thread.is_alive()


@pytest.mark.parametrize(
  ('name', 'best'), [('ckpt-2', None), ('ckpt-3', 'ckpt-3'), ('best', 'ckpt-3')]
)
def test_going_back_sets_a_later_best_aside(workdir, name, best):
  folder = pathlib.Path(checkpointing.directory(str(workdir)))
  content = {'checkpoint': 'ckpt-3', 'mean_return': 5.0}
  content |= {'episodes': 10, 'learner_steps': 3}
  (folder / 'best.json').write_text(json.dumps(content))
  checkpointing.go_back(str(workdir), name)
  assert _names(workdir)[-1] == (best or name)
  assert (folder / 'best.json').exists() == (best is not None)
  aside = [path.name for path in folder.glob('set_aside_*/*.*')]
  assert ('best.json' in aside) == (best is None)
  assert 'ckpt-4.index' in aside
  if best is None:  # then the next mean is the best in any case
    sitting = _sit_down(workdir, num_best_episodes=1)
    _observe(sitting, -100)
    sitting.checkpointer.save()
    assert _read_best(workdir)['mean_return'] == -100


def test_without_a_best_it_is_said_what_there_is(workdir):
  with pytest.raises(checkpointing.CheckpointError) as error:
    checkpointing.choose(str(workdir), 'best')
  assert 'no best checkpoint' in str(error.value)
  assert 'name another, or leave the checkpoint out for the newest' in str(error.value)
  assert str(error.value).endswith('there are: ckpt-2, ckpt-3, ckpt-4')


@pytest.mark.parametrize(
  'content',
  [
    *('', '[]', '{}', '3', '"ckpt-3"', '[' * 100_000),
    *(
      f'{{"checkpoint": {name}, "mean_return": {mean}, "episodes": 1, '
      f'"learner_steps": 1}}'
      for name, mean in (
        ('"ckpt-3"', 'NaN'),
        ('"ckpt-3"', '"5"'),
        ('"ckpt-3"', '1e999'),
        ('"../ckpt-3"', '1'),
        ('null', '1'),
      )
    ),
  ],
  ids=lambda content: content[:40],
)
def test_damaged_note_of_the_best_is_refused_before_it_is_overwritten(workdir, content):
  path = workdir / 'checkpoints/learner/best.json'
  path.write_text(content)
  with pytest.raises(checkpointing.CheckpointError, match='best.json is damaged: del'):
    checkpointing.verify(str(workdir))
  assert path.read_text() == content
  path.unlink()
  checkpointing.verify(str(workdir))


def test_best_that_was_deleted_is_none(workdir):
  content = {'checkpoint': 'ckpt-9', 'mean_return': 5.0}
  content |= {'episodes': 10, 'learner_steps': 3}
  path = workdir / 'checkpoints/learner/best.json'
  path.write_text(json.dumps(content))
  sitting = _sit_down(workdir, num_best_episodes=1)
  _observe(sitting, 1)
  sitting.checkpointer.save()
  assert _read_best(workdir)['mean_return'] == 1


# What is written and in which order.


def test_nothing_is_a_checkpoint_before_all_of_it_is_there(tmp_path):
  """Lists the folder in another thread while checkpoints are written and deleted."""
  sitting = _sit_down(tmp_path, num_checkpoints=2)
  _save_at(sitting, 1)
  done, found = threading.Event(), []

  def look():
    while not done.is_set():
      newest = checkpointing.find(str(tmp_path))[-1]
      found.append(checkpointing.read_counts(newest)['learner_steps'])

  failures = []
  thread = threading.Thread(target=lambda: _note_failure(look, failures))
  thread.start()
  for step in range(2, 60):
    _save_at(sitting, step)
  done.set()
  thread.join()
  assert not failures
  assert found == sorted(found)
  assert len(set(found)) > 5


def _note_failure(work, failures: list):
  try:
    work()
  except BaseException as error:
    failures.append(error)


def test_what_a_killed_process_left_unfinished_is_cleared(workdir):
  folder = workdir / 'checkpoints/learner'
  (folder / 'unfinished' / 'ckpt-5_temp').mkdir(parents=True)
  (folder / 'unfinished' / 'ckpt-5.index').write_bytes(b'half')
  assert _names(workdir)[-1] == 'ckpt-4'
  _save_at(_sit_down(workdir), 5)
  assert checkpointing.verify(str(workdir))['learner_steps'] == 5
  assert not (folder / 'unfinished').exists()


@contextlib.contextmanager
def _full_disk():
  """Limits the size of files to 2,000 bytes."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_full_disk_is_said_and_leaves_what_there_was(workdir):
  sitting = _sit_down(workdir)
  before = _contents(workdir)
  with _full_disk(), pytest.raises(checkpointing.CheckpointError) as error:
    _save_at(sitting, 5)
  assert str(error.value).endswith(os.strerror(errno.EFBIG))
  assert 'cannot save in' in str(error.value)
  assert '\n' not in str(error.value)
  assert _contents(workdir) == before
  _save_at(sitting, 5)
  assert checkpointing.verify(str(workdir))['learner_steps'] == 5


# System errors are not reported as damage.


@contextlib.contextmanager
def _no_more_files(number: int):
  """Limits how many more files this process may open."""
  limits = resource.getrlimit(resource.RLIMIT_NOFILE)
  highest = max(map(int, os.listdir('/proc/self/fd')))
  resource.setrlimit(resource.RLIMIT_NOFILE, (highest + number, limits[1]))
  held = []
  try:
    with contextlib.suppress(OSError):
      while len(os.listdir('/proc/self/fd')) < highest + number - 1:
        held.append(os.open('/dev/null', os.O_RDONLY))
    yield
  finally:
    for descriptor in held:
      os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_too_many_open_files_are_no_damage(workdir):
  checkpointing.verify(str(workdir))
  messages = set()
  for number in range(1, 8):
    with _no_more_files(number):
      try:
        checkpointing.verify(str(workdir))
      except checkpointing.CheckpointError as error:
        messages.add(str(error))
  assert messages
  assert not [message for message in messages if 'damaged' in message]
  assert all(os.strerror(errno.EMFILE) in message for message in messages)
  checkpointing.verify(str(workdir))


@pytest.mark.parametrize('kind', ['index', 'data'])
def test_path_that_cannot_be_followed_is_no_damage(workdir, kind):
  path = _biggest(workdir, f'ckpt-4.{kind}*')
  path.unlink()
  path.symlink_to(path)
  with pytest.raises(checkpointing.CheckpointError) as error:
    checkpointing.verify(str(workdir))
  assert 'damaged' not in str(error.value)
  assert str(error.value).endswith(f'cannot be read: {os.strerror(errno.ELOOP)}')


def test_missing_proc_is_no_damage(saved, monkeypatch):
  monkeypatch.setattr(paths, '_DESCRIPTORS', '/no/proc/self/fd')
  assert checkpointing.verify(str(saved.workdir))['learner_steps'] == 4


def test_file_in_the_place_of_the_folder_is_no_damage(tmp_path):
  (tmp_path / 'checkpoints').touch()
  with pytest.raises(checkpointing.CheckpointError, match='Not a directory'):
    checkpointing.verify(str(tmp_path))


def test_checkpoint_of_other_sizes_is_refused(workdir):
  config = dataclasses.replace(_CONFIG, core_size=7)
  spec = helpers.make_spec(image=False)
  learner = R2D2Builder(config, spec).make_learner(iter(()))
  counts = checkpointing.verify(str(workdir))
  with pytest.raises(checkpointing.CheckpointError, match='ckpt-4 .* other variables'):
    saving.Checkpointer(str(workdir), learner, counts, config)
  network = R2D2Builder(config, spec).make_network()
  with pytest.raises(checkpointing.CheckpointError, match='ckpt-4 .* other variables'):
    checkpointing.restore_network(network, str(workdir))


# Counts.


class _Bomb:
  """An object whose pickle makes a folder when it is loaded."""

  def __init__(self, path: pathlib.Path):
    self._path = path

  def __reduce__(self):
    return os.mkdir, (str(self._path),)


class _Pickled(tf.train.experimental.PythonState):
  """Saves a Python object in the way of Acme's checkpointer."""

  def __init__(self, content: bytes):
    self._content = content

  def serialize(self):
    return self._content

  def deserialize(self, string_value):
    raise AssertionError('was read')


def _write_foreign(workdir: pathlib.Path, **contents: Any):
  """Writes a newest checkpoint with these contents instead of ours."""
  contents = {'counts': b'{"learner_steps": 1}', 'returns': b'[]', **contents}
  states = {
    name: x if isinstance(x, _Pickled) else tf.Variable(x)
    for name, x in contents.items()
    if x is not None
  }
  checkpoint = tf.train.Checkpoint(**_make_learner().state, **states)
  folder = pathlib.Path(checkpointing.directory(str(workdir)))
  folder.mkdir(parents=True, exist_ok=True)
  checkpoint.write(str(folder / 'ckpt-9'))


@pytest.mark.parametrize('kind', [_Pickled, tf.Variable])
@pytest.mark.parametrize('protocol', [0, pickle.HIGHEST_PROTOCOL])
def test_pickled_counts_are_refused_and_not_loaded(tmp_path, kind, protocol):
  flag = tmp_path / 'was loaded'
  content = pickle.dumps(_Bomb(flag), protocol)
  _write_foreign(tmp_path, counts=kind(content))
  network = _make_learner().state['network']
  readers = (
    lambda: checkpointing.verify(str(tmp_path)),
    lambda: checkpointing.read_counts(checkpointing.find(str(tmp_path))[-1]),
    lambda: checkpointing.restore_network(network, str(tmp_path)),
    lambda: saving.Checkpointer(str(tmp_path), _make_learner(), {}, _CONFIG),
  )
  for read in readers:
    with pytest.raises(checkpointing.CheckpointError) as error:
      read()
    assert '\n' not in str(error.value)
    assert 'another version of r2d2_acme; continue with that one, or' in str(
      error.value
    )
    assert 'damaged' not in str(error.value)
  assert not flag.exists()
  pickle.loads(content)
  assert flag.exists()  # so unpickling would have been noticed


@pytest.mark.parametrize(
  'contents',
  [
    *(
      {'counts': text.encode()}
      for text in (
        *('', '[]', '3', 'null', '"x"', '{"a": [1]}', '{"a": {"b": 1}}', '{"a": "1"}'),
        *('{"a": true}', '{"a": null}', '{"a": NaN}', '{"a": Infinity}'),
        *('{"a": 1e999}', f'{{"a": {10**400}}}', '[' * 100_000, '{"a": 1}x'),
      )
    ),
    {'counts': b'\xff\xfe{}'},
    {'counts': 1.5},
    {'returns': b'[NaN]'},
    {'returns': b'["x"]'},
    {'returns': b'3'},
    {'returns': None},
    {'counts': None},
  ],
  ids=lambda contents: str(contents)[:30],
)
def test_counts_that_are_no_numbers_are_refused(tmp_path, contents):
  _write_foreign(tmp_path, **contents)
  with pytest.raises(checkpointing.CheckpointError) as error:
    checkpointing.verify(str(tmp_path))
  assert 'are not numbers in JSON: it was written by another' in str(error.value)
  assert '\n' not in str(error.value)


def test_counts_are_json(workdir):
  reader = tf.train.load_checkpoint(checkpointing.find(str(workdir))[-1])
  counts = json.loads(reader.get_tensor('counts/.ATTRIBUTES/VARIABLE_VALUE'))
  assert counts == checkpointing.verify(str(workdir))


def test_numpys_numbers_are_counts_too(tmp_path):
  counts = {'actor_steps': np.int64(5), 'wall_time': np.float32(0.5)}
  _sit_down(tmp_path).checkpointer.save(counts, force=True)
  after = checkpointing.verify(str(tmp_path))
  assert after == {'actor_steps': 5, 'wall_time': 0.5, 'learner_steps': 0}


def test_newest_checkpoint_is_restored_without_its_counts(tmp_path):
  sitting = _sit_down(tmp_path, [_make_batch(seed) for seed in range(4)])
  assert not sitting.checkpointer.restore_newest()
  sitting.learner.step()
  sitting.checkpointer.save({'actor_steps': 7}, force=True)
  saved = _state(sitting.learner)
  sitting.learner.step()
  sitting.learner.step()
  assert sitting.checkpointer.restore_newest()
  assert _differ(_state(sitting.learner), saved) == ['num_steps']
  assert sitting.learner.num_steps == 3
  sitting.learner.step()
  sitting.checkpointer.save({'actor_steps': 9}, force=True)
  counts = checkpointing.verify(str(tmp_path))
  assert (counts['learner_steps'], counts['actor_steps']) == (4, 9)
