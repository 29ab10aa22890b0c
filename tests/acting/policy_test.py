"""Tests of the policy in scripted environments.

What it writes to replay is tested in `replay/adder_test.py`.
"""

import threading
import time

import acme
import dm_env
import numpy as np
import pytest
import tree
from acme.utils import counting, loggers

from r2d2_acme.acting.actor import R2D2Actor
from r2d2_acme.acting.loop import VectorEnvironmentLoop
from r2d2_acme.builder import R2D2Builder
from r2d2_acme.system import runtime
from r2d2_acme.types import Observation
from tests import helpers
from tests.acting.worlds import make_environments, merge_tapes
from tests.helpers import Episode, Key


@pytest.mark.parametrize('image', [False, True])
def test_three_environments_at_once_are_three_single_ones(image):
  spec = helpers.make_spec(image)

  def act(num_actors, envs_per_actor):
    config = helpers.make_config(num_actors=num_actors, envs_per_actor=envs_per_actor)
    builder = R2D2Builder(config, spec)
    acted, environments = {}, make_environments(3, image)
    for index in range(num_actors):
      network = helpers.RecordingNetwork(builder.make_network())
      fleet = slice(index * envs_per_actor, (index + 1) * envs_per_actor)
      helpers.play(environments[fleet], builder.make_actor(index, network=network))
      acted |= network.acted
    return merge_tapes(environments), acted

  tape, acted = act(num_actors=1, envs_per_actor=3)
  single_tape, single_acted = act(num_actors=3, envs_per_actor=1)
  assert tape == single_tape
  assert acted.keys() == single_acted.keys()
  for key in acted:
    tree.map_structure(
      # Float32: products of matrices add up in another order.
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
      acted[key],
      single_acted[key],
    )


@pytest.mark.parametrize('num_envs, is_many', [(2, False), (8, True)])
def test_many_environments_act_in_the_torso_dtype(num_envs, is_many):
  """For few it would be slower."""
  q = {}
  for dtype in ('float32', 'auto'):
    config = helpers.make_config(envs_per_actor=num_envs, torso_dtype=dtype)
    actor = R2D2Builder(config, helpers.make_spec()).make_actor()
    timesteps = [env.reset() for env in make_environments(num_envs, image=True)]
    actor.select_actions(np.zeros(num_envs, np.int32), timesteps)
    q[dtype] = actor.q
  is_bfloat16 = is_many and runtime.multiplies_bfloat16()
  assert np.any(q['auto'] != q['float32']) == is_bfloat16
  np.testing.assert_allclose(q['auto'], q['float32'], rtol=2e-2, atol=1e-3)


def test_rewards_are_clipped_for_the_network_and_replay_but_not_in_the_log():
  config = helpers.make_config(clip_rewards=True)
  run = helpers.run(config, [[Episode(9, False)] * 3], image=False)
  rewards = {key: transition.reward for key, transition in run.tape.items()}
  assert max(map(abs, rewards.values())) > 2
  for key, acted in run.network.acted.items():
    assert acted.observation.reward == pytest.approx(np.clip(rewards[key], -1, 1))
  stored = np.concatenate([window.observations.reward for window in run.windows])
  assert np.abs(stored).max() == 1
  returns = [
    sum(reward for key, reward in rewards.items() if key.episode == episode)
    for episode in range(3)
  ]
  logged = [row['episode_return'] for row in run.rows]
  assert logged == pytest.approx(returns, abs=1e-5)


def test_each_episode_starts_from_zeros():
  """State, previous action and reward, and the stack but for its newest frame."""
  config = helpers.make_config(frame_stack=3, epsilon_base=1.0)
  builder = R2D2Builder(config, helpers.make_spec())
  network = helpers.RecordingNetwork(builder.make_network())
  environments = make_environments(1, image=True)
  helpers.play(environments, builder.make_actor(network=network))
  starts = [acted for key, acted in network.acted.items() if key.step == 0]
  assert len(starts) == 4
  for acted in starts:
    assert not np.any(tree.flatten(acted.core_state))
    assert acted.observation.action == 0
    assert acted.observation.reward == 0
    assert not np.any(acted.observation.observation[..., :2])
    assert np.any(acted.observation.observation[..., 2])


def test_stacks_hold_the_newest_frame_last():
  config = helpers.make_config(frame_stack=3)
  builder = R2D2Builder(config, helpers.make_spec())
  network = helpers.RecordingNetwork(builder.make_network())
  helpers.play(make_environments(1, image=True), builder.make_actor(network=network))
  for key, acted in network.acted.items():
    for i in range(3):
      frame = acted.observation.observation[..., i : i + 1]
      past = key._replace(step=key.step - 2 + i)
      expected = (
        helpers.frame_of(past, True) if past.step >= 0 else np.zeros_like(frame)
      )
      np.testing.assert_array_equal(frame, expected)


def test_without_adders_nothing_is_written():
  builder = R2D2Builder(helpers.make_config(), helpers.make_spec(image=False))
  actor = builder.make_evaluator()
  helpers.play(make_environments(1), actor)
  actor.flush()
  assert actor.num_windows == 0


def test_what_follows_an_episodes_end_starts_an_episode_whatever_its_type():
  environment = helpers.ScriptedEnvironment([Episode(2, True)] * 2, image=False)
  builder = R2D2Builder(helpers.make_config(), helpers.make_spec(image=False))
  network = helpers.RecordingNetwork(builder.make_network())
  actor, action = builder.make_actor(network=network), np.ones(1, np.int32)
  actor.select_actions(action, [environment.reset()])
  for _ in range(2):
    actor.select_actions(action, [environment.step(1)])
  first = environment.reset()._replace(
    step_type=dm_env.StepType.MID, reward=5.0, discount=1.0
  )
  actor.select_actions(action, [first])
  seen = network.acted[Key(0, 1, 0)]
  assert (seen.observation.action, seen.observation.reward) == (0, 0)
  assert not any(x.any() for x in seen.core_state)


