"""Tests of the Atari environments."""

import hashlib
import itertools
import os
import subprocess
import sys
import unittest
import warnings

import cv2
import numpy as np
import pytest
from dm_env import test_utils
from gymnasium.utils import env_checker

from r2d2_acme.environments import atari, make_atari

_NOOP = 0


def _ale(env):
  return env.gymnasium_env.get_wrapper_attr('ale')


def _play(env, policy=lambda step: _NOOP, num_steps=None):
  """Returns the time steps of an episode, or of its first `num_steps` steps."""
  timesteps = [env.reset()]
  for step in itertools.count() if num_steps is None else range(num_steps):
    if timesteps[-1].last():
      break
    timesteps.append(env.step(policy(step)))
  return timesteps


def _observations(timesteps):
  return np.stack([t.observation for t in timesteps])


class PongContractTest(test_utils.EnvironmentTestMixin, unittest.TestCase):
  def make_object_under_test(self):
    return make_atari('pong', seed=0, max_episode_frames=60)

  def make_action_sequence(self):
    return (np.int32(i % 18) for i in range(40))


def test_gymnasium_finds_no_fault():
  env = atari._make_preprocessed(
    'pong',
    full_action_space=True,
    max_noops=30,
    frame_skip=4,
    max_episode_frames=108_000,
    frame_size=84,
    sticky_actions=0.0,
  )
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    # The warning says that there are wrappers, which is what this test is about.
    warnings.filterwarnings('ignore', '.*different from the unwrapped version')
    env_checker.check_env(env, skip_render_check=True)


def test_observation_is_a_single_grey_frame():
  env = make_atari('pong', seed=0)
  spec = env.observation_spec()
  assert spec.shape == (84, 84, 1)
  assert spec.dtype == np.uint8
  frame = env.reset().observation
  assert frame.shape == (84, 84, 1)
  assert frame.dtype == np.uint8
  assert len(np.unique(frame)) > 2


def test_frame_size_is_the_height_and_width():
  env = make_atari('pong', frame_size=42)
  assert env.observation_spec().shape == (42, 42, 1)
  assert env.reset().observation.shape == (42, 42, 1)


def test_screens_taller_than_210_lines_work():
  env = make_atari('pooyan', seed=0)
  assert _ale(env).getScreenDims() == (220, 160)
  assert env.reset().observation.shape == (84, 84, 1)


@pytest.mark.parametrize('frame_skip', [1, 4])
def test_frames_pass_and_the_screen_changes_at_every_step(frame_skip):
  env = make_atari('ms_pacman', seed=0, frame_skip=frame_skip)
  assert env.frames_per_step == frame_skip
  _play(env, num_steps=70)  # until the opening tune is over
  frames, observations = [], []
  for _ in range(20):
    observations.append(env.step(2).observation.tobytes())
    frames.append(_ale(env).getFrameNumber())
  assert np.diff(frames).tolist() == [frame_skip] * 19
  assert len(set(observations)) > 10


def test_observation_is_the_maximum_of_the_last_two_raw_screens():
  env = make_atari('ms_pacman', seed=0)
  ale = _ale(env)
  actions = ale.getLegalActionSet()
  _play(env, num_steps=70)

  def resize(screens):
    return cv2.resize(np.max(screens, axis=0), (84, 84), interpolation=cv2.INTER_AREA)

  pooled_matters = early_frames_matter = 0
  for step in range(30):
    action = step % 18
    before = ale.cloneState(include_rng=True)
    observation = env.step(action).observation[..., 0]
    ale.restoreState(before)
    screens = []
    for _ in range(4):
      ale.act(actions[action])
      screens.append(ale.getScreenGrayscale())
    np.testing.assert_array_equal(observation, resize(screens[2:]))
    pooled_matters += not np.array_equal(observation, resize(screens[3:]))
    early_frames_matter += not np.array_equal(observation, resize(screens))
  assert pooled_matters > 0
  assert early_frames_matter > 0


def test_processed_frame_has_its_golden_hash():
  env = make_atari('pong', seed=0)
  frame = _play(env, lambda step: step % 18, num_steps=100)[-1].observation
  digest = hashlib.sha256(frame.tobytes()).hexdigest()
  assert digest == 'b33c0ff76008123493d732a4007fe3f0dfe8af45e4aedc7acfb69822cac0ef13'


def test_game_over_has_discount_0():
  timesteps = _play(make_atari('pong', seed=0))
  assert timesteps[-1].discount == 0.0
  assert sum(t.reward for t in timesteps[1:]) == -21
  assert all(t.discount == 1.0 for t in timesteps[1:-1])


@pytest.mark.parametrize('max_episode_frames', [40, 43])
def test_frame_limit_has_discount_1_and_ends_a_whole_step(max_episode_frames):
  env = make_atari('pong', seed=0, max_episode_frames=max_episode_frames)
  unlimited = make_atari('pong', seed=0)
  for _ in range(3):
    env.reset()
    unlimited.reset()
    start = _ale(env).getFrameNumber()
    for step in range(10):
      timestep = env.step(step)
      expected = unlimited.step(step)
    assert timestep.last()
    assert timestep.discount == 1.0
    assert _ale(env).getFrameNumber() - start == 40
    np.testing.assert_array_equal(timestep.observation, expected.observation)


def test_frame_limit_shorter_than_the_noops_does_not_count_them():
  env = make_atari('pong', seed=0, max_episode_frames=4)
  for _ in range(10):
    first = env.reset()
    last = env.step(_NOOP)
    assert first.first()
    assert last.last()
    assert last.discount == 1.0


