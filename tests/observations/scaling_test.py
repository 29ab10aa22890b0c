"""Tests of what the network makes of an observation's numbers."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized
from acme import specs

from r2d2_acme.observations import kinds, scaling
from r2d2_acme.system import runtime
from tests import helpers

_IMAGE = specs.Array([40, 36, 1], np.uint8)
_VECTOR = specs.Array([4], np.float32)


def _make_torso(spec, dtype=tf.float32, frame_stack=2):
  config = helpers.make_config(frame_stack=frame_stack, normalize_images=True)
  return kinds.make(spec, config).make_torso(dtype)


class ScalingTest(parameterized.TestCase):
  """What the network makes of an observation's numbers by their spec."""

  def _features(self, spec, observations, stack=2):
    """Of the same weights for each spec of one shape."""
    tf.random.set_seed(0)
    torso = _make_torso(spec, frame_stack=stack)
    return torso(tf.constant(observations)).numpy()

  @parameterized.product(
    dtype=[np.uint8, np.int16, np.int32, np.int64, np.float16, np.float32, np.float64],
    bounds=[(0, 255), (0, 1), (0, 10), (-3, 5), (100, 101)],
  )
  def test_images_are_scaled_by_their_bounds(self, dtype, bounds):
    low, high = bounds
    if dtype == np.uint8 and low < 0:
      return
    rng = np.random.default_rng(0)
    images = rng.integers(low, high, [5, 40, 36, 2], endpoint=True).astype(dtype)
    spec = specs.BoundedArray([40, 36, 1], dtype, low, high)
    scaled = (images.astype(np.float32) - low) / np.float32(high - low)
    plain = specs.Array([40, 36, 1], np.float32)
    expected = self._features(plain, scaled)
    np.testing.assert_allclose(
      self._features(spec, images), expected, rtol=1e-4, atol=1e-6
    )
    self.assertGreater(np.ptp(expected), 0)

  def test_all_images_of_one_range_are_seen_alike(self):
    images = np.random.default_rng(0).integers(0, 256, [3, 40, 36, 2])
    results = [
      self._features(spec, images.astype(spec.dtype))
      for spec in (
        _IMAGE,
        *(specs.BoundedArray([40, 36, 1], t, 0, 255) for t in (np.uint8, 'f4', 'i4')),
      )
    ]
    np.testing.assert_array_equal(results[0], results[1])  # bit for bit
    for result in results[2:]:
      np.testing.assert_allclose(result, results[0], rtol=1e-4, atol=1e-6)

  @parameterized.parameters(False, True)
  def test_elements_are_scaled_each_by_its_own_bounds(self, in_function):
    shape = [40, 36, 2]
    low = np.zeros(shape, np.float32)
    high = np.full(shape, 255, np.float32)
    low[:3], high[:3] = -np.inf, np.inf  # these and the next but one stay as they are
    low[3:5] = high[3:5] = 7  # constant: these become 0
    low[5:7], high[5:7] = -3e38, 3e38
    low[7:9], high[7:9] = np.nan, np.nan
    low[..., 1], high[..., 1] = -1, 3  # in another channel
    frames = np.random.default_rng(0).normal(size=[4, *shape, 2]).astype(np.float32)
    expected = frames.copy()  # [N, H, W, C, frames]
    expected[:, 3:5, :, 0] -= 7
    expected[:, 9:, :, 0] /= 255
    expected[:, :, :, 1] = (frames[:, :, :, 1] + 1) / 4

    def stack(x):  # as the actor does: all channels of the oldest frame first
      return np.moveaxis(x, -1, -2).reshape(4, 40, 36, 4)

    stacked = scaling.stack(
      scaling.by_bounds(specs.BoundedArray(shape, np.float32, low, high)), 2
    )
    scale = lambda x: scaling.scale(x, stacked)  # noqa: E731
    scale = tf.function(scale) if in_function else scale
    scaled = scale(tf.constant(stack(frames)))
    np.testing.assert_allclose(scaled, stack(expected), rtol=1e-6)

  @parameterized.parameters(np.float32, np.int32)
  def test_bounds_of_a_dtype_are_no_bounds(self, dtype):
    info = np.iinfo(dtype) if dtype == np.int32 else np.finfo(dtype)
    spec = specs.BoundedArray([4], dtype, info.min, info.max)
    vectors = tf.constant(np.ones([1, 4], dtype))
    np.testing.assert_array_equal(
      scaling.scale(vectors, scaling.by_bounds(spec)), vectors
    )

  @parameterized.parameters(np.uint8, np.int32, np.int64)
  def test_vectors_of_integers_are_scaled_by_their_bounds(self, dtype):
    ram = np.random.default_rng(0).integers(0, 256, [3, 128]).astype(dtype)
    spec = specs.BoundedArray([128], dtype, 0, 255)
    plain = specs.Array([128], np.float32)
    expected = self._features(plain, ram.astype(np.float32) / 255)
    np.testing.assert_allclose(
      self._features(spec, ram), expected, rtol=1e-4, atol=1e-6
    )

  def test_uint8_without_bounds_ends_at_255(self):
    ram = np.random.default_rng(0).integers(0, 256, [3, 128], dtype=np.uint8)
    spec, bounded = (
      specs.Array([128], np.uint8),
      specs.BoundedArray([128], np.uint8, 0, 255),
    )
    np.testing.assert_array_equal(
      self._features(spec, ram), self._features(bounded, ram)
    )

  def test_vectors_of_floats_stay_as_they_are(self):
    vectors = np.random.default_rng(0).normal(size=[3, 4]).astype(np.float32)
    spec = specs.BoundedArray([4], np.float32, -10, 10)
    np.testing.assert_array_equal(
      self._features(spec, vectors), self._features(_VECTOR, vectors)
    )

  @parameterized.parameters(np.float32, np.float64)
  def test_images_of_floats_without_bounds_stay_as_they_are(self, dtype):
    images = np.random.default_rng(0).normal(size=[3, 40, 36, 2]).astype(dtype)
    for spec in (
      specs.Array([40, 36, 1], dtype),
      specs.BoundedArray([40, 36, 1], dtype, -np.inf, np.inf),
    ):
      np.testing.assert_array_equal(
        scaling.scale(tf.constant(images), scaling.by_bounds(spec)),
        images.astype(np.float32),
      )

  @parameterized.parameters([([40, 36, 1],)], [([4],)])
  def test_bools_are_0_and_1(self, shapes):
    (shape,) = shapes
    rng = np.random.default_rng(0)
    bools = rng.integers(0, 2, [3, *shape[:-1], 2 * shape[-1] if shape[2:] else 4]) > 0
    expected = self._features(specs.Array(shape, np.float32), bools.astype(np.float32))
    for spec in (
      specs.Array(shape, bool),
      specs.BoundedArray(shape, bool, False, True),
    ):
      np.testing.assert_array_equal(self._features(spec, bools), expected)

  def test_bfloat16_and_gradients_see_scaled_images(self):
    if not runtime.multiplies_bfloat16():
      self.skipTest('this CPU has no bfloat16')
    images = np.random.default_rng(0).normal(size=[64, 40, 36, 2]).astype(np.float32)
    results = []
    for spec, inputs in (
      (specs.BoundedArray([40, 36, 1], np.float32, -500, 500), 1000 * images),
      (specs.Array([40, 36, 1], np.float32), images + 0.5),
    ):
      tf.random.set_seed(0)
      torso = _make_torso(spec, tf.bfloat16)
      torso(tf.constant(inputs[:1]))

      @tf.function
      def features_and_gradients(x, torso=torso):
        with tf.GradientTape() as tape:
          features = torso(x)
        return [features, *tape.gradient(features, torso.trainable_variables)]

      results.append(features_and_gradients(tf.constant(inputs)))
    for actual, expected in zip(*results, strict=True):
      self.assertLess(tf.norm(actual - expected) / tf.norm(expected), 1e-2)
