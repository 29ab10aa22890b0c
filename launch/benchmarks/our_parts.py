"""Our parts, as the benchmark needs them; `acme_parts` has Acme's."""

import dataclasses
import functools
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import acme
import dm_env
import psutil
import reverb
from acme import specs
from acme.utils import counting, loggers

from benchmarks import emulator
from r2d2_acme.acting.loop import VectorEnvironmentLoop
from r2d2_acme.builder import R2D2Builder
from r2d2_acme.config import R2D2Config
from r2d2_acme.results import evaluation
from r2d2_acme.system import machine, runtime
from r2d2_acme.types import Batch

NUM_WINDOWS = 4  # to draw batches from; they repeat


@functools.cache
def environment_spec() -> specs.EnvironmentSpec:
  return acme.make_environment_spec(emulator.make_environments('pong', 1)[0])


def make_builder(config: R2D2Config) -> R2D2Builder:
  return R2D2Builder(config, environment_spec())


def resident_bytes() -> int:
  """Of this process."""
  return psutil.Process(os.getpid()).memory_info().rss


def serve(config: R2D2Config, shard: int = 0) -> Callable[[], tuple[str, int]]:
  """Side: a replay server that never blocks; measures its address and its memory."""
  tables = make_builder(config).make_tables(reverb.rate_limiters.MinSize(1), shard)
  server = reverb.Server(tables, port=None)
  return lambda: (f'localhost:{server.port}', resident_bytes())


def serve_filled(config: R2D2Config) -> Callable[[], tuple[str, int]]:
  """Side: the same, with some windows of Pong in it."""
  measure = serve(config)
  fill(config, measure()[0])
  return measure


def make_player(
  config: R2D2Config,
  environments: Sequence[dm_env.Environment],
  address: str,
) -> emulator.Player:
  """The actor, writing to the server there."""
  actor = make_builder(config).make_actor(replay_clients=[reverb.Client(address)])
  counter = counting.Counter()
  is_over = lambda: False  # noqa: E731
  loop = VectorEnvironmentLoop(
    environments,
    actor,
    counter,
    loggers.NoOpLogger(),
    should_stop=lambda: is_over(),
  )

  def play(should_stop: Callable[[], bool]) -> int:
    nonlocal is_over
    is_over = should_stop
    before = counter.get_counts().get('steps', 0)
    loop.run()
    actor.flush()
    return counter.get_counts().get('steps', 0) - before

  return play


def act(config: R2D2Config, address: str) -> Callable[[], float]:
  """Side: steps/s of an actor of `envs_per_actor` that writes to the replay there."""
  runtime.limit_threads(1)
  environments = emulator.make_environments('pong', config.envs_per_actor)
  return emulator.steps_per_second(make_player(config, environments, address))


def evaluate(config: R2D2Config) -> Callable[[], float]:
  """Side: steps/s of the evaluator."""
  runtime.limit_threads(1)
  environments = emulator.make_environments('pong', 1)
  actor = make_builder(config).make_evaluator()

  def play(should_stop: Callable[[], bool]) -> int:
    num_steps = 0

    def is_over() -> bool:  # it is asked before each step
      nonlocal num_steps
      if should_stop():
        return True
      num_steps += 1
      return False

    evaluation.play(actor, environments, sys.maxsize, should_stop=is_over)
    return num_steps

  return emulator.steps_per_second(play)


def make_batches(config: R2D2Config, *addresses: str) -> Iterator[Batch]:
  clients = [reverb.Client(address) for address in addresses]
  return iter(make_builder(config).make_source(clients).dataset)


def real_batch(config: R2D2Config) -> Batch:
  """One batch of Pong, from a real replay."""
  server = serve_filled(config)  # as long as there is a reference
  return next(make_batches(config, server()[0]))


def fill(config: R2D2Config, address: str):
  """Plays until some windows are written."""
  num_steps = config.trace_length + NUM_WINDOWS * config.sequence_period
  config = dataclasses.replace(config, envs_per_actor=1)
  environments = emulator.make_environments('pong', 1)
  calls = itertools.count()
  make_player(config, environments, address)(lambda: next(calls) > num_steps)


def add(config: R2D2Config, address: str, num_calls: int) -> Callable[[], int]:
  """Side: writes to the replay there; measures the steps."""
  runtime.limit_threads(1)
  environments = emulator.make_environments('pong', config.envs_per_actor)
  play = make_player(config, environments, address)

  def measure() -> int:
    calls = itertools.count()
    return play(lambda: next(calls) >= num_calls)

  return measure


def learn(config: R2D2Config) -> Callable[[], float]:
  """Side: seconds of a learner step, on one real batch held in memory."""
  runtime.limit_threads(machine.num_cores())
  learner = make_builder(config).make_learner(itertools.repeat(real_batch(config)))
  return seconds_per_call(learner.step)


def first_step(config: R2D2Config, address: str) -> Callable[[], None]:
  """Side: a learner whose set-up includes its first step, on the replay there."""
  runtime.limit_threads(machine.num_cores())
  learner = make_builder(config).make_learner(
    make_batches(config, address), replay_clients=[reverb.Client(address)]
  )
  learner.step()
  return lambda: None


def sample(
  config: R2D2Config, addresses: Sequence[str], num_batches: int
) -> Callable[[], float]:
  """Side: batches/s of the dataset of all shards, with nobody learning."""
  runtime.limit_threads(machine.num_cores())

  def measure() -> float:
    # Anew: a waiting one would make some ahead.
    batches = make_batches(config, *addresses)
    for _ in range(4):  # those that the prefetching has ready
      next(batches)
    start = time.monotonic()
    for _ in range(num_batches):
      next(batches)
    return num_batches / (time.monotonic() - start)

  return measure


def seconds_per_call(step: Callable[[], None]) -> Callable[[], float]:
  """A `measure` of calls that take at least a second together; traces first."""
  step()

  def measure() -> float:
    start = time.monotonic()
    calls = 0
    while time.monotonic() - start < 1.0:
      step()
      calls += 1
    return (time.monotonic() - start) / calls

  return measure
