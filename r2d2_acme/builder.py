"""The only place that wires: from a config and a spec to the agent's parts."""

import copy
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import acme
import dm_env
import numpy as np
import reverb
import tensorflow as tf
from acme import specs
from acme.utils import counting, loggers
from tensorflow.python.eager import context as tf_context

from r2d2_acme import environments
from r2d2_acme.acting.exploration import epsilon_ladder
from r2d2_acme.acting.policy import BatchedActor
from r2d2_acme.config import R2D2Config
from r2d2_acme.learning import devices, networks, priorities
from r2d2_acme.learning.learner import R2D2Learner
from r2d2_acme.observations import layouts
from r2d2_acme.replay import adder as adder_lib
from r2d2_acme.replay import batches, shards, tables
from r2d2_acme.replay.priority_updater import PriorityUpdater
from r2d2_acme.seeds import derive_seed
from r2d2_acme.system import runtime
from r2d2_acme.types import Batch

_NETWORK_LOCK = threading.Lock()
_MIN_BFLOAT16_BATCH = 8  # of 16 observations it saves a sixth; one would take 1.2 times
# What a seed is for; the first part of its path.
_NETWORK, _ENVIRONMENT, _POLICY, _EVALUATOR = range(4)
_EVALUATION_ENVIRONMENT, _EVALUATION_POLICY = range(4, 6)


class Source(NamedTuple):
  """Where a learner's batches come from.

  Attributes:
    dataset: of `Batch`es.
    is_starved: returns whether a learner that waits for a batch has to wait.
    close: ends its threads.
  """

  dataset: tf.data.Dataset
  is_starved: Callable[[], bool]
  close: Callable[[], None] = lambda: None


class R2D2Builder:
  """Makes the parts of one agent, for one process or for many.

  What `torso_dtype='auto'` means is decided when a builder is made, and goes with it
  to other processes: there a GPU may be hidden, and all parts must agree.
  """

  def __init__(
    self,
    config: R2D2Config,
    environment_spec: specs.EnvironmentSpec,
    stream: int = 0,
  ):
    """Checks the environment and decides the dtype.

    Args:
      config: the hyperparameters.
      environment_spec: of single frames, or vectors.
      stream: numbers the starts of a run and its nodes: each explores in its own way.

    Raises:
      ValueError: R2D2 does not fit the environment, see `layouts.check`.
    """
    layouts.check(
      environment_spec.observations,
      environment_spec.actions,
      environment_spec.rewards,
      config.max_actions,
    )
    self._config = config
    self._spec = environment_spec
    self._stream = stream
    is_bfloat16 = config.torso_dtype == 'auto' and runtime.multiplies_bfloat16()
    self._torso_dtype = 'bfloat16' if is_bfloat16 else 'float32'

  @property
  def _make_torso(self) -> Callable[[Any], Any] | None:
    torso = self._config.torso
    return environments.import_function(torso) if torso else None

  def with_stream(self, stream: int) -> 'R2D2Builder':
    """Returns this builder with another stream of random numbers."""
    builder = copy.copy(self)
    builder._stream = stream
    return builder

  @property
  def torso_dtype(self) -> str:
    """'bfloat16' or 'float32': of the torso's products in large batches."""
    return self._torso_dtype

  def make_network(self, batch_size: int = 1) -> networks.R2D2Network:
    """Returns a network with its variables, the same for the same `seed`.

    With `torso_dtype='float32'` in the config it switches TensorFloat-32 off for the
    whole process, see `R2D2Config.torso_dtype`.

    Args:
      batch_size: observations in a call. For few, the torso's products are float32
        in any case: to round its weights would cost more than it saves.
    """
    is_large = batch_size >= _MIN_BFLOAT16_BATCH
    torso_dtype = tf.as_dtype(self._torso_dtype) if is_large else tf.float32
    if self._config.torso_dtype == 'float32':
      tf.config.experimental.enable_tensor_float_32_execution(False)
    with _NETWORK_LOCK:  # the seed is the process's, and nodes may be threads
      before = tf_context.global_seed()
      tf.random.set_seed(derive_seed(self._config.seed, _NETWORK))
      try:
        return networks.make_network(
          self._config, self._spec, torso_dtype, self._make_torso
        )
      finally:
        # Else whatever draws TensorFlow's random numbers draws the same at each start.
        tf.random.set_seed(before)

  def make_tables(
    self,
    rate_limiter: reverb.rate_limiters.RateLimiter | None = None,
    shard: int = 0,
  ) -> Sequence[reverb.Table]:
    return tables.make_tables(self._config, self._spec, rate_limiter, shard)

  def make_source(self, replay_clients: Sequence[reverb.Client]) -> Source:
    """The batches of all shards of the replay."""
    if len(replay_clients) > 1:
      sampler = shards.Sampler(replay_clients, self._config, self._spec)
      return Source(sampler.make_dataset(), sampler.is_starved, sampler.close)
    (client,) = replay_clients
    return Source(
      self.make_dataset(client.server_address),
      functools.partial(tables.is_starved, client),
    )

  def make_dataset(self, server_address: str, prefetch: int = 2) -> tf.data.Dataset:
    return batches.make_dataset(self._config, self._spec, server_address, prefetch)

  def make_adder(
    self,
    client: reverb.Client,
    priority_fn: adder_lib.PriorityFn | None = None,
    should_stop: Callable[[], bool] = lambda: False,
  ) -> adder_lib.WindowAdder:
    """`priority_fn` may serve many adders; by default one is made."""
    return adder_lib.WindowAdder(
      client,
      self._config,
      self._spec,
      priority_fn or priorities.make_priority_fn(self._config),
      should_stop,
    )

  def make_actor(
    self,
    index: int = 0,
    *,
    network: networks.R2D2Network | None = None,
    replay_clients: Sequence[reverb.Client] = (),
    variable_source: acme.VariableSource | None = None,
    should_stop: Callable[[], bool] = lambda: False,
  ) -> BatchedActor:
    """The `index`-th of `num_actors`, for its `envs_per_actor` environments.

    Environments write to the replay's shards in turn, so that each shard has its part
    of the ladder of epsilons.
    """
    num_envs = self._config.envs_per_actor
    fleet = range(index * num_envs, (index + 1) * num_envs)
    network = network or self.make_network(num_envs)
    adders = None
    if replay_clients:
      clients = [replay_clients[i % len(replay_clients)] for i in fleet]
      for client in set(clients):
        client.server_info()  # waits until the server is there
      priority_fn = priorities.make_priority_fn(self._config)
      adders = [self.make_adder(client, priority_fn, should_stop) for client in clients]
    actor = BatchedActor(
      network,
      self._config,
      self._spec,
      epsilons=epsilon_ladder(self._config)[fleet].tolist(),
      seeds=[derive_seed(self._config.seed, _POLICY, i, self._stream) for i in fleet],
      adders=adders,
    )
    if variable_source is not None:
      actor.follow(variable_source)
    return actor

  def make_evaluator(
    self, *, network: networks.R2D2Network | None = None
  ) -> BatchedActor:
    """Nearly greedy, writes nothing; its `fetch` takes fresh parameters."""
    return BatchedActor(
      network or self.make_network(),
      self._config,
      self._spec,
      epsilons=[self._config.evaluator_epsilon],
      seeds=[derive_seed(self._config.seed, _EVALUATOR, 1, self._stream)],
    )

  def make_learner(
    self,
    iterator: Iterator[Batch],
    *,
    replay_clients: Sequence[reverb.Client] = (),
    counter: counting.Counter | None = None,
    logger: loggers.Logger | None = None,
  ) -> R2D2Learner:
    num_rows = self._config.batch_size * (self._config.sequence_length + 1)
    links: dict[str, Any] = {}
    if replay_clients:
      links['update_priorities'] = _make_update_priorities(replay_clients)
      links['replay_ratio'] = lambda: {
        'sampled_to_inserted': tables.sampled_to_inserted(replay_clients)
      }
    with devices.make_strategy(self._config.learner_devices).scope():
      return R2D2Learner(
        self.make_network(num_rows),
        self.make_network(num_rows),
        iterator,
        self._config,
        counter=counter,
        logger=logger,
        **links,
      )


