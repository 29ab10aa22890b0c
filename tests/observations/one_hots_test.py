"""Tests of numbers of categories."""

import numpy as np
import tensorflow as tf
from acme import specs

from r2d2_acme.observations import layouts, one_hots
from tests import helpers


def test_each_number_has_a_row_of_weights():
  torso = one_hots.OneHotTorso(size=3, depth=4)
  numbers = tf.constant([[2, 0], [1, 3]], tf.uint8)
  torso(numbers)
  b, w = torso.trainable_variables
  w.assign(np.arange(24, dtype=np.float32).reshape(8, 3))  # rows: 4 of each number
  b.assign([-20.0, 1.0, 0.0])
  rows = w.numpy()
  expected = np.maximum([rows[2] + rows[4], rows[1] + rows[7]] + b.numpy(), 0)
  np.testing.assert_allclose(torso(numbers), expected)


def test_depth_is_that_of_the_greatest_category():
  config = helpers.make_config(frame_stack=4)
  single = one_hots.OneHots(specs.DiscreteArray(5, np.uint8), config)
  several = one_hots.OneHots(layouts.Categories((2,), np.int32, 0, [3, 6]), config)
  assert (single.torso_inputs, several.torso_inputs) == (5, 2 * 7)
  assert single.num_frames == 1  # they are not stacked
