"""Observations that are small grids of symbols, such as MiniGrid's 7x7x3."""

import numpy as np
import sonnet as snt
import tensorflow as tf
from acme import specs

from r2d2_acme.observations import layouts
from r2d2_acme.observations.images import AtariTorso, Images, convolutions


class Grids(Images):
  """Images of a few cells, whose integers are names and not brightness."""

  @classmethod
  def fits(cls, frame_spec: specs.Array) -> bool:
    return layouts.is_grid(frame_spec)

  def make_torso(self, dtype: tf.DType) -> snt.Module:
    config = self._config
    height, width, channels = self.input_spec.shape
    low_and_high = layouts.integer_range(self.frame_spec)
    assert low_and_high is not None
    low, high = low_and_high
    torso = AtariTorso(
      config.conv_channels,
      config.torso_size,
      config.normalize_images,
      dtype,
      convolutions=convolutions(height, width),
    )
    return GridTorso(torso, channels, low, high - low + 1, config.conv_channels[0])


class GridTorso(snt.Module):
  """One-hot planes and a 1x1 convolution with a ReLU, in front of another torso.

  The planes are never made: a convolution of them adds up a row of its weights for each
  number of a cell.
  """

  def __init__(
    self,
    torso: snt.Module,
    channels: int,
    minimum: int,
    num_values: int,
    width: int,
    name: str | None = None,
  ):
    """Constructs the torso.

    Args:
      torso: turns float32 [N, H, W, width] into features.
      channels: C, how many numbers a cell has.
      minimum, num_values: the least number, and how many there can be. Numbers beyond
        these bounds count as the nearest one.
      width: of the 1x1 convolution.
      name: of the module.
    """
    super().__init__(name=name)
    self._torso = torso
    self._minimum = minimum
    self._num_values = num_values
    self._offsets = num_values * np.arange(channels, dtype=np.int32)
    # As for a linear layer: of each channel's planes exactly one is 1. The first axis
    # gives `tf.gather` a dense gradient, whose norm is computed right.
    initial = snt.initializers.TruncatedNormal(stddev=1 / np.sqrt(channels))
    shape = [1, channels * num_values, width]
    self._w = tf.Variable(initial(shape, tf.float32), name='w')
    self._b = tf.Variable(tf.zeros([width]), name='b')

  def __call__(self, grids: tf.Tensor) -> tf.Tensor:
    """Turns integers [N, H, W, C] into features, float32 [N, size]."""
    numbers = tf.cast(grids, tf.int32) - self._minimum
    numbers = tf.clip_by_value(numbers, 0, self._num_values - 1) + self._offsets
    # Channel by channel: all rows at once would take C times the memory.
    rows = [tf.gather(self._w, x, axis=1)[0] for x in tf.unstack(numbers, axis=-1)]
    return self._torso(tf.nn.relu(tf.add_n(rows) + self._b))  # [N, H, W, width]
