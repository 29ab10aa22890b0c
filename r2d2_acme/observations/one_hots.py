"""Observations that are numbers of categories, as of Discrete and MultiDiscrete."""

import math

import numpy as np
import sonnet as snt
import tensorflow as tf
from acme import specs

from r2d2_acme.observations import base, layouts


class OneHots(base.Kind):
  """Numbers [...] of categories; the torso sees each as a one-hot vector."""

  @classmethod
  def fits(cls, frame_spec: specs.Array) -> bool:
    return layouts.is_categorical(frame_spec)

  @property
  def _depth(self) -> int:
    return int(np.max(self.frame_spec.maximum)) + 1

  @property
  def torso_inputs(self) -> int:
    return super().torso_inputs * self._depth

  def make_torso(self, dtype: tf.DType) -> snt.Module:
    del dtype  # the product is too small to gain from another one
    return OneHotTorso(self._config.torso_size, self._depth)


class OneHotTorso(snt.Module):
  """A linear layer and a ReLU on one-hot vectors."""

  def __init__(self, size: int, depth: int, name: str | None = None):
    """Constructs the torso.

    Args:
      size: the number of features.
      depth: the greatest number of categories; a number of fewer leaves some of the
        inputs 0.
      name: of the module.
    """
    super().__init__(name=name)
    self._depth = depth
    self._linear = snt.Linear(size)

  def __call__(self, numbers: tf.Tensor) -> tf.Tensor:
    """Turns integers [N, ...] into features, float32 [N, size]."""
    x = tf.one_hot(tf.cast(numbers, tf.int32), self._depth)  # [N, ..., depth]
    x = tf.reshape(x, [-1, math.prod(numbers.shape[1:]) * self._depth])
    return tf.nn.relu(self._linear(x))
