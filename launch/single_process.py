"""Trains R2D2 in one process: for small environments, and for debugging.

python launch/single_process.py --env=CartPole-v1
"""

import signal
import sys
import threading
import time

try:
  from r2d2_acme import doctor
except ModuleNotFoundError:
  sys.exit('r2d2_acme is not in this Python: run `make install`, then .venv/bin/python')
doctor.check_installation()

from absl import flags  # noqa: E402
from acme.utils import counting  # noqa: E402

from r2d2_acme import builder as builder_lib  # noqa: E402
from r2d2_acme import evaluation, experiment, loggers, machine, runtime  # noqa: E402
from r2d2_acme.actor import VectorEnvironmentLoop  # noqa: E402
from r2d2_acme.agent import R2D2  # noqa: E402

_EVALUATOR = flags.DEFINE_bool('evaluator', True, 'Whether to evaluate in between.')


def main() -> int:
  stop = threading.Event()
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: stop.set())
  runtime.limit_threads(machine.num_cores())
  run = experiment.from_flags(num_actors=1)
  config = run.config

  agent = R2D2(run.environment_spec, config, workdir=run.workdir)
  sitting = agent.sitting
  train_loop = VectorEnvironmentLoop(
    [
      run.environment_factory(builder_lib.environment_seed(config, i, sitting))
      for i in range(config.envs_per_actor)
    ],
    agent,
    counting.Counter(agent.counter, prefix='actor', time_delta=0.0),
    loggers.make_logger(run.workdir, 'actor', sitting=sitting),
    should_stop=stop.is_set,
  )
  builder = builder_lib.R2D2Builder(config, run.environment_spec, sitting)
  evaluator = evaluation.Evaluator(
    builder.make_evaluator(),
    run.environment_factory(builder_lib.evaluator_seed(config, sitting)),
    agent,
    max_steps=config.max_evaluation_steps,
    counter=agent.counter,
    logger=loggers.make_logger(run.workdir, 'evaluator', sitting=sitting),
    should_stop=stop.is_set,
    observe_return=agent.observe_return,
  )

  def is_done() -> bool:
    limits = {
      'actor_steps': flags.FLAGS.max_actor_steps,
      'learner_steps': flags.FLAGS.max_learner_steps,
    }
    return loggers.is_at_limit(agent.counter.get_counts(), limits)

  last_evaluation = time.time()
  while not stop.is_set() and not is_done():
    train_loop.run(num_steps=config.envs_per_actor)
    if _EVALUATOR.value and time.time() - last_evaluation > config.evaluation_period:
      evaluator.run_episode()
      last_evaluation = time.time()
  agent.save()
  return 0


if __name__ == '__main__':
  experiment.run(main)
