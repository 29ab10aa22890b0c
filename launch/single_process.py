"""Trains R2D2 in one process: for small environments, and for debugging.

python launch/single_process.py --env=CartPole-v1
"""

import sys
import time
from collections.abc import Callable, Sequence

try:
  from r2d2_acme.system import doctor, stopping
except ModuleNotFoundError:
  sys.exit('r2d2_acme is not in this Python: run `make install`, then .venv/bin/python')
if __name__ == '__main__':
  stopping.end_at_once(0)  # there is nothing to save yet
doctor.check_installation()

import dm_env  # noqa: E402
from absl import flags  # noqa: E402
from acme.utils import counting  # noqa: E402

from r2d2_acme import builder as builder_lib  # noqa: E402
from r2d2_acme import environments, experiment  # noqa: E402
from r2d2_acme.acting.loop import VectorEnvironmentLoop  # noqa: E402
from r2d2_acme.agent import R2D2  # noqa: E402
from r2d2_acme.results import evaluation  # noqa: E402
from r2d2_acme.system import machine, processes, runtime  # noqa: E402
from r2d2_acme.workdir import loggers  # noqa: E402

_EVALUATOR = flags.DEFINE_bool('evaluator', True, 'Whether to evaluate in between.')


def main() -> int:
  processes.guard_children()
  runtime.limit_threads(machine.num_cores())
  run = experiment.from_flags(num_actors=1)
  config = run.config
  with stopping.Requests(
    on_quit=lambda: runtime.exit_now(stopping.QUIT_CODE)
  ) as requests:
    agent = R2D2(run.environment_spec, config, workdir=run.workdir)
    seeds = [
      *(
        builder_lib.environment_seed(config, i, agent.sitting)
        for i in range(config.envs_per_actor)
      ),
      builder_lib.evaluator_seed(config, agent.sitting),
    ]
    with environments.opened(run.environment_factory, seeds) as (*fleet, evaluated):
      _train(run, agent, fleet, evaluated, lambda: requests.stop)
  return 0


def _train(
  run: experiment.Experiment,
  agent: R2D2,
  fleet: Sequence[dm_env.Environment],
  evaluated: dm_env.Environment,
  should_stop: Callable[[], bool],
):
  """Trains to a limit, or until it should stop or fails; then saves.

  Args:
    run: what to train.
    agent: for its workdir.
    fleet: the environments to act in.
    evaluated: the evaluator's environment.
    should_stop: whether to stop before a limit.
  """
  config = run.config
  train_loop = VectorEnvironmentLoop(
    fleet,
    agent,
    counting.Counter(agent.counter, prefix='actor', time_delta=0.0),
    loggers.make_logger(run.workdir, 'actor', sitting=agent.sitting),
    should_stop=should_stop,
  )
  builder = builder_lib.R2D2Builder(config, run.environment_spec, agent.sitting)
  evaluator = evaluation.Evaluator(
    builder.make_evaluator(),
    evaluated,
    agent,
    max_steps=config.max_evaluation_steps,
    counter=agent.counter,
    logger=loggers.make_logger(run.workdir, 'evaluator', sitting=agent.sitting),
    should_stop=should_stop,
    observe_return=agent.observe_return,
  )

  def is_done() -> bool:
    limits = {
      'actor_steps': flags.FLAGS.max_actor_steps,
      'learner_steps': flags.FLAGS.max_learner_steps,
    }
    return loggers.is_at_limit(agent.counter.get_counts(), limits)

  last_evaluation = time.time()
  try:
    while not should_stop() and not is_done():
      train_loop.run(num_steps=config.envs_per_actor)
      if _EVALUATOR.value and time.time() - last_evaluation > config.evaluation_period:
        evaluator.run_episode()
        last_evaluation = time.time()
  finally:
    agent.save()


if __name__ == '__main__':
  experiment.run(main)
