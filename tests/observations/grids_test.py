"""Tests of small grids of symbols."""

import numpy as np
import tensorflow as tf
from acme import specs

from r2d2_acme.observations import grids
from tests import helpers


def _plain(x):
  return tf.reshape(x, [x.shape[0], -1])


def test_it_is_one_hot_planes_and_a_convolution():
  torso = grids.GridTorso(_plain, channels=2, minimum=-1, num_values=3, width=4)
  cells = np.random.default_rng(0).integers(-1, 2, [5, 3, 6, 2])
  planes = np.eye(3)[cells + 1].reshape(5, 3, 6, 6)
  expected = np.maximum(planes @ torso._w.numpy()[0] + torso._b.numpy(), 0)
  np.testing.assert_allclose(
    torso(tf.constant(cells)), expected.reshape(5, -1), rtol=1e-5, atol=1e-6
  )


def test_numbers_beyond_the_bounds_count_as_the_nearest():
  torso = grids.GridTorso(_plain, channels=1, minimum=0, num_values=3, width=4)
  inside, beyond = (tf.constant(x, shape=[1, 3, 1, 1]) for x in ([0, 1, 2], [-9, 1, 9]))
  np.testing.assert_array_equal(torso(inside), torso(beyond))


def test_its_size_depends_on_the_bounds():
  def num_rows(*bounds):
    spec = specs.BoundedArray((7, 7, 3), np.int32, *bounds)
    kind = grids.Grids(spec, helpers.make_config(frame_stack=2))
    return kind.make_torso(tf.float32)._w.shape[1]

  assert num_rows(0, 10) == 11 * 3 * 2
  assert num_rows(-5, 5) == 11 * 3 * 2
  assert num_rows(0, 255) == 256 * 3 * 2
