"""The table of windows: what one window holds, and how fast windows may be sampled.

A config and an environment's spec come in, Reverb's table goes out.
"""

from collections.abc import Sequence

import reverb
import tensorflow as tf
import tree
from acme import specs
from reverb import reverb_types

from r2d2_acme.config import R2D2Config
from r2d2_acme.observations import kinds
from r2d2_acme.types import Step, Window, core_state_spec

TABLE = 'windows'

_SERVER_INFO_TIMEOUT = 1  # seconds


def window_signature(
  config: R2D2Config, environment_spec: specs.EnvironmentSpec
) -> Window:
  """Returns the `tf.TensorSpec`s of one window as the table holds it."""
  rows = config.sequence_length + 1

  def column(dtype, name):
    return tf.TensorSpec([rows], dtype, name)

  return Window(
    steps=Step(
      observation=kinds.make(environment_spec.observations, config).stored_spec,
      action=column(tf.int32, 'action'),
      reward=column(tf.float32, 'reward'),
      discount=column(tf.float32, 'discount'),
      mask=column(tf.float32, 'mask'),
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
  """Builds the prioritized table of windows.

  Args:
    config: the hyperparameters.
    environment_spec: of the environments whose windows the table holds.
    rate_limiter: None keeps sampled windows / inserted windows at `samples_per_insert`,
      from `min_replay_size` windows on.

  Returns:
    A list of the one table.
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
  """Returns how many bytes a full table needs, by raw sizes and typical compression.

  Neighbouring windows share their frames, so that each window adds `sequence_period`
  frames and about two recurrent states.
  """
  frame_bytes = kinds.make(environment_spec.observations, config).stored_bytes
  scalar_bytes = 16
  state_bytes = 2 * 4 * config.core_size
  per_window = (
    config.sequence_period * (frame_bytes + scalar_bytes) + 2 * state_bytes + 500
  )
  return int(config.max_replay_size * per_window)


def size(client: reverb.Client) -> int | None:
  """Returns the number of windows; None if the server does not answer in a second."""
  table = _table_info(client)
  return None if table is None else table.current_size


def is_starved(client: reverb.Client) -> bool:
  """Returns whether a learner that waits for a batch has to wait.

  That is so while the server does not answer within a second, or may not hand out
  another window.
  """
  table = _table_info(client)
  if table is None:
    return True
  limiter = table.rate_limiter_info
  inserted = limiter.insert_stats.completed
  sampled = limiter.sample_stats.completed
  # As Reverb's limiter decides.
  ahead = inserted * limiter.samples_per_insert - (sampled + 1)
  return inserted < limiter.min_size_to_sample or ahead < limiter.min_diff


def sampled_to_inserted(client: reverb.Client) -> float:
  """Returns the ratio of sampled to inserted windows, as the server counts them.

  NaN if the server does not answer within a second.
  """
  table = _table_info(client)
  if table is None:
    return float('nan')
  limiter = table.rate_limiter_info
  inserted = max(limiter.insert_stats.completed, 1)
  return limiter.sample_stats.completed / inserted


def _table_info(client: reverb.Client) -> reverb_types.TableInfo | None:
  """Returns what the server says of the table; None if it does not answer in time."""
  try:
    return client.server_info(_SERVER_INFO_TIMEOUT)[TABLE]
  except (reverb.errors.ReverbError, RuntimeError):
    return None
