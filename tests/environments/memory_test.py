"""Tests of the memory tasks."""

import itertools
import unittest

import numpy as np
import pytest
from dm_env import test_utils

from r2d2_acme.environments import make_cue_recall, make_memory_task, make_t_maze
from r2d2_acme.environments.memory import TMaze

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
  # The standard deviation of 4,000 returns is 0.87: three standard errors are 0.041.
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


@pytest.mark.parametrize('delay', [0, 4])
def test_each_of_several_questions_is_a_share_of_the_return(delay):
  env = make_cue_recall(delay=delay, num_questions=3)

  def wrong_at_the_second(observations):
    num_asked = np.stack(observations)[:, _GO_FLAG].sum()
    return (_remember(observations) + (num_asked == 2)) % _NUM_CUES

  observations, rewards, discounts = _play(env, wrong_at_the_second)
  wait = [0] * delay
  assert observations[:, _GO_FLAG].tolist() == [0, *(wait + [1]) * 3, 0]
  assert observations[:, _CUE_FLAG].tolist() == [1] + [0] * (len(observations) - 1)
  expected = [0, *wait, 1 / 3, *wait, -1 / 3, *wait, 1 / 3]
  assert rewards == pytest.approx(expected)
  assert discounts == [*[1] * (len(rewards) - 1), 0]


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
    ({'num_questions': 0}, 'num_questions=0 must be at least 1'),
  ],
)
def test_impossible_sizes_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    make_cue_recall(**arguments)


# T-maze.


class TMazeContractTest(test_utils.EnvironmentTestMixin, unittest.TestCase):
  def make_object_under_test(self):
    return make_t_maze(length=3)

  def make_action_sequence(self):
    return map(np.int32, [TMaze.FORWARD, TMaze.FORWARD, TMaze.LEFT] * 8)


def _walk(turn):
  """Returns a policy that goes to the junction and turns as `turn` says."""

  def policy(observations):
    at_junction = observations[-1].tolist() == [0, 0, 1]
    return turn(observations) if at_junction else TMaze.FORWARD

  return policy


def _follow_sign(observations):
  return TMaze.LEFT if observations[0][0] else TMaze.RIGHT


def _ignore_sign(observations):
  return TMaze.RIGHT if observations[0][0] else TMaze.LEFT


@pytest.mark.parametrize('length', [1, 2, 10])
def test_the_sign_shows_at_the_start_and_the_junction_at_the_end(length):
  env = make_t_maze(length=length)
  for _ in range(10):
    observations, rewards, discounts = _play(env, _walk(_follow_sign))
    assert len(rewards) == length + 1
    assert observations.dtype == np.float32
    assert observations[0].tolist() in ([1, 0, 0], [0, 1, 0])
    assert observations[1:].tolist() == [
      *[[0, 0, 0]] * (length - 1),
      [0, 0, 1],
      [0, 0, 0],
    ]
    assert rewards == [*[0] * length, 1]
    assert discounts == [*[1] * length, 0]


def test_both_signs_come_up():
  env = make_t_maze()
  assert {int(np.argmax(env.reset().observation)) for _ in range(50)} == {0, 1}


def test_the_wrong_turn_earns_minus_1_and_ends_the_episode():
  _, rewards, discounts = _play(make_t_maze(), _walk(_ignore_sign))
  assert rewards[-1] == -1
  assert discounts[-1] == 0


def test_without_memory_the_return_in_the_maze_is_chance():
  env = make_t_maze(length=2, seed=1)
  assert env.chance_return == 0
  returns = [sum(_play(env, _walk(lambda _: 1))[1]) for _ in range(4_000)]
  # The standard deviation is 1, so three standard errors are 0.047.
  assert np.mean(returns) == pytest.approx(env.chance_return, abs=0.047)


def test_walls_cost_and_do_not_move():
  env = make_t_maze(length=1)
  sign = env.reset().observation.tolist()
  for action in (TMaze.LEFT, TMaze.RIGHT):
    timestep = env.step(action)
    assert timestep.mid()
    assert timestep.reward == np.float32(TMaze.BUMP_REWARD) == np.float32(-0.1)
    assert timestep.observation.tolist() == sign
  timestep = env.step(TMaze.FORWARD)
  assert timestep.reward == 0
  assert timestep.observation.tolist() == [0, 0, 1]
  timestep = env.step(TMaze.FORWARD)
  assert timestep.mid()
  assert timestep.reward == np.float32(-0.1)
  assert timestep.observation.tolist() == [0, 0, 1]


def test_time_limit_of_the_maze_is_a_truncation():
  env = make_t_maze(length=2)
  observations, rewards, discounts = _play(env, lambda _: TMaze.LEFT)
  assert len(rewards) == 4 * 3
  assert discounts == [1] * 12
  assert observations[-1].tolist() == observations[0].tolist()
  assert env.step(TMaze.FORWARD).first()


def test_seeds_decide_the_signs():
  def signs(seed):
    env = make_t_maze(seed=seed)
    return [env.reset().observation.tolist() for _ in range(20)]

  assert signs(1) == signs(1)
  assert signs(1) != signs(2)


def test_corridor_without_length_is_refused():
  with pytest.raises(ValueError, match='length=0 must be at least 1'):
    make_t_maze(length=0)


# Tasks by name.


@pytest.mark.parametrize(
  ('name', 'num_steps'),
  [
    ('cue_recall', 10 + 2),
    ('cue_recall/30', 30 + 2),
    ('t_maze', 10 + 1),
    ('t_maze/20', 20 + 1),
  ],
)
def test_name_says_task_and_number_of_steps(name, num_steps):
  env = make_memory_task(name, seed=3)
  policy = _walk(_follow_sign) if name.startswith('t_maze') else _remember
  _, rewards, _ = _play(env, policy)
  assert len(rewards) == num_steps
  assert sum(rewards) == env.max_return


@pytest.mark.parametrize('name', ['', 'maze', 'cue_recall/', 't_maze/x', 't_maze/-1'])
def test_unknown_task_names_those_there_are(name):
  with pytest.raises(ValueError) as error:
    make_memory_task(name)
  assert repr(name) in str(error.value)
  assert 'cue_recall/30 or t_maze/30' in str(error.value)
  assert '\n' not in str(error.value)
