"""The table of windows: what one window holds, and how fast windows may be sampled.

A config and an environment's spec come in, Reverb's tables go out. With more than one
shard each server has a part of the windows, and a gate: see `make_tables`.
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
GATE = 'gate'

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
  shard: int = 0,
) -> Sequence[reverb.Table]:
  """Builds the prioritized table of windows of a server.

  Args:
    config: the hyperparameters.
    environment_spec: of the environments whose windows the table holds.
    rate_limiter: None keeps sampled windows / inserted windows at `samples_per_insert`,
      from `min_replay_size` windows on.
    shard: the index of the server among `num_replay_shards`.

  Returns:
    A list of the one table. With more than one shard that table has no limiter of its
    own, because the ratio is that of all shards together, see `ratio`. A second table
    holds the actors back: each window needs an item there, too, and the learner lets
    in the next `gate_period` items with each sample that it takes of it.
  """
  num_shards = config.num_replay_shards
  if num_shards > 1:
    rate_limiter = reverb.rate_limiters.MinSize(1)
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
    max_size=len(range(shard, config.max_replay_size, num_shards)),
    rate_limiter=rate_limiter,
    signature=window_signature(config, environment_spec),
  )
  return [table] if num_shards == 1 else [table, _make_gate(gate_period(config))]


def gate_period(config: R2D2Config) -> int:
  """Returns how many windows the learner lets into a shard at once.

  As many of each shard together are at most the tolerance of the ratio.
  """
  windows = config.min_replay_size * config.samples_per_insert_tolerance
  return max(1, int(windows / config.num_replay_shards))


def _make_gate(period: int) -> reverb.Table:
  """Builds a table that takes `period` items more with each sample of it."""
  # A whole number of samples may differ from inserts / period by rounding.
  margin = 0.5 / period
  return reverb.Table(
    name=GATE,
    sampler=reverb.selectors.Fifo(),
    remover=reverb.selectors.Fifo(),
    max_size=1,
    rate_limiter=reverb.rate_limiters.RateLimiter(
      reverb.pybind.RateLimiter(
        samples_per_insert=1 / period,
        min_size_to_sample=1,
        min_diff=-margin,
        max_diff=1 + margin,
      )
    ),
  )


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
  table = info(client)
  return None if table is None else table.current_size


def is_starved(client: reverb.Client) -> bool:
  """Returns whether a learner that waits for a batch has to wait.

  That is so while the server does not answer within a second, or may not hand out
  another window.
  """
  table = info(client)
  return table is None or not _may_sample(table)


def is_gate_ready(client: reverb.Client) -> bool:
  """Returns whether a shard's gate has a sample to take, which lets in more windows."""
  gate = info(client, GATE)
  return gate is not None and _may_sample(gate)


def _may_sample(table: reverb_types.TableInfo) -> bool:
  limiter = table.rate_limiter_info
  inserted = limiter.insert_stats.completed
  sampled = limiter.sample_stats.completed
  # As Reverb's limiter decides.
  ahead = inserted * limiter.samples_per_insert - (sampled + 1)
  return inserted >= limiter.min_size_to_sample and ahead >= limiter.min_diff


def sampled_to_inserted(clients: Sequence[reverb.Client]) -> float:
  """Returns the ratio of sampled to inserted windows, as the servers count them.

  Those that do not answer within a second are left out; NaN if none does.
  """
  limiters = [table.rate_limiter_info for table in map(info, clients) if table]
  if not limiters:
    return float('nan')
  sampled = sum(x.sample_stats.completed for x in limiters)
  return sampled / max(sum(x.insert_stats.completed for x in limiters), 1)


def info(client: reverb.Client, table: str = TABLE) -> reverb_types.TableInfo | None:
  """Returns what the server says of a table; None if it does not answer in time."""
  try:
    return client.server_info(_SERVER_INFO_TIMEOUT)[table]
  except (reverb.errors.ReverbError, RuntimeError):
    return None
