"""Tests of vectors: inputs and torso."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized
from acme import specs

from r2d2_acme.observations import vectors
from tests import helpers


def _make(dtype=np.float32) -> vectors.Vectors:
  return vectors.Vectors(specs.Array((3,), dtype), helpers.make_config(frame_stack=4))


def test_an_input_is_the_newest_vector():
  kind = _make()
  assert kind.num_frames == 1
  assert kind.input_spec.shape == (3,)
  inputs = kind.make_inputs(num_envs=2)
  np.testing.assert_array_equal(inputs, np.zeros([2, 3], np.float32))
  for is_first in (True, False):
    frames = np.random.default_rng(int(is_first)).normal(size=[2, 3])
    kind.push_frames(inputs, frames, [is_first, False])
    np.testing.assert_array_equal(inputs, frames.astype(np.float32))


def test_vectors_are_stored_as_they_are():
  assert _make(np.float64).stored_bytes == 3 * 8


class MLPTorsoTest(parameterized.TestCase):
  def test_hand_values(self):
    torso = vectors.MLPTorso(2)
    torso(tf.zeros([1, 2]))
    b, w = torso.trainable_variables
    w.assign([[1.0, -1.0], [2.0, -2.0]])
    b.assign([0.5, 0.5])
    expected = [[1 + 2 * 3 + 0.5, 0.0], [0.0, 1 + 2 * 3 + 0.5]]
    for dtype in (tf.float32, tf.float64, tf.int64):
      features = torso(tf.constant([[1, 3], [-1, -3]], dtype))
      self.assertEqual(features.dtype, tf.float32)
      np.testing.assert_allclose(features, expected)

  def test_other_shapes_are_flattened(self):
    torso = vectors.MLPTorso(2)
    x = np.random.default_rng(0).normal(size=[5, 2, 3, 2]).astype(np.float32)
    features = torso(tf.constant(x))
    np.testing.assert_array_equal(features, torso(tf.constant(x.reshape(5, 12))))
    self.assertEqual(vectors.MLPTorso(2)(tf.ones([5])).shape, [5, 2])
