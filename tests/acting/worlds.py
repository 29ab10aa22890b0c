"""Networks and environments of the tests of acting."""

import numpy as np
import sonnet as snt
import tensorflow as tf
import tree

from r2d2_acme.acting.actor import R2D2Actor
from tests import helpers
from tests.helpers import Episode


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


# Shorter than a window, just as long, longer; with a tail and without one.
LENGTHS = (5, 2, 7, 9, 12, 3, 1)


def _written_windows(environment_type, act, length_minus=0, **overrides):
  """All that was written for the first episodes; actions are greedy."""
  lengths = [length + 1 - length_minus for length in LENGTHS]
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
    if key.episode < len(LENGTHS):
      fields = window._replace(keys=0, probabilities=0, table_size=0)
      windows[key] = (fields, priority)
  return windows


def check_ends_as_truncated(environment_type, act, **overrides):
  """Checks what is written of episodes that never showed their last observation.

  It must be what is written of episodes that were truncated one step earlier.
  """
  actual = _written_windows(environment_type, act, **overrides)
  expected = _written_windows(
    helpers.ScriptedEnvironment, helpers.play, length_minus=1, **overrides
  )
  assert actual.keys() == expected.keys()
  for key, window in expected.items():
    tree.map_structure(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      actual[key],
      window,
    )
