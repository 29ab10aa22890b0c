"""Plays with a checkpoint of a run, which may be going on: how good is it?

python launch/evaluate.py --workdir=runs/pong --episodes=10 --video
"""

import dataclasses
import os
import statistics
import sys
from typing import Any

try:
  from r2d2_acme.system import doctor, stopping
except ModuleNotFoundError:
  sys.exit('r2d2_acme is not in this Python: run `make install`, then .venv/bin/python')
if __name__ == '__main__':
  stopping.end_at_once()
doctor.check_installation()

import experiment_flags  # noqa: E402
from absl import flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402
from rich import console, table  # noqa: E402

from r2d2_acme import environments, experiment  # noqa: E402
from r2d2_acme.config import R2D2Config  # noqa: E402
from r2d2_acme.results import (  # noqa: E402
  animation,
  atari_scores,
  evaluation,
  plotting,
  video,
)
from r2d2_acme.system import processes, runtime  # noqa: E402
from r2d2_acme.workdir import checkpointing, paths  # noqa: E402

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
_VIDEO = flags.DEFINE_bool('video', False, 'Make an MP4 of the first in videos/.')
_ANIMATION = flags.DEFINE_string(
  'animation',
  None,
  'A GIF to make: the first seconds of the first episode beside the learning curve.',
)
# Of those that all programs here have.
_USED = ('workdir', 'checkpoint', 'seed')


def main() -> int:
  _refuse_unused()
  if not flags.FLAGS.workdir:
    raise experiment_flags.BadInput('whose network? give --workdir=, that of a run')
  processes.guard_children()
  runtime.hide_gpu()  # a run may need all of it
  runtime.limit_threads(1)
  workdir = paths.resolve(flags.FLAGS.workdir)
  run = experiment.from_workdir(workdir)
  config = _with_flags(run.config)
  recorders: dict[str, video.Recorder | animation.Recorder] = {}

  def watch(environment, checkpoint: str) -> evaluation.Watcher:
    if _VIDEO.value:
      path = _video_path(workdir, checkpoint, config)
      recorders['video'] = video.Recorder(path, environment)
    if _ANIMATION.value is not None:
      (curves,) = plotting.read_runs([workdir])
      frames = checkpointing.read_counts(checkpoint).get('actor_frames', 0)
      path = paths.resolve(_ANIMATION.value)
      recorders['animation'] = animation.Recorder(path, environment, curves, frames)

    def show(timestep, q, action):
      for recorder in recorders.values():
        recorder(timestep, q, action)

    return show

  def tell(number: int, episode: evaluation.Episode):
    print(
      f'episode {number}: return {episode.total:g} in {episode.length} steps'
      f'{", cut off: it had not ended" if episode.is_cut else ""}',
      flush=True,
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
      make_watcher=watch,
      on_episode=tell,
    )
    for kind, recorder in recorders.items():
      recorder.close()
      print(f'{kind}: {paths.shown(recorder.path)}')
  except OSError as error:
    raise experiment_flags.BadInput(str(error)) from error
  (name,) = environments.describe(run.environment_factory).values()
  _print_table(name, result, config.evaluator_epsilon)
  return 0


def _video_path(workdir: str, checkpoint: str, config: R2D2Config) -> str:
  """Returns where the MP4 goes; makes its folder."""
  folder = os.path.join(workdir, 'videos')
  os.makedirs(folder, exist_ok=True)
  name = f'{os.path.basename(checkpoint)}_seed_{config.seed}'
  if _EPSILON.value is not None:
    name += f'_epsilon_{config.evaluator_epsilon:g}'
  return os.path.join(folder, f'{name}.mp4')


def _with_flags(config: R2D2Config) -> R2D2Config:
  """Returns the run's config with what the flags say instead.

  Raises:
    BadInput: they say what cannot be.
  """
  fields: dict[str, Any] = {
    'evaluator_epsilon': _EPSILON,
    'max_evaluation_steps': _MAX_STEPS,
    'seed': flags.FLAGS['seed'],
  }
  for field, flag in fields.items():
    if flag.value is not None:
      try:
        config = dataclasses.replace(config, **{field: flag.value})
      except ValueError as error:  # NaN is within all bounds
        raise experiment_flags.BadInput(
          f'--{flag.name}={flag.value}: {error}'
        ) from error
  return config


def _refuse_unused():
  """The run says what it is; to take another's flags silently would mislead."""
  shared = flags.FLAGS.flags_by_module_dict()[experiment_flags.__name__]
  unused = [f.name for f in shared if f.present and f.name not in _USED]
  overridden = config_flags.get_override_values(flags.FLAGS['config'])
  unused += [f'config.{name}' for name in overridden]
  if unused:
    raise experiment_flags.BadInput(
      f'--{unused[0]} cannot be changed here: the config is that of --workdir'
    )


def _print_table(name: str, result: evaluation.Evaluation, epsilon: float):
  returns = result.returns
  game = atari_scores.find_game(name)
  counts = result.counts
  columns = {
    'episodes': f'{len(returns)}',
    'mean': f'{returns.mean():.2f}',
    'median': f'{statistics.median(returns):.2f}',
    'min': f'{returns.min():g}',
    'max': f'{returns.max():g}',
  }
  num_cut = sum(episode.is_cut for episode in result.episodes)
  if num_cut:
    columns['cut off'] = f'{num_cut}'
  if game is not None:
    normalized = atari_scores.human_normalized(game, returns.mean())
    columns['human-normalised mean'] = f'{100 * normalized:.1f} %'
  printed = table.Table(
    title=f'{name}: {os.path.basename(result.checkpoint)}, after '
    f'{counts.get("actor_frames", 0):,.0f} frames and '
    f'{counts.get("learner_steps", 0):,.0f} learner steps, epsilon={epsilon:g}'
  )
  for column in columns:
    printed.add_column(column, justify='right')
  printed.add_row(*columns.values())
  console.Console().print(printed)


if __name__ == '__main__':
  experiment_flags.run(main)
