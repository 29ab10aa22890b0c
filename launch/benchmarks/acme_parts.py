"""dm-acme 0.4.0's own R2D2 parts, put together as well as a user can.

Unless `own` is set they have our network (the same layers; unrolled Acme's way) and our
environment, in uint8. With it: Acme's default network, and float32 stacks in [0, 1].
"""

import functools
import itertools
from collections.abc import Callable, Sequence

import acme
import dm_env
import numpy as np
import reverb
import sonnet as snt
import tensorflow as tf
import trfl
from acme import datasets, specs, wrappers
from acme.adders import reverb as adders
from acme.agents.tf import actors
from acme.agents.tf.r2d2 import learning
from acme.tf import networks, variable_utils
from acme.tf import utils as tf_utils
from acme.tf.networks import embedding
from acme.utils import counting, loggers
from acme.wrappers import frame_stacking

from benchmarks import emulator, our_parts
from r2d2_acme.config import R2D2Config
from r2d2_acme.learning.networks import DuellingHead
from r2d2_acme.observations.images import AtariTorso
from r2d2_acme.system import machine, runtime


class SameNetwork(networks.R2D2AtariNetwork):
  """Acme's network with our layers: as many weights, the same function of them."""

  def __init__(self, num_actions: int, config: R2D2Config):
    super().__init__(num_actions, core=networks.LSTM(config.core_size))
    torso = AtariTorso(config.conv_channels, config.torso_size, config.normalize_images)
    self._embed = embedding.OAREmbedding(torso, num_actions)
    self._head = DuellingHead(num_actions, config.head_size)


class _ToFloat(wrappers.EnvironmentWrapper):
  """Pixels in [0, 1], before they are stacked, as in Acme's `AtariWrapper`."""

  def reset(self) -> dm_env.TimeStep:
    return self._convert(self._environment.reset())

  def step(self, action) -> dm_env.TimeStep:
    return self._convert(self._environment.step(action))

  def observation_spec(self) -> specs.Array:
    return specs.Array(self._environment.observation_spec().shape, np.float64)

  def _convert(self, timestep: dm_env.TimeStep) -> dm_env.TimeStep:
    return timestep._replace(observation=timestep.observation / 255.0)


def wrap(environment: dm_env.Environment, own: bool = False) -> dm_env.Environment:
  """Stacks, previous action and reward; single precision."""
  to_float = [_ToFloat] if own else []
  stack = functools.partial(frame_stacking.FrameStackingWrapper, flatten=True)
  oar = wrappers.ObservationActionRewardWrapper
  return wrappers.wrap_all(
    environment, [*to_float, stack, oar, wrappers.SinglePrecisionWrapper]
  )


@functools.cache
def environment_spec(own: bool = False) -> specs.EnvironmentSpec:
  return acme.make_environment_spec(wrap(emulator.make_environments('pong', 1)[0], own))


def make_network(config: R2D2Config, own: bool = False) -> networks.RNNCore:
  spec = environment_spec(own)
  num_actions = spec.actions.num_values
  if own:
    network = networks.R2D2AtariNetwork(num_actions)
  else:
    network = SameNetwork(num_actions, config)
  tf_utils.create_variables(network, [spec.observations])
  return network


def make_tables(
  config: R2D2Config,
  own: bool = False,
  rate_limiter: reverb.rate_limiters.RateLimiter | None = None,
) -> Sequence[reverb.Table]:
  """As `acme.agents.tf.r2d2.R2D2` makes it."""
  state = make_network(config, own).initial_state(1)
  signature = adders.SequenceAdder.signature(
    environment_spec(own),
    {'core_state': tf_utils.squeeze_batch_dim(state)},
    sequence_length=config.sequence_length + 1,
  )
  return [
    reverb.Table(
      name=adders.DEFAULT_PRIORITY_TABLE,
      sampler=reverb.selectors.Prioritized(config.priority_exponent),
      remover=reverb.selectors.Fifo(),
      max_size=config.max_replay_size,
      rate_limiter=rate_limiter or reverb.rate_limiters.MinSize(1),
      signature=signature,
    )
  ]


def serve(config: R2D2Config, own: bool = False) -> Callable[[], tuple[str, int]]:
  """Side: as `our_parts.serve`."""
  server = reverb.Server(make_tables(config, own), port=None)
  return lambda: (f'localhost:{server.port}', our_parts.resident_bytes())


def serve_filled(config: R2D2Config, own: bool = False):
  """Side: as `our_parts.serve_filled`."""
  measure = serve(config, own)
  fill(config, measure()[0], own)
  return measure


