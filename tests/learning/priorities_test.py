"""Tests of the priority that the actor gives to a new window."""

import numpy as np

from r2d2_acme.learning import priorities
from tests import helpers, oracles
from tests.helpers import Episode


def test_garbage_in_padding_does_not_enter_the_priority():
  config = helpers.make_config()
  priority_fn = priorities.make_priority_fn(config)
  rng = np.random.default_rng(0)
  q = rng.normal(size=[5, helpers.NUM_ACTIONS]).astype(np.float32)
  actions = np.array([2, 0, 1, 0], np.int32)
  rewards, discounts = rng.normal(size=[2, 4]).astype(np.float32)
  mask = np.array([1, 1, 0, 0], np.float32)
  expected = oracles.sequence_priorities(
    oracles.double_q_td_errors(
      *np.float64([q[:3, None]] * 2),
      actions[:2, None],
      rewards[:2, None],
      config.discount * discounts[:2, None],
      config.n_step,
      config.value_rescaling_epsilon,
    ),
    mask[:2, None],
    config.priority_eta,
  )
  for garbage in (0, 1e30, np.nan):
    q[3:], rewards[2:], discounts[2:], actions[2:] = garbage, garbage, garbage, 2
    priority = priority_fn(q, actions, rewards, discounts, mask)
    np.testing.assert_allclose(priority, expected[0], rtol=1e-5)


def test_without_actor_priorities_each_window_starts_at_1():
  config = helpers.make_config(actor_priorities=False)
  run = helpers.run(config, [[Episode(11, True), Episode(3, False)]])
  assert len(run.priorities) > 2
  np.testing.assert_array_equal(run.priorities, 1.0)
