"""Videos of the evaluator's episodes, for people and for TensorBoard."""

import io
import os

import gymnasium
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator

from r2d2_acme import environments
from r2d2_acme.builder import R2D2Builder
from r2d2_acme.environments import GymnasiumAdapter, make_t_maze
from r2d2_acme.results import evaluation, evaluator_videos, video
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


def test_large_screens_and_long_episodes_are_thinned_out_and_cut(tmp_path, monkeypatch):
  environment = make_t_maze()  # 15 steps a second
  videos = evaluator_videos.Videos(str(tmp_path), 1000.0, environment)
  monkeypatch.setattr(
    video, 'screen_of', lambda _: lambda timestep: np.zeros([400, 600, 3], np.uint8)
  )
  _watch(videos, environment, 500, {'actor_steps': 3})
  with Image.open(tmp_path / 'videos' / 'evaluator_000000000003.gif') as image:
    assert image.size == (200, 134)
    duration = 0
    for frame in range(image.n_frames):
      image.seek(frame)
      duration += image.info['duration']
  assert 29_000 <= duration <= 31_000


class _Changing(gymnasium.Env):
  """Renders pictures of other sizes, and then none."""

  metadata = {'render_modes': ['rgb_array']}  # noqa: RUF012
  observation_space = gymnasium.spaces.Box(0, 1, (2,))
  action_space = gymnasium.spaces.Discrete(3)

  def reset(self, *, seed=None, options=None):
    self._size = 10
    return np.zeros(2, np.float32), {}

  def step(self, action):
    return np.zeros(2, np.float32), 0.0, False, False, {}

  def render(self):
    self._size += 10
    return np.zeros([self._size, self._size, 3], np.uint8)


def test_pictures_that_make_no_video_are_no_failure(tmp_path, capsys):
  environment = GymnasiumAdapter(_Changing())
  videos = evaluator_videos.Videos(str(tmp_path), 0.0, environment)
  _watch(videos, environment, 3, {})
  assert 'an episode cannot be drawn' in capsys.readouterr().err
  assert not (tmp_path / 'videos').exists()


class _Failing(_Changing):
  """Fails in its first step if it is the first one."""

  def __init__(self, is_first: bool):
    self._is_first = is_first
    self.num_renders = 0

  def step(self, action):
    if self._is_first and self._has_stepped:
      raise RuntimeError('broken')
    self._has_stepped = True
    return super().step(action)

  def reset(self, **kwargs):
    self._has_stepped = False
    return super().reset(**kwargs)

  def render(self):
    self.num_renders += 1
    return np.zeros([10, 10, 3], np.uint8)


def test_environment_that_was_made_again_is_the_one_that_is_seen(tmp_path):
  made = []

  def make(seed):
    made.append(_Failing(not made))
    return made[-1]

  with environments.opened(make, [0], max_failures=5) as (environment,):
    videos = evaluator_videos.Videos(str(tmp_path), 0.0, environment)
    environment.reset()
    environment.step(0)
    with pytest.raises(environments.EpisodeLost):
      environment.step(0)
    _watch(videos, environment, 1, {'actor_steps': 7})
  assert len(made) == 2
  assert (made[0].num_renders, made[1].num_renders) == (0, 1)


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
