"""Tests of `r2d2_acme/replay.py` and `dataset.py` on real Reverb tables."""

import dataclasses
import gc
import re
import time

import numpy as np
import pytest
import reverb
import sonnet as snt
import tensorflow as tf
import tree
from acme import specs

from r2d2_acme import config as config_lib
from r2d2_acme import environments
from r2d2_acme.replay import adder as adder_lib
from r2d2_acme.replay import batches, priorities, tables
from r2d2_acme.replay.priorities import PriorityUpdater
from r2d2_acme.types import Step, core_state_spec
from tests import helpers

SPEC = helpers.make_spec()


def add_windows(config, client, priorities, spec=SPEC, **row):
  """Inserts windows with these priorities; the i-th has `learner_steps` i.

  Args:
    **row: fields of `Step` to use instead of zeros.
  """
  remaining = list(priorities)
  adder = adder_lib.WindowAdder(client, config, spec, lambda *_: remaining.pop(0))
  frame = np.zeros(spec.observations.shape, spec.observations.dtype)
  step = Step(frame, np.int32(0), np.float32(0), np.float32(1), np.float32(1))
  step = step._replace(**row)
  state = tree.map_structure(
    lambda spec: np.zeros(spec.shape, spec.dtype), core_state_spec(config)
  )
  q = np.zeros(helpers.NUM_ACTIONS, np.float32)
  for i in range(len(priorities)):
    adder.add(step, state, q, last=False, learner_steps=i)
    adder.add(step, state, q, last=True, learner_steps=i)


def read_items(client, num_samples=100):
  """`SampleInfo` by the windows' `learner_steps`, of those drawn."""
  return {
    int(sample.data.learner_steps): sample.info
    for sample in client.sample(
      tables.TABLE, num_samples, emit_timesteps=False, unpack_as_table_signature=True
    )
  }


def make_tables(config, spec=SPEC):
  return tables.make_tables(config, spec, reverb.rate_limiters.MinSize(1))


def test_signature_has_single_frames_in_blocks():
  config = helpers.make_config(burn_in_length=2, trace_length=5, sequence_period=4)
  signature = tables.window_signature(config, SPEC)
  # 8 rows, and 3 before them for the stack.
  assert signature.steps.observation.shape == [3, 4, 36, 36, 1]
  assert signature.steps.action.shape == [8]
  assert signature.core_state[0].hidden.shape == [config.core_size]
  vectors = tables.window_signature(config, helpers.make_spec(image=False))
  assert vectors.steps.observation.shape == [2, 4, 7]


def test_frames_stay_uint8_from_environment_to_batch(serve):
  config = helpers.make_config()
  assert tables.window_signature(config, SPEC).steps.observation.dtype == tf.uint8
  client = serve(make_tables(config))
  add_windows(config, client, [1.0])
  (sample,) = client.sample(
    tables.TABLE, emit_timesteps=False, unpack_as_table_signature=True
  )
  assert sample.data.steps.observation.dtype == np.uint8
  batch = next(iter(batches.make_dataset(config, SPEC, client.server_address)))
  assert batch.observations.observation.dtype == tf.uint8


def test_batches_are_time_major_with_stacks_rebuilt(serve):
  config = helpers.make_config(batch_size=3, frame_stack=2, core_size=6)
  client = serve(make_tables(config))
  add_windows(config, client, [1.0, 2.0])
  batch = next(iter(batches.make_dataset(config, SPEC, client.server_address)))
  rows = config.sequence_length + 1
  assert batch.observations.observation.shape == [rows, 3, 36, 36, 2]
  for array in (*batch.observations[1:], batch.discount, batch.mask):
    assert array.shape == [rows, 3]
  assert isinstance(batch.core_state, snt.LSTMState)
  for state in batch.core_state:
    assert state.shape == [3, 3, 6]
  for array in (batch.learner_steps, batch.keys, batch.probabilities, batch.table_size):
    assert array.shape == [3]
  assert batch.keys.dtype == tf.uint64
  assert batch.probabilities.dtype == tf.float64
  np.testing.assert_array_equal(batch.table_size, [2, 2, 2])


