"""Tests of the ladder of epsilons and of what is explored with it."""

import numpy as np
import pytest

from r2d2_acme.acting.exploration import epsilon_ladder
from r2d2_acme.acting.policy import BatchedActor
from r2d2_acme.builder import R2D2Builder
from tests import helpers
from tests.acting.worlds import ConstantNetwork, make_environments


class TestEpsilonLadder:
  def test_values(self):
    ladder = epsilon_ladder(helpers.make_config(num_actors=8))
    np.testing.assert_allclose(ladder, [0.4 ** (1 + i) for i in range(8)])
    ladder = epsilon_ladder(helpers.make_config(num_actors=3))
    np.testing.assert_allclose(ladder, [0.4, 0.4**4.5, 0.4**8])
    ladder = epsilon_ladder(helpers.make_config(num_actors=2))
    np.testing.assert_allclose(ladder, [0.4, 0.00065536])

  def test_one_environment_gets_the_base(self):
    np.testing.assert_array_equal(epsilon_ladder(helpers.make_config()), [0.4])

  def test_base_and_alpha_are_the_configs(self):
    config = helpers.make_config(num_actors=2, epsilon_base=0.5, epsilon_alpha=3)
    np.testing.assert_allclose(epsilon_ladder(config), [0.5, 0.5**4])

  @pytest.mark.parametrize('num_actors, envs_per_actor', [(1, 6), (2, 3), (6, 1)])
  def test_it_spans_the_fleet_however_that_is_split(self, num_actors, envs_per_actor):
    config = helpers.make_config(num_actors=num_actors, envs_per_actor=envs_per_actor)
    builder = R2D2Builder(config, helpers.make_spec(image=False))
    epsilons = [
      epsilon
      for index in range(num_actors)
      for epsilon in builder.make_actor(index, network=ConstantNetwork()).epsilons
    ]
    expected = epsilon_ladder(helpers.make_config(num_actors=6))
    np.testing.assert_array_equal(epsilons, expected)


class TestExploration:
  def test_epsilon_is_that_of_the_environment_in_every_episode(self):
    epsilons = (0.0, 0.3, 1.0)
    actor = BatchedActor(
      ConstantNetwork(),
      helpers.make_config(),
      helpers.make_spec(image=False),
      epsilons=epsilons,
      seeds=(0, 1, 2),
    )
    length, num_episodes = 200, 5
    environments = make_environments(3, lengths=[length] * num_episodes)
    helpers.play(environments, actor)
    for environment, epsilon in zip(environments, epsilons, strict=True):
      actions = np.zeros([num_episodes, length], int)
      for key, transition in environment.tape.items():
        if key.step:
          actions[key.episode, key.step - 1] = transition.action
      # A random action is the greedy one in one case of three.
      expected = epsilon * 2 / 3
      slack = 4 * np.sqrt(expected * (1 - expected) / length)
      assert np.all(np.abs(np.mean(actions != 0, axis=1) - expected) <= slack)
      if epsilon:
        assert np.mean(actions == 1) == pytest.approx(epsilon / 3, abs=0.05)

  def explore(self, seed=0, num_actors=2, envs_per_actor=2):
    """The fleet's actions, all random; [environment][step]."""
    config = helpers.make_config(
      seed=seed, num_actors=num_actors, envs_per_actor=envs_per_actor, epsilon_base=1.0
    )
    builder = R2D2Builder(config, helpers.make_spec(image=False))
    streams = []
    for index in range(num_actors):
      environments = make_environments(envs_per_actor, lengths=[20])
      helpers.play(environments, builder.make_actor(index, network=ConstantNetwork()))
      for environment in environments:
        streams.append([transition.action for transition in environment.tape.values()])
    return streams

  def test_the_same_seed_explores_alike(self):
    assert self.explore(seed=0) == self.explore(seed=0)
    for stream, other in zip(self.explore(seed=0), self.explore(seed=1), strict=True):
      assert stream != other

  def test_environments_explore_differently(self):
    assert len(set(map(tuple, self.explore()))) == 4

  def test_random_numbers_do_not_depend_on_how_the_fleet_is_split(self):
    split = self.explore(num_actors=4, envs_per_actor=1)
    assert self.explore(num_actors=2, envs_per_actor=2) == split
    assert self.explore(num_actors=1, envs_per_actor=4) == split
