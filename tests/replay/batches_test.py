"""Tests of the batches that come from a real Reverb table."""

import numpy as np
import sonnet as snt
import tensorflow as tf

from r2d2_acme.replay import batches, tables
from tests import helpers
from tests.replay.stores import SPEC, add_windows, make_tables


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


def test_the_dataset_tells_with_which_probability_it_drew(serve):
  config = helpers.make_config(priority_exponent=0.5)
  client = serve(make_tables(config))
  add_windows(config, client, [1.0, 4.0, 9.0])
  batch = next(iter(batches.make_dataset(config, SPEC, client.server_address)))
  expected = np.array([1, 2, 3])[batch.learner_steps.numpy()] / 6
  np.testing.assert_allclose(batch.probabilities, expected, rtol=1e-6)