@pytest.mark.parametrize(
  'change',
  [
    dict(burn_in_length=3),
    dict(trace_length=5),
    dict(frame_stack=7),  # one more block
    dict(core_size=7),
  ],
)
def test_windows_of_another_config_are_refused(serve, change):
  config = helpers.make_config()
  client = serve(make_tables(config))
  with pytest.raises(ValueError, match='inconsistent with the table signature'):
    add_windows(dataclasses.replace(config, **change), client, [1.0])


def test_frames_of_another_shape_or_dtype_are_refused(serve):
  config = helpers.make_config()
  client = serve(make_tables(config))
  for shape, dtype in (
    ([36, 36, 2], np.uint8),
    ([36, 1, 1], np.uint8),  # numpy would broadcast it
    ([36, 36, 1], np.float32),
  ):
    frame = np.zeros(shape, dtype)
    with pytest.raises((TypeError, ValueError)):
      add_windows(config, client, [1.0], observation=frame)
  assert helpers.table_info(client).current_size == 0


def test_windows_are_drawn_by_priority_to_the_exponent(serve):
  config = helpers.make_config(priority_exponent=0.9)
  client = serve(make_tables(config))
  priorities = np.array([0.5, 1.0, 4.0, 16.0])
  add_windows(config, client, priorities)
  expected = priorities**0.9 / np.sum(priorities**0.9)
  num_samples = 20_000
  counts, probabilities = np.zeros(4), np.zeros(4)
  for sample in client.sample(
    tables.TABLE, num_samples, emit_timesteps=False, unpack_as_table_signature=True
  ):
    counts[sample.data.learner_steps] += 1
    probabilities[sample.data.learner_steps] = sample.info.probability
  np.testing.assert_allclose(probabilities, expected, rtol=1e-6)
  # Reverb takes no seed: six standard deviations fail once in 10^8 runs.
  slack = 6 * np.sqrt(expected * (1 - expected) / num_samples)
  assert np.all(np.abs(counts / num_samples - expected) < slack)
  # With exponent 1 the frequencies would be elsewhere: the test can tell.
  assert np.any(np.abs(priorities / priorities.sum() - expected) > slack)


def test_the_dataset_tells_with_which_probability_it_drew(serve):
  config = helpers.make_config(priority_exponent=0.5)
  client = serve(make_tables(config))
  add_windows(config, client, [1.0, 4.0, 9.0])
  batch = next(iter(batches.make_dataset(config, SPEC, client.server_address)))
  expected = np.array([1, 2, 3])[batch.learner_steps.numpy()] / 6
  np.testing.assert_allclose(batch.probabilities, expected, rtol=1e-6)


def test_the_oldest_window_leaves_a_full_table(serve):
  config = helpers.make_config(max_replay_size=12)
  client = serve(make_tables(config))
  add_windows(config, client, [1.0] * 15)
  assert helpers.table_info(client).current_size == 12
  assert min(read_items(client, 300)) >= 3


def test_sampling_waits_for_min_replay_size(serve):
  config = helpers.make_config(min_replay_size=10)
  (table,) = tables.make_tables(config, SPEC)
  client = serve([table])
  add_windows(config, client, [1.0] * 9)
  assert not table.can_sample(1)
  add_windows(config, client, [1.0])
  assert table.can_sample(1)


@pytest.mark.parametrize('samples_per_insert', [0.5, 1.0, 4.0])
def test_limiter_holds_samples_per_insert_on_both_sides(serve, samples_per_insert):
  config = helpers.make_config(
    min_replay_size=20,
    samples_per_insert=samples_per_insert,
    samples_per_insert_tolerance=0.1,
  )
  (table,) = tables.make_tables(config, SPEC)
  client = serve([table])
  inserted = sampled = 0
  for _ in range(3):
    while table.can_insert(1):
      add_windows(config, client, [1.0])
      inserted += 1
    # Samples are due from `min_replay_size` on.
    due = (inserted - config.min_replay_size) * samples_per_insert
    behind = due - sampled
    assert config.error_buffer - samples_per_insert < behind <= config.error_buffer
    while table.can_sample(1):
      list(client.sample(tables.TABLE, emit_timesteps=False))
      sampled += 1
    ahead = sampled - due
    assert config.error_buffer - 1 < ahead <= config.error_buffer


