"""Tests of the loop over environments that act in step."""

import contextlib

import numpy as np
import pytest
from acme.utils import counting, loggers

from r2d2_acme.acting.loop import VectorEnvironmentLoop
from r2d2_acme.builder import R2D2Builder
from r2d2_acme.environments import EnvironmentFailed
from tests import helpers
from tests.acting.worlds import (
  NUMBERS,
  ConstantNetwork,
  Interrupted,
  InterruptedEnvironment,
  OddRewards,
  SelfResettingEnvironment,
  act_in_acmes_steps,
  check_ends_as_truncated,
  make_environments,
)
from tests.helpers import Episode, Key


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


@pytest.mark.parametrize('sequence_period', [2, 3, 4])
def test_an_environment_that_resets_itself_ends_its_episode_as_truncated(
  sequence_period,
):
  check_ends_as_truncated(
    SelfResettingEnvironment, helpers.play, sequence_period=sequence_period
  )


def test_episodes_of_an_environment_that_resets_itself_are_rows_of_the_log():
  (environment,) = environments = [
    SelfResettingEnvironment([Episode(4, True), Episode(3, True)], image=False)
  ]
  network = ConstantNetwork()
  actor = R2D2Builder(helpers.make_config(), helpers.make_spec(image=False)).make_actor(
    network=network
  )
  logger, counter = loggers.InMemoryLogger(), counting.Counter()
  helpers.play(environments, actor, counter, logger)
  assert [row['episode_length'] for row in logger.data] == [3, 2]
  expected = [
    sum(t.reward for key, t in environment.tape.items() if key.episode == episode)
    for episode in range(2)
  ]
  assert [row['episode_return'] for row in logger.data] == pytest.approx(expected)
  assert counter.get_counts() == {'steps': 5, 'frames': 20, 'episodes': 2}


def test_episodes_that_were_interrupted_end_as_truncated():
  def act(environments, actor, counter, logger):
    loop = VectorEnvironmentLoop(environments, actor, counter, logger)
    while not environments[0].is_over:
      with contextlib.suppress(Interrupted, EnvironmentFailed):
        loop.run()

  check_ends_as_truncated(InterruptedEnvironment, act)


def test_one_interrupted_environment_ends_the_episodes_of_all():
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
