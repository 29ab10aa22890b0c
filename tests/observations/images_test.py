"""Tests of images: stacks, blocks and the convolutional torso."""

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import parameterized
from acme import specs

from r2d2_acme.observations import images
from r2d2_acme.system import runtime
from tests import helpers


def _make(frame_stack, shape=(36, 36, 1), dtype=np.uint8) -> images.Images:
  config = helpers.make_config(frame_stack=frame_stack)
  return images.Images(specs.Array(shape, dtype), config)


@pytest.mark.parametrize('stack', [1, 2, 4])
@pytest.mark.parametrize('channels', [1, 3])
def test_pushed_frames_come_last_and_older_ones_are_forgotten(stack, channels):
  kind = _make(stack, (36, 37, channels))
  inputs = kind.make_inputs(num_envs=2)
  assert inputs.shape == (2, 36, 37, stack * channels)
  rng = np.random.default_rng(0)
  frames = rng.integers(1, 256, [9, 2, 36, 37, channels]).astype(np.uint8)
  for t in range(9):
    kind.push_frames(inputs, frames[t], [False, False])
    for i in range(stack):
      age = stack - 1 - i
      expected = frames[t - age] if t >= age else np.zeros_like(frames[0])
      actual = inputs[..., i * channels : (i + 1) * channels]
      np.testing.assert_array_equal(actual, expected)


def test_an_episodes_first_frame_has_zeros_before_it():
  kind = _make(frame_stack=3)
  inputs = kind.make_inputs(num_envs=2)
  ones = np.ones([36, 36, 1], np.uint8)
  for _ in range(3):
    kind.push_frames(inputs, [ones, ones], [False, False])
  kind.push_frames(inputs, [2 * ones, 2 * ones], [False, True])
  np.testing.assert_array_equal(inputs[0, 5, 5], [1, 1, 2])
  np.testing.assert_array_equal(inputs[1, 5, 5], [0, 0, 2])


def test_inputs_are_stacked_along_the_channels():
  kind = _make(frame_stack=5, shape=(40, 36, 3))
  assert kind.input_spec.shape == (40, 36, 15)
  assert kind.input_spec.dtype == np.uint8
  assert kind.num_frames == 5


def test_compression_is_expected_in_replay():
  assert _make(4, (84, 84, 1)).stored_bytes == pytest.approx(0.35 * 84 * 84)


@pytest.mark.parametrize('stack', [1, 2, 4])
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_stack_frames_puts_the_oldest_first(stack, channels, dtype):
  frames = np.random.default_rng(0).integers(256, size=[9, 50, channels]).astype(dtype)
  stacked = images.stack_frames(tf.constant(frames), stack).numpy()
  assert len(stacked) == 9 - stack + 1
  for t, row in enumerate(stacked):
    expected = np.concatenate([frames[t + i] for i in range(stack)], axis=-1)
    np.testing.assert_array_equal(row, expected)
  assert stacked.dtype == dtype