class TestPriorityUpdater:
  def test_update_changes_the_tables_priorities(self, serve):
    config = helpers.make_config(priority_exponent=0.0)
    client = serve(make_tables(config))
    add_windows(config, client, [1.0, 2.0, 3.0])
    keys = {i: info.key for i, info in read_items(client).items()}
    updater = PriorityUpdater(client)
    updater.update(
      np.array([keys[0], keys[2]], np.uint64), np.array([10, 30], np.float32)
    )
    updater.wait()
    priorities = {i: info.priority for i, info in read_items(client).items()}
    assert priorities == {0: 10.0, 1: 2.0, 2: 30.0}

  def test_the_later_of_two_updates_counts(self, serve):
    config = helpers.make_config(priority_exponent=0.0)
    client = serve(make_tables(config))
    add_windows(config, client, [1.0])
    key = read_items(client)[0].key
    updater = PriorityUpdater(client)
    for priority in range(2, 50):
      # Also within one update: a batch may hold a window twice.
      updater.update(np.array([key, key], np.uint64), np.float32([7, priority]))
    updater.wait()
    assert read_items(client)[0].priority == 49

  def test_windows_that_left_the_table_are_harmless(self, serve):
    config = helpers.make_config(priority_exponent=0.0)
    client = serve(make_tables(config))
    add_windows(config, client, [1.0])
    key = read_items(client)[0].key
    updater = PriorityUpdater(client)
    updater.update(np.array([123, key], np.uint64), np.float32([5, 6]))
    updater.wait()
    assert read_items(client)[0].priority == 6

  @pytest.mark.parametrize('bad', [np.nan, np.inf])
  def test_a_priority_that_is_none_changes_nothing(self, serve, bad):
    """One diverged window must not end, or poison, prioritization."""
    config = helpers.make_config(priority_exponent=0.0)
    client = serve(make_tables(config))
    add_windows(config, client, [1.0, 2.0])
    keys = {i: info.key for i, info in read_items(client).items()}
    updater = PriorityUpdater(client)
    updater.update(np.array([keys[0], keys[1]], np.uint64), np.float32([bad, 4]))
    updater.wait()
    assert {i: info.priority for i, info in read_items(client).items()} == {0: 1, 1: 4}
    updater.update(np.array([keys[0]], np.uint64), np.float32([3]))
    updater.wait()
    assert read_items(client)[0].priority == 3

  def test_update_does_not_wait_for_a_server_that_is_away(self, away):
    updater, come_back = away
    started = time.time()
    for _ in range(100):
      updater.update(*_UPDATE)
    assert time.time() - started < 5
    client = come_back()
    updater.wait()
    key = read_items(client)[0].key
    updater.update(np.array([key], np.uint64), np.float32([7]))
    updater.wait()
    assert read_items(client)[0].priority == 7

  def test_lost_updates_are_one_warning(self, serve, caplog, monkeypatch):
    client = serve(make_tables(helpers.make_config()))
    updater = PriorityUpdater(client)

    def lose(*unused, **unused_keywords):
      raise RuntimeError('Socket closed')

    with monkeypatch.context() as patch:
      patch.setattr(client, 'mutate_priorities', lose)
      for _ in range(3):
        updater.update(*_UPDATE)
        updater.wait()
    assert warnings(caplog) == []  # it may be the program's end
    for _ in range(3):
      updater.update(*_UPDATE)
      updater.wait()
    (warning,) = warnings(caplog)
    assert warning == (
      'Replay was not available (Socket closed): '
      '3 updates of priorities are lost, 0 wait'
    )

  def test_a_server_that_stays_away_is_a_warning_a_minute(
    self, away, caplog, monkeypatch
  ):
    monkeypatch.setattr(priorities, '_AWAY_PERIOD', 1.0)
    updater, _ = away
    started = time.time()
    while time.time() - started < 2.6:
      updater.update(*_UPDATE)
      time.sleep(0.01)
    first, second = warnings(caplog)
    for seconds, warning in ((1, first), (2, second)):
      assert re.match(
        rf'Replay has not answered for {seconds} s.*: [01] updates .* lost, \d+ wait',
        warning,
      )

  def test_table_that_is_missing_is_raised(self, serve, monkeypatch):
    monkeypatch.setattr(priorities, 'TABLE', 'another')
    updater = PriorityUpdater(serve([reverb.Table.queue('windows', max_size=1)]))
    updater.update(*_UPDATE)
    with pytest.raises(RuntimeError, match='cannot be written back') as error:
      updater.wait()
    assert 'another was not found' in str(error.value.__cause__)

  @pytest.mark.parametrize(
    'keys, priorities',
    [
      (np.array([-1]), np.float32([1])),  # Reverb takes no such key
      (np.array([1, 2], np.uint64), np.float32([1])),
      (None, np.float32([1])),
    ],
  )
  def test_any_other_failure_is_raised(self, serve, keys, priorities):
    client = serve(make_tables(helpers.make_config()))
    updater = PriorityUpdater(client)
    updater.update(keys, priorities)
    for _ in range(2):
      with pytest.raises(RuntimeError, match='cannot be written back') as error:
        updater.wait()
      assert isinstance(error.value.__cause__, (TypeError, ValueError, IndexError))
      with pytest.raises(RuntimeError, match='cannot be written back'):
        updater.update(*_UPDATE)


