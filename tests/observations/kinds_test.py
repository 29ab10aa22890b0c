"""Tests of what all kinds of observations have in common."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from acme import specs

from r2d2_acme import config as config_lib
from r2d2_acme.observations import images, kinds, vectors
from tests import helpers

_IMAGE = specs.Array((36, 40, 1), np.uint8)
_RGB = specs.BoundedArray((36, 40, 3), np.float32, 0, 1)
_VECTOR = specs.Array((5,), np.float32)


@pytest.mark.parametrize(
  'spec, kind',
  [(_IMAGE, images.Images), (_RGB, images.Images), (_VECTOR, vectors.Vectors)],
)
def test_make_chooses_by_the_spec(spec, kind):
  assert type(kinds.make(spec, helpers.make_config())) is kind


@pytest.mark.parametrize('shape', [(), (36, 40), (3, 36, 40), (2, 36, 40, 3)])
def test_make_refuses_other_shapes(shape):
  with pytest.raises(ValueError, match='observations must be images .* or vectors'):
    kinds.make(specs.Array(shape, np.uint8), helpers.make_config())


@pytest.mark.parametrize('spec', [_IMAGE, _RGB, _VECTOR], ids=str)
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
  rebuilt = kind.rebuild_inputs(tf.constant(stored)).numpy()
  assert rebuilt.dtype == spec.dtype
  assert rebuilt.shape == (config.sequence_length + 1, 2, *kind.input_spec.shape)
  np.testing.assert_array_equal(rebuilt, acted[-len(rebuilt) :])


@pytest.mark.parametrize('spec', [_IMAGE, _RGB, _VECTOR], ids=str)
@pytest.mark.parametrize('stack', [1, 4])
def test_next_inputs_are_those_that_the_actor_pushes(spec, stack):
  kind = kinds.make(spec, helpers.make_config(frame_stack=stack))
  rng = np.random.default_rng(0)
  inputs, tensors = kind.make_inputs(2), tf.constant(kind.make_inputs(2))
  for frames in rng.integers(1, 256, [6, 2, *spec.shape]).astype(spec.dtype):
    kind.push_frames(inputs, frames, [False, False])
    tensors = kind.next_inputs(tensors, tf.constant(frames))
    np.testing.assert_array_equal(tensors, inputs)


@pytest.mark.parametrize('spec', [_IMAGE, _RGB, _VECTOR], ids=str)
def test_torsos_turn_inputs_into_features(spec):
  kind = kinds.make(spec, helpers.make_config(torso_size=9))
  features = kind.make_torso(tf.float32)(tf.constant(kind.make_inputs(num_envs=2)))
  assert features.shape == [2, 9]
  assert features.dtype == tf.float32


@pytest.mark.parametrize(
  'period, num_blocks, length',
  [(1, 124, 1), (7, 18, 7), (20, 7, 20), (23, 124, 1), (40, 7, 20), (78, 10, 13)],
)
def test_blocks_divide_the_period_and_hold_the_window(period, num_blocks, length):
  config = dataclasses.replace(config_lib.paper(), sequence_period=period)
  kind = kinds.make(_IMAGE, config)
  assert (kind.num_blocks, kind.block_length) == (num_blocks, length)