def _make_update_priorities(
  clients: Sequence[reverb.Client],
) -> Callable[[np.ndarray, np.ndarray], None]:
  """Returns a function that writes the priorities of windows back by their keys.

  Each shard gets all of them, and ignores keys that it does not have: a key is random
  in 64 bits, and 16 bytes more cost nothing.
  """
  updaters = [PriorityUpdater(client) for client in clients]

  def update(keys: np.ndarray, new_priorities: np.ndarray):
    for updater in updaters:
      updater.update(keys, new_priorities)

  return update


def make_environment_spec(
  config: R2D2Config, environment_factory: Callable[[int], dm_env.Environment]
) -> specs.EnvironmentSpec:
  """Returns the spec of an environment that is made for the purpose, and closed.

  Raises:
    ValueError: it is no `dm_env.Environment`.
  """
  seeds = [environment_seed(config, 0)]
  with environments.opened(environment_factory, seeds) as (environment,):
    return acme.make_environment_spec(environment)


def environment_seed(config: R2D2Config, index: int, stream: int = 0) -> int:
  """The seed of the `index`-th of the fleet's environments, see `R2D2Builder`."""
  return derive_seed(config.seed, _ENVIRONMENT, index, stream)


def evaluator_seed(config: R2D2Config, stream: int = 0) -> int:
  """The seed of the evaluator's environment, see `R2D2Builder`."""
  return derive_seed(config.seed, _EVALUATOR, 0, stream)


def evaluation_seeds(seed: int, index: int) -> tuple[int, int]:
  """Those of the `index`-th environment of an evaluation, and of its policy."""
  return (
    derive_seed(seed, _EVALUATION_ENVIRONMENT, index),
    derive_seed(seed, _EVALUATION_POLICY, index),
  )
