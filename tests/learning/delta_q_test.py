"""Delta-Q against arithmetic by hand and a float64 oracle."""

import numpy as np
import pytest
import tensorflow as tf

from r2d2_acme.learning import delta_q
from tests import oracles


def test_hand_values():
  # One window of T = 2, two actions.
  q = [[[1.0, 2.0]], [[-7.0, 4.0]], [[3.0, 0.0]]]
  stored_q = [[[4.0, 6.0]], [[3.0, 1.0]]]
  # Differences (3, 4) and (0, 1); the largest Q-value is 4.
  actual = delta_q.delta_q(tf.constant(q), tf.constant(stored_q), tf.ones([2, 1]))
  np.testing.assert_allclose(actual, [[5 / 4], [1 / 4]], rtol=1e-6)


def test_scale_is_the_largest_value_not_the_largest_size():
  q = tf.constant([[[-8.0, -2.0]], [[-4.0, -5.0]]])
  actual = delta_q.delta_q(q, q[:] + 1.0, tf.ones([1, 1]))
  np.testing.assert_allclose(actual, np.full([2, 1], 2**0.5 / 2), rtol=1e-6)


def test_last_row_and_scale_are_of_real_rows():
  # The second row is the episode's last observation; the rest is padding.
  q = tf.constant([[[1.0]], [[2.0]], [[100.0]], [[np.nan]]])
  mask = tf.constant([[1.0], [0.0], [0.0]])
  actual = delta_q.delta_q(q, tf.constant([[[1.0]], [[5.0]]]), mask)
  np.testing.assert_allclose(actual, [[0.0], [3 / 2]], rtol=1e-6)


def test_values_near_zero_do_not_blow_it_up():
  q = tf.constant([[[1e-9]], [[-1.0]]])
  actual = delta_q.delta_q(q, tf.zeros([2, 1, 1]), tf.ones([1, 1]))
  np.testing.assert_allclose(actual, [[1e-6], [1000.0]], rtol=1e-6)


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_matches_the_oracle(dtype):
  rng = np.random.default_rng(0)
  num_steps, batch_size, num_actions = 7, 20, 4
  q = rng.normal(size=[num_steps + 1, batch_size, num_actions]).astype(dtype)
  stored_q = rng.normal(size=[2, batch_size, num_actions]).astype(dtype)
  lengths = rng.integers(1, num_steps + 1, size=batch_size)
  mask = (np.arange(num_steps)[:, np.newaxis] < lengths).astype(dtype)
  actual = delta_q.delta_q(q, stored_q, mask)
  assert actual.dtype == dtype
  expected = oracles.delta_q(q, stored_q, lengths)
  rtol = 1e-5 if dtype == np.float32 else 1e-12  # rounding of a few operations
  np.testing.assert_allclose(actual, expected, rtol=rtol)


def test_indices_point_at_the_first_row_and_after_the_last_transition():
  mask = np.array([[1, 1, 1], [1, 0, 1], [1, 0, 0]], np.float32)
  rows = np.arange(4 * 3).reshape(4, 3)  # 3 t + b
  picked = tf.gather_nd(rows, delta_q.end_indices(mask))
  np.testing.assert_array_equal(picked, [[0, 1, 2], [9, 4, 8]])
