"""Tests of `R2D2Actor`, in Acme's environment loop."""

import contextlib

import acme
import numpy as np
import pytest
import tree

from r2d2_acme.acting.actor import R2D2Actor
from tests import helpers
from tests.acting.worlds import (
  LENGTHS,
  Interrupted,
  InterruptedEnvironment,
  SelfResettingEnvironment,
  act_in_acmes_steps,
  check_ends_as_truncated,
)
from tests.helpers import Episode


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


class LongerEnvironment(helpers.ScriptedEnvironment):
  """Plays longer episodes than it is told to."""

  def __init__(self, episodes, index, image):
    longer = [Episode(length + 5, terminates) for length, terminates in episodes]
    super().__init__(longer, index, image)


@pytest.mark.parametrize('sequence_period', [2, 3, 4])
def test_an_environment_that_resets_itself_ends_its_episode_as_truncated(
  sequence_period,
):
  check_ends_as_truncated(
    SelfResettingEnvironment, act_in_acmes_steps, sequence_period=sequence_period
  )


@pytest.mark.parametrize('sequence_period', [2, 3, 4])
def test_episodes_that_were_interrupted_end_as_truncated(sequence_period):
  def act(environments, actor, counter, logger):
    (environment,) = environments
    loop = acme.EnvironmentLoop(environment, R2D2Actor(actor), counter, logger)
    while not environment.is_over:
      with contextlib.suppress(Interrupted, IndexError):
        loop.run(num_episodes=1)

  check_ends_as_truncated(InterruptedEnvironment, act, sequence_period=sequence_period)


def test_episodes_that_were_interrupted_after_observing_end_as_truncated():
  def act(environments, actor, counter, logger):
    (environment,) = environments
    acme_actor = R2D2Actor(actor)
    for length in [*LENGTHS, 1]:
      acme_actor.observe_first(environment.reset())
      for _ in range(length + 1):  # the last observation was never acted upon
        action = acme_actor.select_action(None)
        acme_actor.observe(action, environment.step(action))
    environment.is_over = True

  check_ends_as_truncated(LongerEnvironment, act)
