"""Observations that are vectors: one linear layer turns them into features."""

import math

import numpy as np
import sonnet as snt
import tensorflow as tf
from acme import specs

from r2d2_acme.observations import base, layouts, scaling
from r2d2_acme.observations.scaling import Scaling


class Vectors(base.Kind):
  """Vectors [D] of any numbers, or what is flattened to one; an input is the newest.

  Integers are scaled by their bounds. Floats stay as they are: their bounds are often
  so wide that little would be left of them.
  """

  @classmethod
  def fits(cls, frame_spec: specs.Array) -> bool:
    is_vector = layouts.image_shape(frame_spec) is None
    return is_vector and not layouts.is_categorical(frame_spec)

  def make_torso(self, dtype: tf.DType) -> snt.Module:
    del dtype  # the product is too small to gain from another one
    is_integer = np.dtype(self.frame_spec.dtype).kind in 'ui'
    return MLPTorso(
      self._config.torso_size,
      scaling=scaling.by_bounds(self.frame_spec) if is_integer else None,
    )


class MLPTorso(snt.Module):
  """A linear layer and a ReLU, for vectors; the depth is in the LSTM and the head."""

  def __init__(
    self, size: int, name: str | None = None, *, scaling: Scaling | None = None
  ):
    """Constructs the torso.

    Args:
      size: the number of features.
      name: of the module.
      scaling: of the vectors' numbers; None takes them as they are.
    """
    super().__init__(name=name)
    self._linear = snt.Linear(size)
    self._scaling = scaling

  def __call__(self, vectors: tf.Tensor) -> tf.Tensor:
    """Turns numbers [N, ...] into features, float32 [N, size]."""
    x = scaling.scale(vectors, self._scaling)
    if x.shape.rank != 2:
      x = tf.reshape(x, [-1, math.prod(x.shape[1:])])
    return tf.nn.relu(self._linear(x))
