"""Trains R2D2 with a Launchpad program: Atari, or any Gymnasium environment.

python launch/atari_distributed.py --lp_launch_type=local_mp --game=pong
"""

import preamble  # noqa: F401

import os

import experiment_flags
from absl import flags

from r2d2_acme import program, running
from r2d2_acme.running import launching, supervision
from r2d2_acme.system import machine, runtime

_EVALUATOR = flags.DEFINE_bool('evaluator', True, 'Whether to run the evaluator.')
_NETWORK = flags.DEFINE_enum(
  'network',
  running.PRIVATE,
  running.NETWORKS,
  'private: nobody else can reach the nodes, nor they others; host: for environments '
  'that need the network.',
)
_PROGRESS = flags.DEFINE_bool(
  'progress', True, "Whether a terminal shows one block instead of the nodes' rows."
)


def main() -> int:
  launch_type = flags.FLAGS.lp_launch_type
  if launch_type not in launching.LAUNCH_TYPES:
    raise experiment_flags.BadInput(
      f'--lp_launch_type={launch_type} is not for this program: give one of '
      f'{", ".join(launching.LAUNCH_TYPES)}'
    )
  if launch_type == 'local_mp':
    runtime.hide_gpu()  # the learner, another process, needs all of it
  runtime.limit_threads(machine.num_cores())
  experiment = experiment_flags.from_flags(evaluator=_EVALUATOR.value)
  workdir = str(experiment.workdir)
  code = launching.launch(
    program.make_program(experiment),
    launch_type,
    os.path.join(workdir, 'output'),
    workdir=workdir,
    limits=experiment.limits,
    progress=_PROGRESS.value,
    policy=supervision.Policy.of(experiment.config),
    network=_NETWORK.value,
  )
  runtime.exit_now(code)  # threads of `local_mt` may still wait in C++


if __name__ == '__main__':
  experiment_flags.run(main)