_UPDATE = (np.array([1], np.uint64), np.float32([1]))  # of a window that is gone


@pytest.fixture
def away():
  """An updater whose server is away, and what brings that back with a new client."""
  config = helpers.make_config(priority_exponent=0.0)
  servers = []

  def start(port=None):
    servers.append(reverb.Server(make_tables(config), port=port))
    client = reverb.Client(f'localhost:{servers[-1].port}')
    add_windows(config, client, [1.0])
    return client

  client = start()
  updater = PriorityUpdater(client)
  updater.update(*_UPDATE)
  updater.wait()
  gc.collect()  # see `helpers.start_server`
  servers[0].stop()
  yield updater, lambda: start(servers[0].port)
  gc.collect()
  servers[-1].stop()


def warnings(caplog) -> list[str]:
  return [r.getMessage() for r in caplog.records if r.levelname == 'WARNING']


class TestEstimateBytes:
  @pytest.mark.parametrize(
    'change, factor',
    [
      (dict(max_replay_size=200_000), 2.0),
      (dict(sequence_period=80), 2.0),
      (dict(burn_in_length=0), 1.0),
      (dict(frame_stack=1), 1.0),
      (dict(batch_size=128), 1.0),
    ],
  )
  def test_follows_the_steps_that_the_table_holds(self, change, factor):
    spec = SPEC._replace(observations=specs.Array((84, 84, 1), np.uint8))
    config = config_lib.R2D2Config()
    before = tables.estimate_bytes(config, spec)
    after = tables.estimate_bytes(dataclasses.replace(config, **change), spec)
    # The recurrent states come once per window.
    assert after / before == pytest.approx(factor, rel=0.1)

  def test_is_of_the_size_of_a_table_of_pong(self, tmp_path):
    """By a checkpoint, which is memory's chunks, somewhat more compressed.

    Pong compresses well. In memory (RSS) a window took 0.45 of the estimate with Pong
    and 0.6 with Ms. Pac-Man.
    """
    environment = environments.make_atari('pong', seed=0)
    spec = SPEC._replace(observations=environment.observation_spec())
    config = helpers.make_config(
      burn_in_length=10, trace_length=20, sequence_period=20, core_size=64
    )
    server = reverb.Server(
      make_tables(config, spec),
      port=None,
      checkpointer=reverb.checkpointers.DefaultCheckpointer(str(tmp_path)),
    )
    client = reverb.Client(f'localhost:{server.port}')
    adder = adder_lib.WindowAdder(client, config, spec, lambda *_: 1.0)
    rng = np.random.default_rng(0)
    q = np.zeros(helpers.NUM_ACTIONS, np.float32)
    timestep = environment.reset()
    for _ in range(600):
      action = np.int32(rng.integers(18))
      timestep = environment.step(action)
      step = Step(
        timestep.observation, action, timestep.reward, timestep.discount, np.float32(1)
      )
      state = tree.map_structure(
        lambda spec: rng.normal(size=spec.shape).astype(spec.dtype),
        core_state_spec(config),
      )
      adder.add(step, state, q, last=False)
    adder.flush()
    client.checkpoint()
    measured = sum(
      file.stat().st_size for file in tmp_path.rglob('*') if file.is_file()
    )
    config = dataclasses.replace(config, max_replay_size=adder.num_windows)
    del adder  # see `helpers.start_server`
    server.stop()
    assert 0.1 < measured / tables.estimate_bytes(config, spec) < 1
