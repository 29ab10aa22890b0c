"""Policies in Gymnasium's own loop play as `launch/evaluate.py` does."""

import gymnasium
import numpy as np
import pytest

import r2d2_acme
from r2d2_acme import builder, environments
from r2d2_acme.workdir.checkpointing import CheckpointError
from tests import helpers
from tests.policies import runs

_FIRST_ACTION = {runs.IMAGE: 5}


def _play(policy, env: gymnasium.Env, **reset) -> runs.Played:
  """Plays an episode as a user would."""
  steps, total, reward, done = [], 0.0, 0.0, False
  observation, info = env.reset(**reset)
  while not done:
    action = policy.step(observation, reward, info=info)
    steps.append((observation, reward, policy.q.copy(), action))
    observation, reward, terminated, truncated, info = env.step(action)
    total += reward
    done = terminated or truncated
  env.close()
  return runs.Played.of(steps, total)


def _check_equal(played: runs.Played, evaluated: runs.Played, first_action: int = 0):
  assert played.actions.tolist() == (evaluated.actions + first_action).tolist()
  np.testing.assert_array_equal(played.observations, evaluated.observations)
  np.testing.assert_allclose(played.q, evaluated.q, rtol=1e-5, atol=1e-5)
  assert played.total == pytest.approx(evaluated.total)


@pytest.mark.parametrize(
  'environment', [runs.GAME, runs.VECTOR, runs.IMAGE, runs.DM_ENV], ids=lambda x: x[1]
)
def test_episode_is_that_of_evaluate(run_of, environment):
  workdir = run_of(environment)
  evaluated = runs.evaluate(workdir, runs.CONFIG.evaluator_epsilon)
  policy = r2d2_acme.load_policy(workdir)
  played = _play(policy, policy.make_environment())
  _check_equal(played, evaluated, _FIRST_ACTION.get(environment, 0))
  assert len(set(evaluated.actions)) > 1


@pytest.mark.parametrize(
  ('environment', 'make'),
  [
    (runs.VECTOR, lambda: gymnasium.make('CartPole-v1')),
    (runs.IMAGE, runs.Screen),
  ],
  ids=['vector', 'image'],
)
def test_episode_in_an_environment_that_r2d2_acme_has_not_made(
  run_of, environment, make
):
  evaluated = runs.evaluate(run_of(environment), 0.3)
  policy = r2d2_acme.load_policy(run_of(environment), epsilon=0.3)
  seed, _ = builder.evaluation_seeds(runs.CONFIG.seed, 0)
  played = _play(policy, make(), seed=seed)
  _check_equal(played, evaluated, _FIRST_ACTION.get(environment, 0))


def test_nests_and_masks_are_what_evaluate_sees(run_of):
  for environment in (runs.NEST, runs.MASKED):
    evaluated = runs.evaluate(run_of(environment), 0.5)
    policy = r2d2_acme.load_policy(run_of(environment), epsilon=0.5)
    played = _play(policy, policy.make_environment())  # which refuses what is not valid
    np.testing.assert_allclose(played.q, evaluated.q, rtol=1e-5, atol=1e-5)
    numbers = played.actions
    if environment == runs.NEST:  # actions of two parts
      numbers = np.ravel_multi_index(numbers.T, (7, 7))
    assert numbers.tolist() == evaluated.actions.tolist()
    assert len(set(evaluated.actions)) > 1


def test_masks_of_a_batch_are_those_of_its_environments(run_of):
  policy = r2d2_acme.load_policy(run_of(runs.MASKED), batch_size=2, epsilon=1.0)
  masks = np.eye(6, dtype=np.int8)[[2, 4]]
  for _ in range(5):
    actions = policy.step(np.array([7, 8]), info={'action_mask': masks})
    assert actions.tolist() == [2, 4]


def test_batch_of_nests_may_have_texts(run_of):
  policy = r2d2_acme.load_policy(run_of(runs.NEST), batch_size=2, epsilon=0)
  single = r2d2_acme.load_policy(run_of(runs.NEST), epsilon=0)
  rng = np.random.default_rng(0)
  observation = {
    'image': rng.integers(0, 255, (2, 7, 7, 3), np.uint8),
    'direction': np.array([1, 3]),
    'mission': ('find the seven', 'find'),  # as `gymnasium.vector` batches texts
  }
  actions = policy.step(observation)
  expected = single.step({name: part[1] for name, part in observation.items()})
  np.testing.assert_array_equal(actions[1], expected)
  np.testing.assert_allclose(policy.q[1], single.q, rtol=1e-5, atol=1e-5)


def test_reset_and_first_start_an_episode(run_of):
  policy = r2d2_acme.load_policy(run_of(runs.IMAGE), epsilon=0)
  env = runs.Screen()
  expected = _play(policy, env, seed=1)
  policy.reset()
  _check_equal(_play(policy, env, seed=1), expected)
  observation, _ = env.reset(seed=1)
  policy.step(observation, reward=7.0, first=True)  # the reward has no meaning
  np.testing.assert_array_equal(policy.q, expected.q[0])
  policy.step(observation, reward=7.0)  # but here it has
  assert not np.array_equal(policy.q, expected.q[0])


