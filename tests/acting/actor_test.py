"""Tests of `r2d2_acme/actor.py` in scripted environments.

What the actor writes to replay is tested in `adder_test.py`.
"""

import contextlib
import threading
import time

import acme
import dm_env
import numpy as np
import pytest
import sonnet as snt
import tensorflow as tf
import tree
from acme.utils import counting, loggers

from r2d2_acme.acting.actor import (
  BatchedActor,
  R2D2Actor,
  VectorEnvironmentLoop,
  epsilon_ladder,
)
from r2d2_acme.builder import R2D2Builder
from r2d2_acme.environments import EnvironmentFailed
from r2d2_acme.system import runtime
from r2d2_acme.types import Observation
from tests import helpers
from tests.helpers import Episode, Key


def make_environments(num_envs, image=False, lengths=(5, 1, 3, 8)):
  """Each with the same episodes, in an order of its own."""
  return [
    helpers.ScriptedEnvironment(
      [Episode(length, length % 2 == 0) for length in np.roll(lengths, i)], i, image
    )
    for i in range(num_envs)
  ]


def merge_tapes(environments):
  return {key: value for env in environments for key, value in env.tape.items()}


class ConstantNetwork:
  """Action 0 is the greedy one."""

  variables = ()

  def initial_state(self, batch_size):
    return snt.LSTMState(*tf.zeros([2, batch_size, 1]))

  def __call__(self, observation, core_state):
    q = tf.one_hot(tf.zeros_like(observation.action), helpers.NUM_ACTIONS)
    return q, core_state


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


def test_acmes_loop_writes_the_same_windows():
  def play_with_acme(environments, actor, counter, logger):
    (environment,) = environments
    loop = acme.EnvironmentLoop(environment, R2D2Actor(actor), counter, logger)
    loop.run(num_episodes=4)

  config = helpers.make_config(epsilon_base=0.5)
  episodes = [
    [Episode(5, True), Episode(1, False), Episode(9, False), Episode(4, True)]
  ]
  ours = helpers.run(config, episodes)
  acmes = helpers.run(config, episodes, act=play_with_acme)
  assert len(ours.windows) == len(acmes.windows) > 4
  np.testing.assert_array_equal(ours.priorities, acmes.priorities)
  for window, other in zip(ours.windows, acmes.windows, strict=True):
    tree.map_structure(
      np.testing.assert_array_equal, window, other._replace(keys=window.keys)
    )


class TestVectorEnvironmentLoop:
  def make_loop(self, num_envs=2, **kwargs):
    config = helpers.make_config(envs_per_actor=num_envs)
    builder = R2D2Builder(config, helpers.make_spec(image=False))
    self.environments = make_environments(num_envs)
    self.counter, self.logger = counting.Counter(), loggers.InMemoryLogger()
    self.actor = builder.make_actor(network=ConstantNetwork())
    return VectorEnvironmentLoop(
      self.environments, self.actor, self.counter, self.logger, **kwargs
    )

  def test_counts_steps_and_frames_and_episodes_but_not_resets(self):
    loop = self.make_loop(should_stop=lambda: self.environments[0].is_over)
    loop.run()
    num_steps = 2 * (5 + 1 + 3 + 8)
    # Four raw frames per step, says the environment.
    assert self.counter.get_counts() == {
      'steps': num_steps,
      'frames': 4 * num_steps,
      'episodes': 8,
    }

  def test_writes_one_row_for_each_episode(self):
    loop = self.make_loop(should_stop=lambda: self.environments[0].is_over)
    loop.run()
    expected = []
    for index, lengths in enumerate([(5, 1, 3, 8), (8, 5, 1, 3)]):
      for episode, length in enumerate(lengths):
        steps = [Key(index, episode, step) for step in range(1, length + 1)]
        tape = self.environments[index].tape
        expected.append(
          (length, self.actor.epsilons[index], sum(tape[key].reward for key in steps))
        )
    rows = sorted(
      (row['episode_length'], row['epsilon'], row['episode_return'])
      for row in self.logger.data
    )
    # Returns are added up in float64.
    np.testing.assert_allclose(rows, sorted(expected), rtol=1e-6)
    assert len(self.logger.data) == 8

  def test_rows_come_with_the_counts_so_far(self):
    loop = self.make_loop(num_envs=1, should_stop=lambda: self.environments[0].is_over)
    loop.run()
    lengths = np.array([5, 1, 3, 8])
    assert [row['steps'] for row in self.logger.data] == list(np.cumsum(lengths))
    assert [row['frames'] for row in self.logger.data] == list(4 * np.cumsum(lengths))
    assert [row['episodes'] for row in self.logger.data] == [1, 2, 3, 4]
    assert all(row['steps_per_second'] > 0 for row in self.logger.data)

  def test_run_stops_after_steps_or_episodes_and_goes_on_from_there(self):
    loop = self.make_loop(num_envs=1)
    loop.run(num_steps=3)
    assert self.counter.get_counts()['steps'] == 3
    loop.run(num_episodes=2)
    # Neither of the runs began an episode anew.
    assert [row['episode_length'] for row in self.logger.data] == [5, 1]
    assert self.counter.get_counts()['steps'] == 6

  def test_stops_when_told(self):
    loop = self.make_loop(should_stop=lambda: True)
    loop.run()
    assert self.counter.get_counts() == {}


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


