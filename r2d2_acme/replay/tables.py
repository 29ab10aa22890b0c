"""The table of windows: what an item holds, and how fast it may be sampled."""

import math
from collections.abc import Sequence

import numpy as np
import reverb
import tensorflow as tf
import tree
from acme import specs

from r2d2_acme.config import R2D2Config
from r2d2_acme.observations import layouts
from r2d2_acme.types import Step, Window, core_state_spec

TABLE = 'windows'

_SERVER_INFO_TIMEOUT = 1  # seconds

# Bytes of a stored frame over its raw bytes: the compression that busy Atari games
# reach, rounded up. Other observations are counted raw.
_IMAGE_COMPRESSION = 0.35

_MAX_BLOCK_LENGTH = 20  # rows; longer ones compress no better


def frame_blocks(
  config: R2D2Config, environment_spec: specs.EnvironmentSpec
) -> tuple[int, int]:
  """How a window's frames are stored: the number of blocks, and the rows of each.

  Each block is one cell of Reverb's, which costs the actor a third of what a cell for
  each frame does. Windows end with a block, so that neighbours share their blocks:
  thus the length divides `sequence_period`. A window is its blocks' newest rows.
  """
  period = config.sequence_period
  length = max(n for n in range(1, _MAX_BLOCK_LENGTH + 1) if period % n == 0)
  num_rows = config.sequence_length + layouts.num_stacked(
    config, environment_spec.observations
  )
  return math.ceil(num_rows / length), length


def window_signature(
  config: R2D2Config, environment_spec: specs.EnvironmentSpec
) -> Window:
  """`tf.TensorSpec`s of one replay item."""
  rows = config.sequence_length + 1
  frame = environment_spec.observations
  blocks = frame_blocks(config, environment_spec)

  def column(shape, dtype, name):
    return tf.TensorSpec(shape, tf.as_dtype(dtype), name)

  return Window(
    steps=Step(
      observation=column((*blocks, *frame.shape), frame.dtype, 'observation'),
      action=column([rows], np.int32, 'action'),
      reward=column([rows], np.float32, 'reward'),
      discount=column([rows], np.float32, 'discount'),
      mask=column([rows], np.float32, 'mask'),
    ),
    core_state=(
      tree.map_structure(
        lambda spec: tf.TensorSpec(spec.shape, spec.dtype, 'core_state'),
        core_state_spec(config),
      ),
    )
    * 3,
    learner_steps=tf.TensorSpec((), tf.int64, 'learner_steps'),
  )


def make_tables(
  config: R2D2Config,
  environment_spec: specs.EnvironmentSpec,
  rate_limiter: reverb.rate_limiters.RateLimiter | None = None,
) -> Sequence[reverb.Table]:
  """The prioritized table of windows.

  Its limiter, by default, holds sampled windows / inserted windows at
  `samples_per_insert` from `min_replay_size` windows on.
  """
  if rate_limiter is None:
    rate_limiter = reverb.rate_limiters.SampleToInsertRatio(
      samples_per_insert=config.samples_per_insert,
      min_size_to_sample=config.min_replay_size,
      error_buffer=config.error_buffer,
    )
  table = reverb.Table(
    name=TABLE,
    sampler=reverb.selectors.Prioritized(config.priority_exponent),
    remover=reverb.selectors.Fifo(),
    max_size=config.max_replay_size,
    rate_limiter=rate_limiter,
    signature=window_signature(config, environment_spec),
  )
  return [table]


def estimate_bytes(config: R2D2Config, environment_spec: specs.EnvironmentSpec) -> int:
  """Bytes that a full table needs, from the raw sizes and typical compression.

  Neighbouring windows share their frames, so that a window adds `sequence_period`
  of them and about two recurrent states.
  """
  frame = environment_spec.observations
  frame_bytes = float(np.prod(frame.shape)) * np.dtype(frame.dtype).itemsize
  if layouts.is_image(frame):
    frame_bytes *= _IMAGE_COMPRESSION
  scalar_bytes = 16
  state_bytes = 2 * 4 * config.core_size
  per_window = (
    config.sequence_period * (frame_bytes + scalar_bytes) + 2 * state_bytes + 500
  )
  return int(config.max_replay_size * per_window)


def sampled_to_inserted(client: reverb.Client) -> float:
  """Returns the ratio of sampled to inserted windows, as the server counts them.

  NaN if the server does not answer within a second.
  """
  try:
    table = client.server_info(_SERVER_INFO_TIMEOUT)[TABLE]
  except (reverb.errors.ReverbError, RuntimeError):
    return float('nan')
  limiter = table.rate_limiter_info
  inserted = max(limiter.insert_stats.completed, 1)
  return limiter.sample_stats.completed / inserted