def test_policies_of_a_batch_play_as_single_ones_do(run_of):
  workdir = run_of(runs.IMAGE)
  rng = np.random.default_rng(0)
  observations = rng.integers(201, size=(6, 3, 36, 40, 3))
  rewards = rng.normal(size=(6, 3))
  first = rng.random((6, 3)) < 0.4
  batch = r2d2_acme.load_policy(workdir, batch_size=3, epsilon=0)
  singles = [r2d2_acme.load_policy(workdir, epsilon=0) for _ in range(3)]
  for step in zip(observations, rewards, first, strict=True):
    actions = batch.step(*step)
    assert actions.shape == (3,)
    assert batch.q.shape == (3, 3)
    for i, single in enumerate(singles):
      assert single.step(*(x[i] for x in step)) == actions[i]
      np.testing.assert_allclose(single.q, batch.q[i], rtol=1e-5, atol=1e-5)


def test_epsilon_and_seed_decide_the_random_actions(run_of):
  workdir = run_of(runs.VECTOR)

  def act(**given):
    policy = r2d2_acme.load_policy(workdir, **given)
    return [policy.step(np.zeros(4, np.float32)) for _ in range(40)]

  one, again, other = (act(epsilon=1.0, seed=seed) for seed in (1, 1, 2))
  assert one == again != other
  assert act(epsilon=0.0, seed=1) == act(epsilon=0.0, seed=2)


def test_checkpoint_is_the_one_that_was_asked_for(run_of):
  workdir = run_of(runs.VECTOR)
  observation = np.ones(4, np.float32)
  q = {}
  for name in ('newest', 'ckpt-1', 'ckpt-2'):
    policy = r2d2_acme.load_policy(workdir, name)
    policy.step(observation)
    q[name] = policy.q.tolist()
    assert policy.checkpoint == {'newest': 'ckpt-2'}.get(name, name)
    assert policy.counts['actor_frames'] == 400 * int(policy.checkpoint[-1])
  assert q['newest'] == q['ckpt-2'] != q['ckpt-1']
  with pytest.raises(CheckpointError, match='no best checkpoint'):
    r2d2_acme.load_policy(workdir, 'best')


@pytest.mark.parametrize(
  ('given', 'words'),
  [
    ({'batch_size': 0}, 'batch_size must be at least 1, not 0'),
    ({'epsilon': 1.5}, 'evaluator_epsilon must be in'),
    ({'seed': -1}, 'seed must not be negative'),
  ],
)
def test_wrong_arguments_are_refused_in_one_line(run_of, given, words):
  with pytest.raises(ValueError, match=words) as error:
    r2d2_acme.load_policy(run_of(runs.VECTOR), **given)
  assert '\n' not in str(error.value)


def test_folder_without_a_run_is_refused(tmp_path):
  with pytest.raises(ValueError, match='is not the workdir of a run'):
    r2d2_acme.load_policy(tmp_path)


def test_observation_without_the_preprocessing_is_refused_with_the_cure(run_of):
  policy = r2d2_acme.load_policy(run_of(runs.GAME))
  with pytest.raises(ValueError, match=r'\[210, 160, 3\].*\[84, 84, 1\].*make_environ'):
    policy.step(np.zeros((210, 160, 3), np.uint8))


def test_observations_of_another_number_of_environments_are_refused(run_of):
  policy = r2d2_acme.load_policy(run_of(runs.VECTOR), batch_size=2)
  for wrong in (np.zeros((3, 4), np.float32), np.float32(0)):
    with pytest.raises(ValueError, match='batch_size=2'):
      policy.step(wrong)


@pytest.mark.parametrize('reward', [np.nan, None])
def test_reward_that_is_none_is_refused(run_of, reward):
  policy = r2d2_acme.load_policy(run_of(runs.VECTOR))
  with pytest.raises(ValueError, match='the reward must be a finite number'):
    policy.step(np.zeros(4, np.float32), reward)


def test_seed_decides_the_environments_episodes(run_of):
  policy = r2d2_acme.load_policy(run_of(runs.VECTOR))
  starts = [policy.make_environment(seed).reset()[0].tolist() for seed in (1, 1, 2)]
  assert starts[0] == starts[1] != starts[2]
  env = policy.make_environment(2)
  assert env.reset(seed=1)[0].tolist() == starts[0]
  assert env.reset()[0].tolist() != starts[2]  # the first reset has its seed already


@pytest.mark.parametrize('terminates', [True, False])
def test_dm_env_environment_is_one_of_gymnasium(terminates):
  episodes = 2 * [helpers.Episode(2, terminates)]
  env = environments.make_for_gymnasium(
    lambda seed: helpers.ScriptedEnvironment(episodes), seed=0
  )
  assert env.action_space == gymnasium.spaces.Discrete(helpers.NUM_ACTIONS)
  for episode in range(2):
    observation, info = env.reset()
    assert info == {}
    assert env.observation_space.contains(observation)
    assert helpers.key_of(observation) == (0, episode, 0)
    _, reward, *ends, _ = env.step(1)
    assert (type(reward), ends) == (float, [False, False])
    observation, _, *ends, _ = env.step(1)
    assert helpers.key_of(observation) == (0, episode, 2)
    assert ends == [terminates, not terminates]
  with pytest.raises(ValueError, match='takes its seed when it is made'):
    env.reset(seed=1)