class Interrupted(KeyboardInterrupt):
  """Ctrl-C."""


class InterruptedEnvironment(helpers.ScriptedEnvironment):
  """Is interrupted instead of showing an episode's last observation."""

  def step(self, action):
    if self._key.step + 1 == self._episodes[self._key.episode].length:
      return self.interrupt()
    return super().step(action)

  def interrupt(self):
    raise Interrupted


class SelfResettingEnvironment(InterruptedEnvironment):
  """Shows the next episode's first observation instead of an episode's last."""

  def interrupt(self):
    return self.reset()


class LongerEnvironment(helpers.ScriptedEnvironment):
  """Plays longer episodes than it is told to."""

  def __init__(self, episodes, index, image):
    longer = [Episode(length + 5, terminates) for length, terminates in episodes]
    super().__init__(longer, index, image)


def act_in_acmes_steps(environments, actor, counter, logger):
  """As Acme's loop does, which itself cannot add up rewards of shape [1]."""
  (environment,) = environments
  acme_actor = R2D2Actor(actor)
  while True:
    timestep = environment.reset()
    if environment.is_over:
      return
    acme_actor.observe_first(timestep)
    while not timestep.last():
      action = acme_actor.select_action(timestep.observation)
      timestep = environment.step(action)
      acme_actor.observe(action, timestep)
      if environment.is_over:
        return


