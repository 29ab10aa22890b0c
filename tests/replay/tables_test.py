"""Tests of the table of windows, on real Reverb servers."""

import dataclasses
import threading
import time

import numpy as np
import pytest
import reverb
import tree
from acme import specs

from r2d2_acme import config as config_lib
from r2d2_acme import environments
from r2d2_acme.builder import R2D2Builder
from r2d2_acme.replay import adder as adder_lib
from r2d2_acme.replay import tables
from r2d2_acme.types import Step, core_state_spec
from r2d2_acme.workdir import description
from tests import helpers
from tests.replay.stores import SPEC, add_windows, make_tables, read_infos


def test_signature_has_single_frames_in_blocks():
  config = helpers.make_config(burn_in_length=2, trace_length=5, sequence_period=4)
  signature = tables.window_signature(config, SPEC)
  # 8 rows, and 3 before them for the stack.
  assert signature.steps.observation.shape == [3, 4, 36, 36, 1]
  assert signature.steps.action.shape == [8]
  assert signature.core_state[0].hidden.shape == [config.core_size]
  vectors = tables.window_signature(config, helpers.make_spec(image=False))
  assert vectors.steps.observation.shape == [2, 4, 7]


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


def test_the_oldest_window_leaves_a_full_table(serve):
  config = helpers.make_config(max_replay_size=12)
  client = serve(make_tables(config))
  add_windows(config, client, [1.0] * 15)
  assert helpers.table_info(client).current_size == 12
  assert min(read_infos(client, 300)) >= 3


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


def _sample(client: reverb.Client, num: int):
  """Takes windows one by one, so that the limiter hands out no more than these."""
  for _ in range(num):
    (sample,) = client.sample(tables.TABLE, 1, emit_timesteps=False)
    del sample


def _starving_tables(config):
  return R2D2Builder(config, SPEC).make_tables()  # with the limiter of a run


def test_learner_is_starved_while_the_limiter_hands_out_no_window(serve):
  config = helpers.make_config(
    min_replay_size=5, samples_per_insert=2.0, samples_per_insert_tolerance=0.2
  )
  client = serve(_starving_tables(config))
  assert tables.is_starved(client)
  add_windows(config, client, 4 * [1.0])
  assert tables.is_starved(client)
  add_windows(config, client, [1.0])
  num = 0
  while not tables.is_starved(client):
    _sample(client, 1)  # which would raise, or wait, if there were none
    num += 1
    assert num < 100
  assert num >= 1
  waiting = threading.Thread(target=_sample, args=(client, 1), daemon=True)
  waiting.start()
  waiting.join(0.5)
  assert waiting.is_alive()  # it was right
  add_windows(config, client, 2 * [1.0])
  waiting.join(10)
  assert not waiting.is_alive()
  assert not tables.is_starved(client)


def test_learner_is_starved_without_a_server():
  server, client = helpers.start_server(_starving_tables(helpers.make_config()))
  assert tables.is_starved(client)
  server.stop()
  begun = time.monotonic()
  assert tables.is_starved(client)
  assert time.monotonic() - begun < 3.0


def test_starvation_is_told_after_a_restore_as_before(tmp_path):
  config = helpers.make_config(
    min_replay_size=15, samples_per_insert=1.0, samples_per_insert_tolerance=0.4
  )
  checkpointer = reverb.checkpointers.DefaultCheckpointer(str(tmp_path))
  server = reverb.Server(_starving_tables(config), checkpointer=checkpointer)
  client = reverb.Client(f'localhost:{server.port}')
  add_windows(config, client, 20 * [1.0])
  assert not tables.is_starved(client)
  _sample(client, 5)
  client.checkpoint()
  server.stop()
  again = reverb.Server(_starving_tables(config), checkpointer=checkpointer)
  client = reverb.Client(f'localhost:{again.port}')
  assert helpers.table_info(client).current_size == 20
  for _ in range(3):
    assert not tables.is_starved(client)
    _sample(client, 1)
  again.stop()


@pytest.mark.parametrize(
  'change', [{'num_actors': 7}, {'envs_per_actor': 9}, {'torso_dtype': 'auto'}]
)
def test_fields_that_a_resume_may_change_do_not_change_the_table(change):
  config, spec = config_lib.laptop(), helpers.make_spec()
  (before,) = tables.make_tables(config, spec)
  (after,) = tables.make_tables(dataclasses.replace(config, **change), spec)
  (first, second) = (
    dataclasses.replace(table.info, table_worker_time=None) for table in (before, after)
  )
  assert first == second


@pytest.mark.parametrize(
  'name',
  [
    *('samples_per_insert', 'samples_per_insert_tolerance', 'priority_exponent'),
    *('min_replay_size', 'max_replay_size', 'burn_in_length', 'trace_length'),
  ],
)
def test_fields_that_a_restored_table_would_ignore_are_not_free(name):
  assert name not in description.FREE_FIELDS