def test_frame_limit_is_108_000_raw_frames():
  env = make_atari('pong')
  assert env.gymnasium_env.get_wrapper_attr('_max_episode_steps') * 4 == 108_000
  assert _ale(env).getInt('max_num_frames_per_episode') == 0  # 0 means no limit


def test_game_over_at_the_frame_limit_has_discount_0():
  num_steps = len(_play(make_atari('pong', seed=0))) - 1
  env = make_atari('pong', seed=0, max_episode_frames=4 * num_steps)
  timesteps = _play(env)
  assert len(timesteps) - 1 == num_steps
  assert timesteps[-1].discount == 0.0


def test_losing_a_life_does_not_end_the_episode():
  env = make_atari('ms_pacman', seed=0)
  env.reset()
  lives = _ale(env).lives()
  for _ in range(300):
    timestep = env.step(_NOOP)
    assert timestep.mid()
    assert timestep.discount == 1.0
    if _ale(env).lives() < lives:
      return
  pytest.fail('no life was lost')


def test_rewards_are_not_clipped():
  timesteps = _play(make_atari('ms_pacman', seed=0), lambda step: 3, num_steps=100)
  rewards = {float(t.reward) for t in timesteps[1:]}
  assert rewards == {0.0, 10.0}


def test_all_18_actions_by_default():
  env = make_atari('pong')
  assert env.action_spec().num_values == 18
  assert env.action_spec().dtype == np.int32


def test_minimal_actions_on_request():
  assert make_atari('pong', full_action_space=False).action_spec().num_values == 6


@pytest.mark.parametrize(
  'arguments, probability',
  [
    ({}, 0.0),
    ({'sticky_actions': 0.25}, 0.25),
  ],
)
def test_actions_stick_only_on_request(arguments, probability):
  env = make_atari('pong', **arguments)
  assert _ale(env).getFloat('repeat_action_probability') == probability


def test_lost_life_has_its_discount_and_the_game_goes_on():
  plain = make_atari('breakout', seed=0, max_episode_frames=2_000)
  env = make_atari(
    'breakout', seed=0, max_episode_frames=2_000, life_loss_discount=0.25
  )
  # FIRE serves each ball, which nobody catches.
  expected = _play(plain, lambda step: 1)
  timesteps, lives = [env.reset()], [5]
  while not timesteps[-1].last():
    timesteps.append(env.step(1))
    lives.append(_ale(env).lives())
  np.testing.assert_array_equal(_observations(timesteps), _observations(expected))
  assert [t.step_type for t in timesteps] == [t.step_type for t in expected]
  assert [t.reward for t in timesteps] == [t.reward for t in expected]
  lost = np.flatnonzero(np.diff(lives)) + 1
  assert len(lost) == 5
  discounts = np.array([t.discount for t in timesteps[1:]])
  assert discounts.dtype == np.float32
  assert (np.flatnonzero(discounts != 1) + 1).tolist() == lost.tolist()
  assert discounts[lost - 1].tolist() == [0.25] * 4 + [0]  # the last ends the game


def test_each_episode_draws_its_own_number_of_noops():
  env = make_atari('pong', seed=0)
  noops = set()
  for _ in range(20):
    env.reset()
    noops.add(_ale(env).getEpisodeFrameNumber())
  assert len(noops) > 5
  assert min(noops) >= 1
  assert 15 < max(noops) <= 30


def test_no_noops_on_request():
  env = make_atari('pong', seed=0, max_noops=0)
  env.reset()
  assert _ale(env).getEpisodeFrameNumber() == 0


def test_seeds_decide_the_trajectory():
  def play_two_episodes(seed):
    env = make_atari('pong', seed=seed, max_episode_frames=100)
    return _observations(
      itertools.chain(*(_play(env, lambda step: step % 18) for _ in range(2)))
    )

  first = play_two_episodes(1)
  np.testing.assert_array_equal(first, play_two_episodes(1))
  assert not np.array_equal(first, play_two_episodes(2))


@pytest.mark.parametrize('game', ['ms_pacman', 'MsPacman', 'ALE/MsPacman-v5'])
def test_game_goes_by_its_usual_names(game):
  env = make_atari(game)
  assert env.gymnasium_env.unwrapped.spec.id == 'ALE/MsPacman-v5'


def test_game_names_are_snake_case_and_can_be_told_apart():
  names = atari.game_names()
  assert {'pong', 'ms_pacman', 'montezuma_revenge'} <= set(names)
  assert len(names) > 100
  assert names == sorted(names)
  assert [atari._find(name) for name in names] == names
  assert [atari._find(atari._ids()[name]) for name in names] == names


def test_unknown_game_names_the_nearest():
  with pytest.raises(ValueError, match="'ms_pakman': did you mean ms_pacman") as error:
    make_atari('ms_pakman')
  assert '\n' not in str(error.value)


def test_unknown_game_without_a_near_one_names_the_list():
  with pytest.raises(ValueError, match='atari.game_names'):
    make_atari('xyzzy')


def test_frame_limit_shorter_than_a_step_is_refused():
  with pytest.raises(
    ValueError, match='max_episode_frames=3 must hold .* frame_skip=4'
  ):
    make_atari('pong', max_episode_frames=3)


def test_nothing_is_printed_and_nothing_heavy_imported():
  code = """
import sys
from r2d2_acme.environments import make_atari
env = make_atari('pong', seed=0)
env.reset()
env.step(0)
heavy = {'acme', 'gym', 'jax', 'tensorflow', 'torch'} & set(sys.modules)
sys.exit(f'imported {heavy}' if heavy else 0)
"""
  result = subprocess.run(
    [sys.executable, '-c', code],
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
    capture_output=True,
    text=True,
    check=False,
  )
  assert (result.returncode, result.stdout, result.stderr) == (0, '', '')
