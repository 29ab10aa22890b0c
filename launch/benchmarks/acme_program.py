"""A Launchpad program wired from Acme's parts; `end_to_end` runs it.

The same config as ours: network, windows, batch, replay ratio.
"""

import os

import acme
import launchpad as lp
import reverb
from absl import app, flags
from acme import wrappers
from acme.utils import counting
from acme.utils import loggers as acme_loggers

from benchmarks import acme_parts, emulator, end_to_end
from r2d2_acme import running
from r2d2_acme.config import R2D2Config
from r2d2_acme.running import launching
from r2d2_acme.system import machine, runtime
from r2d2_acme.workdir import loggers

_NUM_ACTORS = flags.DEFINE_integer('num_actors', 1, 'Actors, of one environment each.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'For logs and output.', required=True)


class _Counting(wrappers.EnvironmentWrapper):
  """Counts each step: `acme.EnvironmentLoop` does at an episode's end only."""

  def __init__(self, environment, counter: counting.Counter):
    super().__init__(environment)
    self._counter = counter

  def step(self, action):
    self._counter.increment(steps=1)
    return self._environment.step(action)


class _Learner(acme.VariableSource):
  def __init__(
    self,
    config: R2D2Config,
    client: reverb.Client,
    counter: counting.Counter,
    workdir: str,
  ):
    runtime.limit_threads(machine.num_cores())
    address = client.server_address
    self._learner = acme_parts.make_learner(
      config,
      acme_parts.make_dataset(config, address, prefetch_size=2),
      address=address,
      counter=counter,
      logger=loggers.make_logger(workdir, 'learner'),
    )

  def get_variables(self, names):
    return self._learner.get_variables(names)

  def run(self):
    self._learner.run()


class _Actor:
  def __init__(
    self,
    config: R2D2Config,
    index: int,
    client: reverb.Client,
    learner: acme.VariableSource,
    counter: counting.Counter,
  ):
    runtime.limit_threads(1)
    (environment,) = emulator.make_environments('pong', 1, seed=index)
    self._loop = acme.EnvironmentLoop(
      _Counting(acme_parts.wrap(environment), counting.Counter(counter, 'actor')),
      acme_parts.make_actor(config, client=client, variable_source=learner),
      logger=acme_loggers.NoOpLogger(),
    )

  def run(self):
    self._loop.run()


def _make_tables(config: R2D2Config):
  limiter = reverb.rate_limiters.SampleToInsertRatio(
    samples_per_insert=config.samples_per_insert,
    min_size_to_sample=config.min_replay_size,
    error_buffer=config.error_buffer,
  )
  return acme_parts.make_tables(config, rate_limiter=limiter)


def make_program(config: R2D2Config, workdir: str) -> lp.Program:
  program = lp.Program('acme')
  with program.group('replay'):
    replay = program.add_node(lp.ReverbNode(lambda: _make_tables(config)))
  with program.group('counter'):
    counter = program.add_node(lp.CourierNode(loggers.WallTimeCounter))
  with program.group('learner'):
    learner = program.add_node(
      lp.CourierNode(_Learner, config, replay, counter, workdir)
    )
  with program.group('actor'):
    for index in range(config.num_actors):
      program.add_node(lp.PyClassNode(_Actor, config, index, replay, learner, counter))
  return program


def main(_) -> None:
  runtime.hide_gpu()
  program = make_program(end_to_end.config(_NUM_ACTORS.value), _WORKDIR.value)
  launching.launch(
    program,
    'local_mp',
    os.path.join(_WORKDIR.value, 'output'),
    network=running.HOST,  # the replay is asked from outside
  )


if __name__ == '__main__':
  app.run(main)
