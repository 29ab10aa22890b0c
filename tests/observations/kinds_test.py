"""Tests of what all kinds of observations have in common."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from acme import specs

from r2d2_acme import config as config_lib
from r2d2_acme.observations import (
  grids,
  images,
  kinds,
  layouts,
  nested,
  one_hots,
  vectors,
)
from tests import helpers

_IMAGE = specs.Array((36, 40, 1), np.uint8)
_RGB = specs.BoundedArray((36, 40, 3), np.float32, 0, 1)
_VECTOR = specs.Array((5,), np.float32)
_MOVED = specs.BoundedArray((3, 36, 40), np.uint8, 0, 255)
_MATRIX = specs.BoundedArray((36, 40), np.float32, -1, 1)
_SMALL = specs.Array((3, 20, 2), np.float32)
_GRID = specs.Array((7, 7, 3), np.uint8)
_NUMBER = specs.Array((), np.float64)
_DISCRETE = specs.DiscreteArray(300, np.int32)
_MULTI = layouts.Categories((2, 2), np.int64, 0, [[1, 255], [9, 299]])
_BOX = specs.Array((2, 2, 2, 2), np.float32)
_SPECS = (
  *(_IMAGE, _RGB, _VECTOR, _MOVED, _MATRIX, _SMALL, _GRID, _NUMBER, _DISCRETE, _MULTI),
  _BOX,
)


@pytest.mark.parametrize(
  'spec, kind',
  [
    *((spec, images.Images) for spec in (_IMAGE, _RGB, _MOVED, _MATRIX, _SMALL)),
    (_GRID, grids.Grids),
    *((spec, one_hots.OneHots) for spec in (_DISCRETE, _MULTI)),
    *((spec, vectors.Vectors) for spec in (_VECTOR, _NUMBER, _BOX)),
    ({'a': _VECTOR}, nested.Nested),
    ((_VECTOR, {'b': _GRID}), nested.Nested),
  ],
)
def test_make_chooses_by_the_spec(spec, kind):
  assert type(kinds.make(spec, helpers.make_config())) is kind


@pytest.mark.parametrize('shape', [(0,), (36, 3, 40), (2, 36, 40, 3)])
def test_make_refuses_shapes_that_must_be_a_mistake(shape):
  with pytest.raises(ValueError, match='observations, .*, cannot be used: axis'):
    kinds.make(specs.Array(shape, np.uint8), helpers.make_config())


@pytest.mark.parametrize('spec', _SPECS, ids=str)
@pytest.mark.parametrize('stack', [1, 3, 4])
def test_rebuilt_inputs_are_those_that_the_actor_had(spec, stack):
  config = helpers.make_config(sequence_period=3, frame_stack=stack)
  kind = kinds.make(spec, config)
  num_rows = kind.num_blocks * kind.block_length
  rng = np.random.default_rng(0)
  frames = rng.integers(1, 256, [num_rows, 2, *spec.shape]).astype(spec.dtype)
  inputs = kind.make_inputs(num_envs=2)
  acted = []
  for frame in frames:
    kind.push_frames(inputs, frame, [False, False])
    acted.append(inputs.copy())
  stored = np.moveaxis(frames, 1, 0).reshape(2, *kind.stored_spec.shape)
  assert stored.dtype == spec.dtype  # as compact as the frames
  rebuilt = kind.rebuild_inputs(tf.constant(stored)).numpy()
  assert rebuilt.dtype == spec.dtype
  assert rebuilt.shape == (config.sequence_length + 1, 2, *kind.input_spec.shape)
  np.testing.assert_array_equal(rebuilt, acted[-len(rebuilt) :])


@pytest.mark.parametrize('spec', _SPECS, ids=str)
@pytest.mark.parametrize('stack', [1, 4])
def test_next_inputs_are_those_that_the_actor_pushes(spec, stack):
  kind = kinds.make(spec, helpers.make_config(frame_stack=stack))
  rng = np.random.default_rng(0)
  inputs, tensors = kind.make_inputs(2), tf.constant(kind.make_inputs(2))
  for frames in rng.integers(1, 256, [6, 2, *spec.shape]).astype(spec.dtype):
    kind.push_frames(inputs, frames, [False, False])
    tensors = kind.next_inputs(tensors, tf.constant(frames))
    np.testing.assert_array_equal(tensors, inputs)


@pytest.mark.parametrize('spec', _SPECS, ids=str)
def test_torsos_turn_inputs_into_features(spec):
  tf.random.set_seed(0)
  kind = kinds.make(spec, helpers.make_config(torso_size=9))
  torso = kind.make_torso(tf.float32)
  inputs = kind.make_inputs(num_envs=2)
  inputs[1] = 1
  with tf.GradientTape() as tape:
    features = torso(tf.constant(inputs))
    loss = tf.reduce_sum(features**2)
  assert features.shape == [2, 9]
  assert features.dtype == tf.float32
  assert np.any(features[0] != features[1])
  for gradient in tape.gradient(loss, torso.trainable_variables):
    assert isinstance(gradient, tf.Tensor)  # dense: the norm of slices is another
  matrix = max(
    v.shape[-2] for v in torso.variables if v.shape[-1] == 9 and v.shape.rank == 2
  )
  assert kind.torso_inputs == matrix


def test_leaves_of_a_nest_are_those_of_their_kinds():
  config = helpers.make_config(torso_size=9, frame_stack=3)
  spec = {'image': _RGB, 'rest': (_DISCRETE, _VECTOR), 'action_mask': _VECTOR}
  kind = kinds.make(spec, config)
  assert [x.shape for x in kind.input_spec] == [(36, 40, 9), (), (5,), (5,)]
  assert kind.action_mask == 3
  torso = kind.make_torso(tf.float32)
  inputs = [tf.constant(x) for x in kind.make_inputs(num_envs=2)]
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(inputs)
    features = torso(inputs)
  assert features.shape == [2, 9]
  assert len(torso.trainable_variables) == 8 + 2 + 2 + 2
  assert tape.gradient(features, inputs[2]) is not None
  assert tape.gradient(features, inputs[3]) is None  # the mask is not seen


@pytest.mark.parametrize(
  'period, num_blocks, length',
  [(1, 124, 1), (7, 18, 7), (20, 7, 20), (23, 124, 1), (40, 7, 20), (78, 10, 13)],
)
def test_blocks_divide_the_period_and_hold_the_window(period, num_blocks, length):
  config = dataclasses.replace(config_lib.paper(), sequence_period=period)
  kind = kinds.make(_IMAGE, config)
  assert (kind.num_blocks, kind.block_length) == (num_blocks, length)
