"""Trains R2D2 with a Launchpad program: Atari, or any Gymnasium environment.

python launch/atari_distributed.py --lp_launch_type=local_mp --game=pong
"""

import preamble  # noqa: F401

import os
from typing import Any

import experiment_flags
from absl import flags

from r2d2_acme import environments, program, running
from r2d2_acme.experiment import Experiment
from r2d2_acme.running import clusters, launching, supervision
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
_RAY_ADDRESS = flags.DEFINE_string(
  'ray_address',
  None,
  'Run on a Ray cluster: auto finds the one that this machine belongs to, HOST:PORT '
  'names it, local starts one on this machine, which ends with the program.',
)
_RESOURCES = flags.DEFINE_string(
  'resources',
  None,
  'On Ray, a YAML file of what the nodes need, such as {learner: {cpus: 4, gpus: 1}}.',
)

flags.declare_key_flag('lp_launch_type')  # Launchpad's


def main() -> int:
  if _RAY_ADDRESS.value is not None:
    return _run_on_ray(_RAY_ADDRESS.value)
  if _RESOURCES.value is not None:
    raise experiment_flags.BadInput('--resources is for --ray_address')
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
  return _launch(experiment, launch_type, network=_NETWORK.value)


def _run_on_ray(address: str) -> int:
  """Runs the program on the Ray cluster at an address."""
  for name in ('lp_launch_type', 'network'):
    if flags.FLAGS[name].present:
      raise experiment_flags.BadInput(
        f'--{name} is not for --ray_address: leave it out'
      )
  runtime.hide_gpu()
  runtime.limit_threads(machine.num_cores())
  experiment = experiment_flags.from_flags(evaluator=_EVALUATOR.value)
  factory = environments.describe(experiment.environment_factory)
  modules = clusters.find_modules(factory, experiment.config.torso)
  cluster = clusters.Cluster(address, _RESOURCES.value, modules)
  try:
    return _launch(experiment, launching.RAY, cluster=cluster)
  except clusters.NoCluster as error:
    raise experiment_flags.BadInput(str(error)) from error


def _launch(experiment: Experiment, launch_type: str, **keywords: Any) -> int:
  """Runs the program to its end; returns its exit code."""
  workdir = str(experiment.workdir)
  elsewhere = _RAY_ADDRESS.value not in (None, clusters.LOCAL)
  code = launching.launch(
    program.make_program(experiment, elsewhere=elsewhere),
    launch_type,
    os.path.join(workdir, 'output'),
    workdir=workdir,
    limits=experiment.limits,
    progress=_PROGRESS.value,
    policy=supervision.Policy.of(experiment.config),
    track=experiment.track,
    **keywords,
  )
  runtime.exit_now(code)  # threads of `local_mt` may still wait in C++


if __name__ == '__main__':
  experiment_flags.run(main)