class TestUnfinishedEpisodes:
  """An episode that never showed its last observation ends as truncated."""

  # Shorter than a window, just as long, longer; with a tail and without one.
  LENGTHS = (5, 2, 7, 9, 12, 3, 1)

  def run(self, environment_type, act, length_minus=0, **overrides):
    """All that was written for the first episodes; actions are greedy."""
    lengths = [length + 1 - length_minus for length in self.LENGTHS]
    if not length_minus:
      lengths.append(2)  # ends the one before it
    config = helpers.make_config(epsilon_base=0.0, **overrides)
    run = helpers.run(
      config,
      [[Episode(length, False) for length in lengths]],
      image=False,
      act=act,
      environment_type=environment_type,
    )
    windows = {}
    for window, priority in zip(run.windows, run.priorities, strict=True):
      key = helpers.key_of(window.observations.observation[config.burn_in_length])
      if key.episode < len(self.LENGTHS):
        fields = window._replace(keys=0, probabilities=0, table_size=0)
        windows[key] = (fields, priority)
    return windows

  def check(self, environment_type, act, **overrides):
    actual = self.run(environment_type, act, **overrides)
    expected = self.run(
      helpers.ScriptedEnvironment, helpers.play, length_minus=1, **overrides
    )
    assert actual.keys() == expected.keys()
    for key, window in expected.items():
      tree.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        actual[key],
        window,
      )

  @pytest.mark.parametrize('act', [helpers.play, act_in_acmes_steps])
  @pytest.mark.parametrize('sequence_period', [2, 3, 4])
  def test_of_an_environment_that_resets_itself(self, sequence_period, act):
    self.check(SelfResettingEnvironment, act, sequence_period=sequence_period)

  def test_are_rows_of_the_log(self):
    (environment,) = environments = [
      SelfResettingEnvironment([Episode(4, True), Episode(3, True)], image=False)
    ]
    network = ConstantNetwork()
    actor = R2D2Builder(
      helpers.make_config(), helpers.make_spec(image=False)
    ).make_actor(network=network)
    logger, counter = loggers.InMemoryLogger(), counting.Counter()
    helpers.play(environments, actor, counter, logger)
    assert [row['episode_length'] for row in logger.data] == [3, 2]
    expected = [
      sum(t.reward for key, t in environment.tape.items() if key.episode == episode)
      for episode in range(2)
    ]
    assert [row['episode_return'] for row in logger.data] == pytest.approx(expected)
    assert counter.get_counts() == {'steps': 5, 'frames': 20, 'episodes': 2}

  @pytest.mark.parametrize('sequence_period', [2, 3, 4])
  def test_of_acmes_loop_that_was_interrupted_and_runs_again(self, sequence_period):
    def act(environments, actor, counter, logger):
      (environment,) = environments
      loop = acme.EnvironmentLoop(environment, R2D2Actor(actor), counter, logger)
      while not environment.is_over:
        with contextlib.suppress(Interrupted, IndexError):
          loop.run(num_episodes=1)

    self.check(InterruptedEnvironment, act, sequence_period=sequence_period)

  def test_of_acmes_loop_that_was_interrupted_after_observing(self):
    def act(environments, actor, counter, logger):
      (environment,) = environments
      acme_actor = R2D2Actor(actor)
      for length in [*self.LENGTHS, 1]:
        acme_actor.observe_first(environment.reset())
        for _ in range(length + 1):  # the last observation was never acted upon
          action = acme_actor.select_action(None)
          acme_actor.observe(action, environment.step(action))
      environment.is_over = True

    self.check(LongerEnvironment, act)

  def test_of_a_vector_loop_that_was_interrupted(self):
    def act(environments, actor, counter, logger):
      loop = VectorEnvironmentLoop(environments, actor, counter, logger)
      while not environments[0].is_over:
        with contextlib.suppress(Interrupted, EnvironmentFailed):
          loop.run()

    self.check(InterruptedEnvironment, act)

  def test_of_several_environments_of_which_one_is_interrupted(self):
    """The others have taken a step that this one has not."""
    lengths = (4, 9)
    environments = [
      helpers.ScriptedEnvironment([Episode(50, False)] * 3, 0, False),
      InterruptedEnvironment([Episode(n + 1, False) for n in lengths], 1, False),
      helpers.ScriptedEnvironment([Episode(50, False)] * 3, 2, False),
    ]
    config = helpers.make_config(envs_per_actor=3)
    builder = R2D2Builder(config, helpers.make_spec(image=False))
    network = helpers.RecordingNetwork(builder.make_network())
    loop = VectorEnvironmentLoop(
      environments,
      builder.make_actor(network=network),  # fails if it sees anything twice
      counting.Counter(),
      loggers.NoOpLogger(),
    )
    for _ in lengths:
      with pytest.raises(Interrupted):
        loop.run()
    assert {key for key in network.acted if key.environment == 1} == {
      Key(1, episode, step)
      for episode, length in enumerate(lengths)
      for step in range(length + 1)
    }
    assert {key.episode for key in network.acted} == {0, 1}


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


class OddRewards(helpers.ScriptedEnvironment):
  """Gives rewards and discounts of other types than its specs say."""

  def __init__(self, episodes, make, index=0):
    super().__init__(episodes, index, image=False)
    self.make = make

  def step(self, action):
    timestep = super().step(action)
    return timestep._replace(
      reward=self.make(timestep.reward), discount=self.make(timestep.discount)
    )


NUMBERS = (float, int, np.int64, np.float64, lambda x: np.array([x]), np.array, bool)


@pytest.mark.parametrize('act', [act_in_acmes_steps, helpers.play])
@pytest.mark.parametrize('make', NUMBERS)
def test_any_one_number_is_a_reward(make, act):
  environment = OddRewards([Episode(5, True), Episode(1, True)], make)

  def act_here(environments, *others):
    act([environment], *others)

  run = helpers.run(helpers.make_config(), [[]], image=False, act=act_here)
  seen = {}
  for window in run.windows:
    for row in np.flatnonzero(window.mask):
      key = helpers.key_of(window.observations.observation[row])
      seen[key] = (window.observations.reward[row], window.discount[row])
  for key, transition in environment.tape.items():
    if key.step:
      values = (transition.reward, transition.discount)
      assert seen[key] == tuple(np.float32(np.ravel(make(x))[0]) for x in values)


@pytest.mark.parametrize('value', [None, np.zeros(2), 'one', [1.0, 2.0]])
def test_any_other_reward_is_one_line(value):
  builder = R2D2Builder(helpers.make_config(), helpers.make_spec(image=False))
  actor = builder.make_actor(network=ConstantNetwork())
  for error, match, act in (
    (ValueError, 'the reward must be one number', act_in_acmes_steps),
    (RuntimeError, 'OddRewards failed in step 1 .* one number', helpers.play),
  ):
    environment = OddRewards([Episode(5, True)], lambda _: value)
    with pytest.raises(error, match=match):
      act([environment], actor, counting.Counter(), loggers.NoOpLogger())
