"""Plays with a checkpoint of a run, which may be going on: how good is it?

python launch/evaluate.py --workdir=runs/pong --episodes=10 --video
"""

import preamble  # noqa: F401

import experiment_flags
from absl import flags

from r2d2_acme import environments, experiment
from r2d2_acme.results import evaluation, recordings, summary
from r2d2_acme.system import processes, runtime
from r2d2_acme.workdir import paths

_EPISODES = flags.DEFINE_integer('episodes', 10, 'How many to play.', lower_bound=1)
_EPSILON = flags.DEFINE_float(
  'epsilon',
  None,
  'Share of random actions; by default evaluator_epsilon of the config.',
  lower_bound=0.0,
  upper_bound=1.0,
)
_MAX_STEPS = flags.DEFINE_integer(
  'max_steps',
  None,
  'Steps after which an episode is cut off; by default max_evaluation_steps of the '
  'config.',
  lower_bound=1,
)
_VIDEO = flags.DEFINE_bool(
  'video', False, 'Make an MP4 of the first episode, in videos/.'
)
_ANIMATION = flags.DEFINE_string(
  'animation',
  None,
  'A GIF to make: the first seconds of the first episode beside the learning curve.',
)


def main() -> int:
  if not flags.FLAGS.workdir:
    raise experiment.BadInput('whose network? give --workdir=, that of a run')
  processes.guard_children()
  runtime.hide_gpu()  # a run may need all of it
  runtime.limit_threads(1)
  workdir = paths.resolve(flags.FLAGS.workdir)
  run = experiment.from_workdir(workdir)
  config = experiment_flags.override(
    run.config,
    evaluator_epsilon=_EPSILON,
    max_evaluation_steps=_MAX_STEPS,
    seed=flags.FLAGS['seed'],
  )
  suffix = f'_seed_{config.seed}'
  if _EPSILON.value is not None:
    suffix += f'_epsilon_{config.evaluator_epsilon:g}'
  recorded = recordings.Recordings(
    workdir,
    video_suffix=suffix if _VIDEO.value else None,
    animation_path=_ANIMATION.value,
  )
  try:
    result = evaluation.evaluate(
      config,
      run.environment_factory,
      run.environment_spec,
      workdir,
      num_episodes=_EPISODES.value,
      seed=config.seed,
      checkpoint=flags.FLAGS.checkpoint,
      make_watcher=recorded.watch,
      on_episode=_tell,
    )
    for kind, path in recorded.close().items():
      print(f'{kind}: {paths.shown(path)}')
  except OSError as error:
    raise experiment.BadInput(str(error)) from error
  (name,) = environments.describe(run.environment_factory).values()
  is_atari = environments.is_atari(run.environment_factory)
  protocol = config.atari_protocol if is_atari else ''
  summary.print_table(name, result, config.evaluator_epsilon, protocol)
  return 0


def _tell(number: int, episode: evaluation.Episode):
  cut = ', cut off: it had not ended' if episode.is_cut else ''
  print(
    f'episode {number}: return {episode.total:g} in {episode.length} steps{cut}',
    flush=True,
  )


if __name__ == '__main__':
  seed = {'seed': "Of the environments and the policy. [the run's]"}
  experiment_flags.run(main, only={**experiment_flags.OF_A_RUN, **seed})