class Source(acme.VariableSource):
  """Parameters that are the number of the request, of age `learner_steps`."""

  def __init__(self, variables, learner_steps: int = 0):
    self.learner_steps = learner_steps
    self.num_requests = 0
    self.answers = threading.Event()
    self.answers.set()
    self._variables = variables

  def get_variables(self, names):
    self.num_requests += 1
    values = [np.full(v.shape, self.num_requests, np.float32) for v in self._variables]
    self.answers.wait()
    return [[*values, np.int64(self.learner_steps)] for _ in names]


class TestParameters:
  @pytest.fixture(autouse=True)
  def make_parts(self):
    config = helpers.make_config(variable_update_period=4)
    self.builder = R2D2Builder(config, helpers.make_spec(image=False))
    self.network = self.builder.make_network()
    self.actor = self.builder.make_actor(network=self.network)
    self.source = Source(self.network.variables)

  def parameters(self):
    """The one value that `Source` gave to all."""
    (value,) = {float(x) for v in self.network.variables for x in v.numpy().ravel()}
    return value

  def test_fetch_copies_at_once(self):
    self.actor.fetch(self.source)
    assert self.parameters() == 1
    self.actor.fetch(self.source)
    assert self.parameters() == 2
    self.actor.update(wait=True)  # it was not told to follow
    assert self.source.num_requests == 2

  def test_follow_fetches_at_once_and_then_every_period(self):
    self.actor.follow(self.source)
    assert self.parameters() == 1
    requests = []
    for _ in range(12):
      self.actor.update(wait=True)
      requests.append(self.source.num_requests)
    assert requests == [1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4]
    assert self.parameters() == 4

  def test_update_fetches_in_the_background(self):
    self.actor.follow(self.source)
    self.source.answers.clear()
    started = time.time()
    for _ in range(20):
      self.actor.update()
    assert time.time() - started < 5
    helpers.wait_until(lambda: self.source.num_requests == 2)  # no more pile up
    assert self.parameters() == 1  # the old ones, all of them
    self.source.answers.set()

    def updated():
      self.actor.update()
      return self.parameters() > 1

    helpers.wait_until(updated)

  def test_the_loop_updates_once_for_each_network_call(self):
    self.actor.follow(self.source)
    loop = VectorEnvironmentLoop(
      make_environments(1), self.actor, counting.Counter(), loggers.NoOpLogger()
    )
    loop.run(num_steps=3)
    assert self.source.num_requests == 1
    loop.run(num_steps=1)
    helpers.wait_until(lambda: self.source.num_requests == 2)

  def test_the_learner_is_a_source(self):
    other = helpers.make_config(seed=1)
    learner = R2D2Builder(other, helpers.make_spec(image=False)).make_learner(iter([]))
    self.actor.follow(learner)
    for mine, learners in zip(
      self.network.variables, learner.variables[:-1], strict=True
    ):
      np.testing.assert_array_equal(mine, learners)

  def test_acting_uses_what_was_fetched(self):
    timestep = make_environments(1)[0].reset()
    network = helpers.RecordingNetwork(self.network)
    actor = self.builder.make_actor(network=network)
    actor.fetch(self.source)
    actor.select_actions(np.zeros(1, np.int32), [timestep])
    ((_, acted),) = network.acted.items()
    # All weights are 1: all actions are worth the same.
    assert np.ptp(acted.q) == 0

  def test_windows_tell_the_age_of_the_parameters(self):
    def act(environments, actor, counter, logger):
      (environment,) = environments
      loop = acme.EnvironmentLoop(environment, R2D2Actor(actor), counter, logger)
      source = Source(self.network.variables, learner_steps=7)
      actor.follow(source)
      loop.run(num_episodes=1)
      source.learner_steps = 2**40  # more than float32, or int32, could count
      actor.fetch(source)
      loop.run(num_episodes=1)

    run = helpers.run(
      helpers.make_config(),
      [[Episode(3, True), Episode(4, True)]],
      image=False,
      act=act,
    )
    assert [window.learner_steps for window in run.windows] == [7, 2**40]

  def test_acting_after_a_fetch_uses_the_new_parameters_at_once(self):
    """The policy works on copies of the variables."""
    timestep = make_environments(1)[0].reset()
    values = []
    for _ in range(2):
      self.actor.fetch(self.source)
      self.actor.select_actions(np.zeros(1, np.int32), [timestep])
      q, _ = self.network(
        Observation(
          timestep.observation[np.newaxis],
          np.zeros(1, np.int32),
          np.zeros(1, np.float32),
        ),
        self.network.initial_state(1),
      )
      np.testing.assert_allclose(self.actor.q, q, rtol=1e-6)
      values.append(self.actor.q)
    assert not np.array_equal(*values)


def test_acting_leaks_nothing():
  """A call of a function in TensorFlow 2.8's eager runtime keeps 430 bytes."""
  builder = R2D2Builder(helpers.make_config(), helpers.make_spec(image=False))
  actor, action = builder.make_evaluator(), np.zeros(1, np.int32)
  environment = helpers.ScriptedEnvironment([Episode(1, False)], image=False)
  timesteps = [environment.reset()]
  growth = helpers.growth(
    lambda: actor.select_actions(action, timesteps), warm_up=2_000, num_calls=20_000
  )
  assert growth < 500_000  # bytes; 9 million before
