"""Batches from replay: windows come in, and go out time-major, with whole inputs."""

import reverb
import tensorflow as tf
import tree
from acme import specs

from r2d2_acme.config import R2D2Config
from r2d2_acme.observations import kinds
from r2d2_acme.observations.base import Kind
from r2d2_acme.replay import tables
from r2d2_acme.types import Batch, Observation


def make_dataset(
  config: R2D2Config,
  environment_spec: specs.EnvironmentSpec,
  server_address: str,
  prefetch: int = 2,
) -> tf.data.Dataset:
  """Returns an endless dataset of `Batch`es, drawn by priority.

  Args:
    config: the hyperparameters.
    environment_spec: of the environments whose windows the table holds.
    server_address: host and port of the Reverb server.
    prefetch: the number of batches that are made ahead.
  """
  samples = make_samples(config, environment_spec, server_address, config.batch_size)
  samples = samples.batch(config.batch_size, drop_remainder=True)
  return prepare(samples, config, environment_spec, prefetch)


def make_samples(
  config: R2D2Config,
  environment_spec: specs.EnvironmentSpec,
  server_address: str,
  num_in_flight: int,
  **options,
) -> reverb.TrajectoryDataset:
  """Returns a dataset of single windows, as Reverb draws them.

  Args:
    config, environment_spec, server_address: as for `make_dataset`.
    num_in_flight: the number of windows that are requested at once.
    **options: of `reverb.TrajectoryDataset`.
  """
  signature = tables.window_signature(config, environment_spec)
  return reverb.TrajectoryDataset(
    server_address=server_address,
    table=tables.TABLE,
    dtypes=tree.map_structure(lambda spec: spec.dtype, signature),
    shapes=tree.map_structure(lambda spec: spec.shape, signature),
    max_in_flight_samples_per_worker=num_in_flight,
    **options,
  )


def prepare(
  samples: tf.data.Dataset,
  config: R2D2Config,
  environment_spec: specs.EnvironmentSpec,
  prefetch: int,
) -> tf.data.Dataset:
  """Returns a dataset of `Batch`es, made of samples of B windows each."""
  kind = kinds.make(environment_spec.observations, config)
  # Without AutoGraph, which would take a second to find nothing to convert.
  to_batch = tf.autograph.experimental.do_not_convert(_to_batch)
  batches = samples.map(
    lambda sample: to_batch(sample, kind),
    num_parallel_calls=1,
    deterministic=True,
  )
  return batches.prefetch(prefetch)


def _to_batch(sample: reverb.ReplaySample, kind: Kind) -> Batch:
  """Turns B windows into a time-major batch."""
  steps = sample.data.steps
  return Batch(
    observations=Observation(
      observation=kind.rebuild_inputs(steps.observation),
      action=tf.transpose(steps.action),
      reward=tf.transpose(steps.reward),
    ),
    discount=tf.transpose(steps.discount),
    mask=tf.transpose(steps.mask),
    core_state=tree.map_structure(
      lambda *states: tf.stack(states, axis=1), *sample.data.core_state
    ),
    learner_steps=sample.data.learner_steps,
    keys=sample.info.key,
    probabilities=sample.info.probability,
    table_size=sample.info.table_size,
  )