def make_actor(
  config: R2D2Config,
  own: bool = False,
  client: reverb.Client | None = None,
  variable_source: acme.VariableSource | None = None,
) -> actors.RecurrentActor:
  """Epsilon-greedy; without a client it writes nothing."""
  network = make_network(config, own)
  adder = variable_client = None
  if client is not None:
    adder = adders.SequenceAdder(
      client,
      sequence_length=config.sequence_length + 1,
      period=config.sequence_period,
    )
  if variable_source is not None:
    variable_client = variable_utils.VariableClient(
      variable_source, {'policy': network.variables}, update_period=400
    )
  policy = snt.DeepRNN(
    [network, lambda q: trfl.epsilon_greedy(q, config.epsilon_base).sample()]
  )
  return actors.RecurrentActor(policy, adder, variable_client)


def make_player(
  actor: actors.RecurrentActor, environment: dm_env.Environment
) -> emulator.Player:
  """`acme.EnvironmentLoop`, less its bookkeeping."""
  timestep = None

  def play(should_stop: Callable[[], bool]) -> int:
    nonlocal timestep
    steps = 0
    while not should_stop():
      if timestep is None or timestep.last():
        timestep = environment.reset()
        actor.observe_first(timestep)
        continue
      action = actor.select_action(timestep.observation)
      timestep = environment.step(action)
      actor.observe(action, timestep)
      actor.update()
      steps += 1
    return steps

  return play


def act(config: R2D2Config, own: bool, address: str) -> Callable[[], float]:
  """Side: as `our_parts.act`, but with one environment, as Acme has it."""
  runtime.limit_threads(1)
  (environment,) = emulator.make_environments('pong', 1)
  actor = make_actor(config, own, reverb.Client(address))
  return emulator.steps_per_second(make_player(actor, wrap(environment, own)))


def evaluate(config: R2D2Config) -> Callable[[], float]:
  """Side: as `our_parts.evaluate`."""
  runtime.limit_threads(1)
  (environment,) = emulator.make_environments('pong', 1)
  return emulator.steps_per_second(make_player(make_actor(config), wrap(environment)))


def fill(config: R2D2Config, address: str, own: bool = False):
  """Plays until some windows are written."""
  num_steps = config.sequence_length + our_parts.NUM_WINDOWS * config.sequence_period
  (environment,) = emulator.make_environments('pong', 1)
  actor = make_actor(config, own, reverb.Client(address))
  calls = itertools.count()
  make_player(actor, wrap(environment, own))(lambda: next(calls) > num_steps)


def make_dataset(config: R2D2Config, address: str, **kwargs) -> tf.data.Dataset:
  return datasets.make_reverb_dataset(
    server_address=address, batch_size=config.batch_size, **kwargs
  )


def make_learner(
  config: R2D2Config,
  dataset: tf.data.Dataset,
  own: bool = False,
  address: str | None = None,
  counter: counting.Counter | None = None,
  logger: loggers.Logger | None = None,
) -> learning.R2D2Learner:
  return learning.R2D2Learner(
    environment_spec=environment_spec(own),
    network=make_network(config, own),
    target_network=make_network(config, own),
    burn_in_length=config.burn_in_length,
    sequence_length=config.sequence_length + 1,
    dataset=dataset,
    reverb_client=None if address is None else reverb.TFClient(address),
    counter=counter,
    logger=logger or loggers.NoOpLogger(),
    discount=config.discount,
    target_update_period=config.target_update_period,
    importance_sampling_exponent=config.importance_sampling_exponent,
    max_replay_size=config.max_replay_size,
    learning_rate=config.learning_rate,
    max_priority_weight=config.priority_eta,
    n_step=config.n_step,
    clip_grad_norm=config.max_gradient_norm,
  )


def learn(config: R2D2Config, own: bool = False) -> Callable[[], float]:
  """Side: as `our_parts.learn`."""
  runtime.limit_threads(machine.num_cores())
  server = serve_filled(config, own)
  address, _ = server()
  batch = next(iter(make_dataset(config, address, num_parallel_calls=1)))
  dataset = tf.data.Dataset.from_tensors(batch).repeat()
  return our_parts.seconds_per_call(make_learner(config, dataset, own).step)


def first_step(config: R2D2Config, address: str) -> Callable[[], None]:
  """Side: as `our_parts.first_step`."""
  runtime.limit_threads(machine.num_cores())
  dataset = make_dataset(config, address, prefetch_size=tf.data.AUTOTUNE)
  make_learner(config, dataset, address=address).step()
  return lambda: None
