"""Observations that are images: stacked, then seen by three convolutions."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import sonnet as snt
import tensorflow as tf
from acme import specs

from r2d2_acme.config import R2D2Config
from r2d2_acme.observations import base, layouts, scaling
from r2d2_acme.observations.scaling import Scaling

# Bytes of a stored image over its raw bytes: the compression that busy Atari games
# reach, rounded up.
_COMPRESSION = 0.35

# Kernel and stride, each a number or one for height and one for width.
Convolutions = Sequence[tuple[Any, Any]]
CONVOLUTIONS: Convolutions = ((8, 4), (4, 2), (3, 1))  # Mnih et al. 2015


class Images(base.Kind):
  """Images [H, W, C]; an input is the newest `frame_stack` ones, the oldest first.

  Stacks lie along the channels: [H, W, frame_stack x C]. Frames may also be images
  [C, H, W] or [H, W]; so they are stored.
  """

  def __init__(self, frame_spec: specs.Array, config: R2D2Config):
    image_shape = layouts.image_shape(frame_spec)
    assert image_shape is not None
    *shape, self._channels = image_shape
    num_frames = config.frame_stack
    input_shape = (*shape, self._channels * num_frames)
    super().__init__(frame_spec, config, num_frames, input_shape)
    self._is_moved = frame_spec.shape != (*shape, self._channels)

  @classmethod
  def fits(cls, frame_spec: specs.Array) -> bool:
    is_image = layouts.image_shape(frame_spec) is not None
    return is_image and not layouts.is_grid(frame_spec)

  def push_frames(
    self, inputs: np.ndarray, frames: Sequence[np.ndarray], is_first: Sequence[bool]
  ):
    new = self._channels
    if self._is_moved:
      frames = [layouts.as_image(frame) for frame in frames]
    # All memory moves by one frame's channels. Within each pixel this drops the oldest
    # frame; what comes in from the next pixel lies where the newest frame goes.
    flat = inputs.reshape(-1)
    flat[:-new] = flat[new:]
    for i, frame in enumerate(frames):
      inputs[i, ..., -new:] = frame
      if is_first[i]:
        inputs[i, ..., :-new] = 0

  def next_inputs(self, inputs: tf.Tensor, frames: tf.Tensor) -> tf.Tensor:
    new = self._to_images(frames)
    return tf.concat([inputs[..., self._channels :], new], axis=-1)

  @property
  def torso_inputs(self) -> int:
    size = self.input_spec.shape[:2]
    positions = math.prod(_output_size(size, convolutions(*size)))
    return positions * self._config.conv_channels[-1]

  @property
  def stored_bytes(self) -> float:
    return super().stored_bytes * _COMPRESSION

  def rebuild_inputs(self, stored: tf.Tensor) -> tf.Tensor:
    return stack_frames(self._to_images(self._newest_rows(stored)), self.num_frames)

  def _to_images(self, frames: tf.Tensor) -> tf.Tensor:
    """Turns frames [..., C, H, W] or [..., H, W] into images [..., H, W, C]."""
    if not self._is_moved:
      return frames
    if len(self.frame_spec.shape) == 2:
      return frames[..., tf.newaxis]
    *batch, channels, height, width = range(frames.shape.rank)
    return tf.transpose(frames, [*batch, height, width, channels])

  def make_torso(self, dtype: tf.DType) -> snt.Module:
    return AtariTorso(
      self._config.conv_channels,
      self._config.torso_size,
      self._config.normalize_images,
      dtype,
      scaling=scaling.stack(self._scaling_of_images(), self.num_frames),
      convolutions=convolutions(*self.input_spec.shape[:2]),
    )

  def _scaling_of_images(self) -> Scaling | None:
    by_bounds = scaling.by_bounds(self.frame_spec)
    if by_bounds is None or not self._is_moved:
      return by_bounds
    return Scaling(*(layouts.as_image(x) if x.ndim else x for x in by_bounds))


def convolutions(height: int, width: int) -> Convolutions:
  """Returns kernels and strides for images of a size.

  Images that are too small for the kernels of Mnih et al. 2015 get kernels of 3x3, with
  stride 2 along an axis of more than 12 pixels.
  """
  size = [height, width]
  if min(size) >= layouts.MIN_ATARI_SIZE:
    return CONVOLUTIONS
  layers = []
  for _ in CONVOLUTIONS:
    kernel = tuple(min(3, x) for x in size)
    stride = tuple(2 if x > 12 else 1 for x in size)
    layers.append((kernel, stride))
    size = _output_size(size, layers[-1:])
  return tuple(layers)


def _output_size(size: Sequence[int], layers: Convolutions) -> list[int]:
  """Returns height and width of what convolutions leave of an image."""
  height, width = size
  for kernel, stride in layers:
    kernel_height, kernel_width = np.broadcast_to(kernel, 2).tolist()
    stride_height, stride_width = np.broadcast_to(stride, 2).tolist()
    height = (height - kernel_height) // stride_height + 1
    width = (width - kernel_width) // stride_width + 1
  return [height, width]


def stack_frames(frames: tf.Tensor, num_frames: int) -> tf.Tensor:
  """Stacks each frame behind those before it.

  Args:
    frames: [T + num_frames - 1, ..., C], in the order of time.
    num_frames: the number of frames in a stack.

  Returns:
    [T, ..., num_frames x C], in each stack the oldest frame first.
  """
  if num_frames == 1:
    return frames
  rows = frames.shape[0] - num_frames + 1
  if frames.dtype == tf.uint8 and frames.shape[-1] == 1 and num_frames == 4:
    return _stack_four_bytes(frames, rows)
  return tf.concat([frames[i : i + rows] for i in range(num_frames)], axis=-1)


def _stack_four_bytes(frames: tf.Tensor, rows: int) -> tf.Tensor:
  """Makes one int32 of a pixel's four bytes, the oldest lowest, and reads its bytes.

  It takes a quarter of the time of a concatenation along an axis of length 1.
  """
  pixels = tf.cast(frames[..., 0], tf.int32)  # [T + 3, ...]
  pairs = pixels[:-1] + pixels[1:] * 2**8  # [T + 2, ...]
  return tf.bitcast(pairs[:rows] + pairs[2 : rows + 2] * 2**16, tf.uint8)


class AtariTorso(snt.Module):
  """Three convolutions (Mnih et al. 2015) and a linear layer, ReLU after each."""

  def __init__(
    self,
    channels: Sequence[int],
    size: int,
    normalize: bool = False,
    dtype: tf.DType = tf.float32,
    name: str | None = None,
    *,
    scaling: Scaling | None = None,
    convolutions: Convolutions = CONVOLUTIONS,
  ):
    """Constructs the torso.

    Args:
      channels: the three convolutions' widths.
      size: the number of features.
      normalize: whether each image is centred on the mean of its pixels, and the
        features are layer-normalised before the last ReLU. Without it a game's
        constant background is most of what each layer sees.
      dtype: of the products inside a `tf.function`; variables, the linear layer's
        bias and features are float32 in any case.
      name: of the module.
      scaling: of the images' numbers; None divides uint8 by 255 and takes floats as
        they are.
      convolutions: kernel and stride of each.
    """
    super().__init__(name=name)
    self._scaling = scaling
    self._layers = convolutions
    self._convolutions = [
      snt.Conv2D(width, kernel, stride, padding='VALID', name=f'conv_{i}')
      for i, (width, (kernel, stride)) in enumerate(
        zip(channels, convolutions, strict=True), start=1
      )
    ]
    self._linear = snt.Linear(size)
    self._layer_norm = snt.LayerNorm(-1, True, True) if normalize else None
    self._dtype = dtype

  def __call__(self, images: tf.Tensor) -> tf.Tensor:
    """Turns numbers [N, H, W, C] into features, float32 [N, size].

    Raises:
      ValueError: images are too small, or of integers whose scaling is not known.
    """
    height, width = images.shape[1:3]
    if min(_output_size((height, width), self._layers)) < 1:
      raise ValueError(
        f'images of {height}x{width} pixels are too small for the convolutions: resize '
        f'them to at least {layouts.MIN_ATARI_SIZE}x{layouts.MIN_ATARI_SIZE}'
      )
    if images.dtype.is_integer and images.dtype != tf.uint8 and self._scaling is None:
      raise ValueError(f'images must be uint8 or float, not {images.dtype.name}')
    default = scaling.BYTES if images.dtype == tf.uint8 else None
    x = scaling.scale(images, self._scaling or default)
    if self._layer_norm is not None:
      x -= tf.reduce_mean(x, axis=[1, 2, 3], keepdims=True)
    self._create_variables(x)
    # Eagerly, TensorFlow 2.8 takes oneDNN's kernel for the dtype that an op saw first.
    dtype = self._dtype if tf.inside_function() else tf.float32
    x = tf.cast(x, dtype)
    for layer in self._convolutions:
      w, b = tf.cast(layer.w, dtype), tf.cast(layer.b, dtype)
      x = tf.nn.conv2d(x, w, layer.stride, 'VALID')
      x = tf.nn.relu(tf.nn.bias_add(x, b))
    x = tf.matmul(snt.flatten(x), tf.cast(self._linear.w, dtype))
    x = tf.cast(x, tf.float32) + self._linear.b
    if self._layer_norm is not None:
      x = self._layer_norm(x)
    return tf.nn.relu(x)

  @snt.once
  def _create_variables(self, images: tf.Tensor):
    """Lets Sonnet create the layers' variables, by a call of each, in float32."""
    x = tf.zeros_like(images[:1])
    for layer in self._convolutions:
      x = layer(x)
    self._linear(snt.flatten(x))
