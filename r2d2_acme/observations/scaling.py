"""From an observation's numbers to float32 numbers that a network can learn from."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf
from dm_env import specs

from r2d2_acme.observations import layouts


class Scaling(NamedTuple):
  """Maps x to (x - minimum) / span, so that bounds become 0 and 1.

  Attributes:
    minimum, span: float32 [] or, where elements differ, of the observation's shape;
      0 and 1 where an element stays as it is. An element that is constant becomes 0.
  """

  minimum: np.ndarray
  span: np.ndarray


_UNSCALED = Scaling(np.zeros((), np.float32), np.ones((), np.float32))
BYTES = Scaling(np.zeros((), np.float32), np.full((), 255, np.float32))


def by_bounds(spec: specs.Array) -> Scaling | None:
  """Returns the scaling by the bounds of a spec, or None if it has none.

  Elements are scaled whose bounds are finite and less than 2^31 - 1 apart. The bounds
  of uint8 are 0 and 255 if the spec does not say otherwise.
  """
  bounds = layouts.bounds(spec)
  if bounds is None:
    return None
  low, span = bounds
  is_scaled = span < layouts.MAX_SPAN
  minimum = np.where(is_scaled, low, 0.0).astype(np.float32)
  span = np.where(is_scaled & (span > 0), span, 1.0).astype(np.float32)
  if np.ptp(minimum) == 0 and np.ptp(span) == 0:  # all elements are alike
    minimum, span = (x.reshape(-1)[0].reshape(()) for x in (minimum, span))
  return Scaling(minimum, span)


def stack(scaling: Scaling | None, num_frames: int) -> Scaling | None:
  """Returns the scaling of frames that are stacked along the last axis."""
  if scaling is None:
    return None
  return Scaling(*(np.tile(x, num_frames) if x.ndim else x for x in scaling))


def scale(x: tf.Tensor, scaling: Scaling | None) -> tf.Tensor:
  """Turns numbers [N, ...] of any dtype into scaled float32; None does not scale."""
  minimum, span = scaling or _UNSCALED
  is_offset, is_scaled = np.any(minimum), np.any(span != 1)
  if x.dtype == tf.uint8:
    if not is_offset and np.all(span == 255):
      return _dequantize(x, 1.0)
    x = _dequantize(x, 255.0)
  x = tf.cast(x, tf.float32)
  if is_offset:
    x -= minimum
  return x / span if is_scaled else x


def _dequantize(x: tf.Tensor, maximum: float) -> tf.Tensor:
  """Maps uint8 [N, ...] to float32, 0 to 0 and 255 to `maximum`."""
  if tf.config.list_logical_devices('GPU'):
    return tf.cast(x, tf.float32) / (255.0 / maximum)
  # The same but for the last bit, in a quarter of the time, because TensorFlow does not
  # vectorise its cast on a CPU. `dequantize` has no GPU kernel.
  return tf.quantization.dequantize(
    tf.bitcast(x, tf.quint8), 0.0, maximum, mode='SCALED'
  )
