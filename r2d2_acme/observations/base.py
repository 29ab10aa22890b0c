"""What every kind of observation has: an input, a place in replay, and a torso.

In comes the spec of an environment's observations. Out goes what acting, replay and
learning need to handle them without knowing what they are.
"""

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import sonnet as snt
import tensorflow as tf
from acme import specs

from r2d2_acme.config import R2D2Config

_MAX_BLOCK_LENGTH = 20  # rows; longer blocks do not compress better


class Kind(abc.ABC):
  """A kind of observation, from the environment to the network's features.

  A *frame* is one observation of the environment. An *input* is what the network sees
  at one step. Here it is the newest frame; a subclass may stack several along the last
  axis.

  1. The actor keeps the inputs of its environments in one array: `make_inputs`,
     `push_frames`.
  2. Replay stores each frame once, in blocks: `num_blocks`, `block_length`,
     `stored_spec`.
  3. The dataset rebuilds the inputs from these blocks: `rebuild_inputs`.
  4. The network turns inputs into features: `make_torso`.

  A window's frames are stored in blocks because each block is one cell of Reverb's,
  and that costs the actor a third of what a cell for each frame would. Windows end
  with a block, so that neighbouring windows share their blocks; the block length
  divides `sequence_period` for this reason. A window's frames are the newest rows of
  its blocks: L + 1 of them (L = `sequence_length`), and before these the
  `num_frames - 1` frames that its first input needs.

  Attributes:
    frame_spec: spec of a frame.
    input_spec: spec of an input, without a batch axis.
    num_frames: the number of frames that an input is made of.
    num_blocks: the number of blocks that hold a window's frames.
    block_length: the number of rows in a block.
    action_mask: where a tuple of inputs has the mask of valid actions; None without
      one.
  """

  action_mask: int | None = None

  def __init__(
    self,
    frame_spec: specs.Array,
    config: R2D2Config,
    num_frames: int = 1,
    input_shape: Sequence[int] | None = None,
  ):
    """Constructs the kind; by default an input has a frame's shape."""
    self._config = config
    self.frame_spec = frame_spec
    self.num_frames = num_frames
    self.input_spec = specs.Array(input_shape or frame_spec.shape, frame_spec.dtype)
    self._num_rows = config.sequence_length + num_frames
    self.block_length = max(
      n for n in range(1, _MAX_BLOCK_LENGTH + 1) if config.sequence_period % n == 0
    )
    self.num_blocks = math.ceil(self._num_rows / self.block_length)

  @classmethod
  @abc.abstractmethod
  def fits(cls, frame_spec: specs.Array) -> bool:
    """Returns whether a spec that `layouts.check` lets through is of this kind."""

  def flatten(self, observation: Any) -> Sequence[np.ndarray]:
    """Returns the frames in an observation of the environment: here it is the one."""
    return (observation,)

  def make_inputs(self, num_envs: int) -> Any:
    """Returns the inputs of E environments before any episode, zeros [E, ...]."""
    return np.zeros((num_envs, *self.input_spec.shape), self.input_spec.dtype)

  def push_frames(
    self, inputs: np.ndarray, frames: Sequence[Any], is_first: Sequence[bool]
  ):
    """Moves the inputs of E environments on by one step, in place.

    Args:
      inputs: [E, ...], from `make_inputs`.
      frames: the E newest observations.
      is_first: whether each of these is the first of an episode; frames before an
        episode's first count as zeros.
    """
    del is_first  # an input has no older frames
    for i, frame in enumerate(frames):
      inputs[i] = frame

  def next_inputs(self, inputs: Any, frames: Any) -> Any:
    """Is `push_frames` within episodes, for tensors [B, ...]; returns new inputs."""
    del inputs
    return frames

  @property
  def torso_inputs(self) -> int:
    """How many numbers the torso's linear layer takes."""
    return math.prod(self.input_spec.shape)

  @property
  def stored_spec(self) -> Any:
    """Spec of a window's frames in replay: [num_blocks, block_length, ...]."""
    shape = (self.num_blocks, self.block_length, *self.frame_spec.shape)
    return tf.TensorSpec(shape, tf.as_dtype(self.frame_spec.dtype), 'observation')

  @property
  def stored_bytes(self) -> float:
    """Bytes that a frame is expected to take in replay."""
    return float(np.prod(self.frame_spec.shape)) * self.frame_spec.dtype.itemsize

  def rebuild_inputs(self, stored: Any) -> Any:
    """Turns stored frames [B, num_blocks, block_length, ...] into [L + 1, B, ...]."""
    return self._newest_rows(stored)

  def _newest_rows(self, stored: tf.Tensor) -> tf.Tensor:
    """Returns the frames that belong to a window, [L + num_frames, B, ...]."""
    batch_size, num_blocks, length, *shape = stored.shape
    rows = tf.reshape(stored, [batch_size, num_blocks * length, *shape])
    rows = tf.transpose(rows, [1, 0, *range(2, rows.shape.rank)])
    return rows[-self._num_rows :]

  def adapt_torso(self, make_torso: Callable[[Any], snt.Module]) -> snt.Module:
    """Returns a user's module from inputs [N, ...] to features, see `make_torso`.

    Args:
      make_torso: makes the module from the spec of an input, without a batch axis.
    """
    return make_torso(self.input_spec)

  @abc.abstractmethod
  def make_torso(self, dtype: tf.DType) -> snt.Module:
    """Builds the module from inputs [N, ...] to features, float32 [N, torso_size].

    Args:
      dtype: of the products inside a `tf.function`. A kind may ignore it and use
        float32.
    """