class AtariTorsoTest(parameterized.TestCase):
  def test_divides_uint8_by_255(self):
    torso = images.AtariTorso((2, 3, 4), 8)
    inputs = _random_images([5, 40, 36, 2])
    features = torso(inputs)
    self.assertEqual(features.shape, [5, 8])
    self.assertEqual(features.dtype, tf.float32)
    self.assertGreater(np.ptp(features), 0)
    expected = torso(tf.cast(inputs, tf.float32) / 255)
    # A product with 1/255 rounds otherwise than a quotient.
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-6)
    # Only what was uint8 is divided: floats stay as they are.
    self.assertGreater(np.ptp(torso(tf.cast(inputs, tf.float64)) - features), 1)

  @parameterized.parameters((84, 84, 7, 7), (36, 36, 1, 1), (40, 52, 1, 3))
  def test_convolutions_are_those_of_mnih_2015(self, height, width, rows, columns):
    torso = images.AtariTorso((2, 3, 4), 8)
    torso(tf.zeros([1, height, width, 2]))
    shapes = {variable.name: variable.shape.as_list() for variable in torso.variables}
    self.assertEqual(
      shapes,
      {
        'atari_torso/conv_1/w:0': [8, 8, 2, 2],
        'atari_torso/conv_1/b:0': [2],
        'atari_torso/conv_2/w:0': [4, 4, 2, 3],
        'atari_torso/conv_2/b:0': [3],
        'atari_torso/conv_3/w:0': [3, 3, 3, 4],
        'atari_torso/conv_3/b:0': [4],
        'atari_torso/linear/w:0': [rows * columns * 4, 8],
        'atari_torso/linear/b:0': [8],
      },
    )

  def test_relu_after_each_layer(self):
    torso = images.AtariTorso((1, 1, 1), 1)
    image = tf.ones([1, 36, 36, 1])
    torso(image)
    weights = {variable.name: variable for variable in torso.variables}
    for name, variable in weights.items():
      variable.assign(tf.ones_like(variable) * float(name.endswith('/w:0')))
    # All ones: each layer multiplies by the number of its inputs.
    np.testing.assert_allclose(torso(image), [[64 * 16 * 9 * 1]])
    layers = ['conv_1', 'conv_2', 'conv_3', 'linear']
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
      with self.subTest(layer):
        # Far below 0; without the ReLU the next layer would turn it far above.
        weights[f'atari_torso/{layer}/b:0'].assign([-1e6])
        if following:
          w = weights[f'atari_torso/{following}/w:0']
          w.assign(-w)
        np.testing.assert_array_equal(torso(image), [[0]])
        weights[f'atari_torso/{layer}/b:0'].assign([0])
        if following:
          w.assign(-w)

  def test_small_images_name_the_cure(self):
    torso = images.AtariTorso((2, 3, 4), 8)
    with self.assertRaisesRegex(ValueError, '35x36 pixels.*resize.*36x36'):
      torso(tf.zeros([1, 35, 36, 1]))

  def test_integers_other_than_uint8_raise(self):
    torso = images.AtariTorso((2, 3, 4), 8)
    with self.assertRaisesRegex(ValueError, 'uint8 or float, not int32'):
      torso(tf.zeros([1, 36, 36, 1], tf.int32))

  def test_normalized_torso_sees_no_constant_and_no_scale(self):
    tf.random.set_seed(0)
    inputs = tf.cast(_random_images([5, 40, 36, 2]), tf.float32) / 255
    torso = images.AtariTorso((2, 3, 4), 64, normalize=True)
    features = torso(inputs)
    # The layer norm starts as the identity: mean 0 and variance 1 before the ReLU.
    np.testing.assert_allclose(
      tf.reduce_mean(features**2, axis=-1), 0.5 * np.ones(5), atol=0.25
    )
    brighter = inputs + tf.constant([0.1, 0.2, 0.3, 0.4, 0.5])[:, None, None, None]
    np.testing.assert_allclose(torso(brighter), features, atol=1e-4)
    np.testing.assert_allclose(torso(2 * inputs), features, atol=2e-2)
    plain = images.AtariTorso((2, 3, 4), 64)
    self.assertGreater(np.ptp(plain(brighter) - plain(inputs)), 1e-3)
    self.assertLen(torso.trainable_variables, len(plain.trainable_variables) + 2)

  def test_bfloat16_is_float32_but_for_its_rounding(self):
    if not runtime.multiplies_bfloat16():
      self.skipTest('this CPU has no bfloat16')
    # As many as in a learner step: what is summed over them is not summed in bfloat16.
    inputs = _random_images([5_000, 40, 36, 4])
    outputs = []
    for dtype in (tf.float32, tf.bfloat16):
      tf.random.set_seed(0)
      torso = images.AtariTorso((8, 16, 16), 32, dtype=dtype)
      torso(inputs[:1])

      @tf.function
      def features_and_gradients(torso=torso):
        with tf.GradientTape() as tape:
          features = torso(inputs)
          loss = tf.reduce_sum(features + features**2)
        return [features, *tape.gradient(loss, torso.variables)]

      outputs.append(features_and_gradients())
    for exact, rounded in zip(*outputs, strict=True):
      self.assertEqual(rounded.dtype, tf.float32)
      error = tf.norm(rounded - exact) / tf.norm(exact)
      # A product is good to 2^-8 = 0.4 %.
      self.assertBetween(float(error), 1e-4, 1e-2)


def _random_images(shape):
  return tf.constant(np.random.default_rng(0).integers(0, 256, shape), tf.uint8)
