"""Tests of the memory task."""

import itertools
import unittest

import numpy as np
import pytest
from dm_env import test_utils

from r2d2_acme.environments import make_cue_recall

_NUM_CUES = 4
_CUE_FLAG = _NUM_CUES
_GO_FLAG = _NUM_CUES + 1


class CueRecallContractTest(test_utils.EnvironmentTestMixin, unittest.TestCase):
  def make_object_under_test(self):
    return make_cue_recall(delay=3)

  def make_action_sequence(self):
    return itertools.repeat(np.int32(1), 20)


def _play(env, policy):
  """Returns (observations, rewards, discounts) of an episode.

  Args:
    env: the task.
    policy: maps the list of observations so far to an action.
  """
  timestep = env.reset()
  observations, rewards, discounts = [timestep.observation], [], []
  while not timestep.last():
    timestep = env.step(policy(observations))
    observations.append(timestep.observation)
    rewards.append(float(timestep.reward))
    discounts.append(float(timestep.discount))
  return np.stack(observations), rewards, discounts


def _remember(observations):
  return int(np.argmax(observations[0][:_NUM_CUES]))


def _echo(observations):
  return int(np.argmax(observations[-1][:_NUM_CUES]))


def _mean_return(policy, num_episodes):
  env = make_cue_recall(delay=2, num_cues=_NUM_CUES, seed=1)
  return np.mean([sum(_play(env, policy)[1]) for _ in range(num_episodes)])


def test_memory_earns_the_maximal_return():
  assert _mean_return(_remember, 100) == make_cue_recall().max_return == 1.0


@pytest.mark.parametrize('policy', [_echo, lambda _: 2])
def test_without_memory_the_return_is_chance(policy):
  env = make_cue_recall(num_cues=_NUM_CUES)
  assert env.chance_return == 1 / 4 * 1 + 3 / 4 * -1
  # 4,000 returns of standard deviation 0.87: three standard errors are 0.041.
  assert _mean_return(policy, 4_000) == pytest.approx(env.chance_return, abs=0.041)


@pytest.mark.parametrize('delay', [0, 1, 10])
def test_flags_mark_the_cue_and_the_end_of_the_delay(delay):
  observations, rewards, _ = _play(make_cue_recall(delay=delay), _remember)
  assert len(rewards) == delay + 2
  assert observations.dtype == np.float32
  flags = observations[:, [_CUE_FLAG, _GO_FLAG]].tolist()
  assert flags == [[1, 0], *[[0, 0]] * delay, [0, 1], [0, 0]]


def test_distractors_look_like_cues():
  observations, _, _ = _play(make_cue_recall(delay=200), _remember)
  shown = observations[:-1, :_NUM_CUES]
  assert (shown.sum(axis=1) == 1).all()
  assert (shown.max(axis=1) == 1).all()
  assert (shown[1:].sum(axis=0) > 0).all()


def test_only_the_last_action_is_rewarded_and_ends_the_episode():
  _, rewards, discounts = _play(make_cue_recall(delay=3), _remember)
  assert rewards == [0, 0, 0, 0, 1]
  assert discounts == [1, 1, 1, 1, 0]


def test_wrong_answer_earns_minus_1():
  _, rewards, _ = _play(make_cue_recall(), lambda o: (_remember(o) + 1) % _NUM_CUES)
  assert sum(rewards) == -1


def test_each_cue_comes_up_and_has_its_action():
  env = make_cue_recall(num_cues=7)
  assert env.action_spec().num_values == 7
  assert env.observation_spec().shape == (9,)
  cues = {int(np.argmax(env.reset().observation[:7])) for _ in range(200)}
  assert cues == set(range(7))


def test_seeds_decide_the_trajectory():
  def play_two_episodes(seed):
    env = make_cue_recall(seed=seed)
    return [_play(env, _remember)[0].tolist() for _ in range(2)]

  assert play_two_episodes(1) == play_two_episodes(1)
  assert play_two_episodes(1) != play_two_episodes(2)
  assert play_two_episodes(1)[0] != play_two_episodes(1)[1]


def test_one_frame_passes_in_a_step():
  assert make_cue_recall().frames_per_step == 1


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'delay': -1}, 'delay=-1 must be at least 0'),
    ({'num_cues': 1}, 'num_cues=1 must be at least 2'),
  ],
)
def test_impossible_sizes_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    make_cue_recall(**arguments)
