"""Trains R2D2 in one process: for small environments, and for debugging.

python launch/single_process.py --env=CartPole-v1
"""

import preamble  # noqa: F401

import experiment_flags
from absl import flags

from r2d2_acme import agent
from r2d2_acme.system import machine, processes, runtime, stopping

_EVALUATOR = flags.DEFINE_bool(
  'evaluator', True, 'Whether to evaluate during the training.'
)


def main() -> int:
  processes.guard_children()
  runtime.limit_threads(machine.num_cores())
  experiment = experiment_flags.from_flags(
    num_actors=1, num_replay_shards=1, evaluator=_EVALUATOR.value
  )
  with stopping.Requests(
    on_quit=lambda: runtime.exit_now(stopping.QUIT_CODE)
  ) as requests:
    agent.run_experiment(experiment, should_stop=lambda: requests.stop)
  return 0


if __name__ == '__main__':
  experiment_flags.run(main)
