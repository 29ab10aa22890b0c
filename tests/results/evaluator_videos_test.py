"""Videos of the evaluator's episodes, for people and for TensorBoard."""

import io
import os

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator

from r2d2_acme.builder import R2D2Builder
from r2d2_acme.environments import make_t_maze
from r2d2_acme.results import evaluation, evaluator_videos
from tests import helpers


def _watch(videos, environment, num_steps: int, counts):
  videos.start()
  timestep = environment.reset()
  for _ in range(num_steps):
    videos(timestep, np.zeros(3, np.float32), 0)
    timestep = environment.step(0)
  videos.write(counts)


def test_an_episode_in_each_period_is_recorded(tmp_path):
  environment = helpers.ScriptedEnvironment([helpers.Episode(20, True)] * 3)
  videos = evaluator_videos.Videos(str(tmp_path), 1000.0, environment)
  _watch(videos, environment, 5, {'actor_steps': 120})
  _watch(videos, environment, 7, {'actor_steps': 240})  # too soon
  assert os.listdir(tmp_path / 'videos') == ['evaluator_000000000120.gif']
  gif = (tmp_path / 'videos' / 'evaluator_000000000120.gif').read_bytes()
  with Image.open(io.BytesIO(gif)) as image:
    assert (image.n_frames, image.size) == (5, (36, 36))
  images = event_accumulator.EventAccumulator(str(tmp_path / 'tb' / 'evaluator_videos'))
  images.Reload()
  (event,) = images.Images('evaluator/Video')
  assert (event.step, event.encoded_image_string) == (120, gif)
  assert (event.height, event.width) == (36, 36)


def test_large_screens_and_long_episodes_are_thinned_out_and_cut(tmp_path):
  environment = make_t_maze()  # 15 steps a second
  videos = evaluator_videos.Videos(str(tmp_path), 1000.0, environment)
  videos._screen = lambda timestep: np.zeros([400, 600, 3], np.uint8)
  _watch(videos, environment, 500, {'actor_steps': 3})
  with Image.open(tmp_path / 'videos' / 'evaluator_000000000003.gif') as image:
    assert image.size == (200, 134)
    duration = 0
    for frame in range(image.n_frames):
      image.seek(frame)
      duration += image.info['duration']
  assert 29_000 <= duration <= 31_000


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path, capsys):
  (tmp_path / 'videos').write_text('a file')
  environment = make_t_maze()
  videos = evaluator_videos.Videos(str(tmp_path), 1000.0, environment)
  _watch(videos, environment, 2, {})
  assert 'training goes on without this video' in capsys.readouterr().err


def test_recorded_episode_is_the_one_that_is_logged(tmp_path):
  """And to be watched changes none of its actions."""
  rows = []
  for period in (0.0, 1000.0):
    config = helpers.make_config(video_period=period)
    environment = helpers.ScriptedEnvironment([helpers.Episode(9, True)] * 2)
    played = helpers.run(config, [[helpers.Episode(8, True)]], image=True)
    learner = R2D2Builder(config, helpers.make_spec()).make_learner(iter([]))
    logger = helpers.loggers.InMemoryLogger()
    evaluator = evaluation.Evaluator(
      played.builder.make_evaluator(),
      environment,
      learner,
      max_steps=100,
      counter=helpers.counting.Counter(),
      logger=logger,
      videos=evaluator_videos.make(str(tmp_path), config, environment),
    )
    evaluator.run_episode()
    rows.append(
      (logger.data[0]['episode_return'], [t.action for t in environment.tape.values()])
    )
    assert (tmp_path / 'videos').exists() == bool(period)
  assert rows[0] == rows[1]
  (name,) = os.listdir(tmp_path / 'videos')
  with Image.open(tmp_path / 'videos' / name) as image:
    assert image.n_frames == 9
