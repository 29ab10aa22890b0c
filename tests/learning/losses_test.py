"""Tests of `r2d2_acme/losses.py`.

Against arithmetic written out, `oracles.py` (float64 loops), rlax and Acme. Tolerances:
float64 against an oracle is 1e-10, a few hundred thousand roundings; float32 ones are
explained where they stand.
"""

import functools
import math

import jax
import numpy as np
import rlax
import tensorflow as tf
from absl.testing import absltest, parameterized
from acme.tf import losses as acme_losses

from r2d2_acme.learning import losses
from tests import oracles

N_STEPS = (1, 2, 3, 5, 7, 8, 20)  # T = 7 in random batches: below, at and above.


def make_batch(seed=0, num_steps=7, batch_size=5, num_actions=4, dtype=np.float64):
  """Random inputs of `double_q_td_errors`, one transition in five a termination."""
  rng = np.random.RandomState(seed)
  steps, rows = [num_steps, batch_size], [num_steps + 1, batch_size, num_actions]
  gammas = rng.uniform(0.8, 1.0, steps)  # All different: tells d_t from d_{t+1}.
  return dict(
    q=rng.normal(0, 5, rows).astype(dtype),
    target_q=rng.normal(0, 5, rows).astype(dtype),
    actions=rng.randint(num_actions, size=steps).astype(np.int32),
    rewards=rng.normal(0, 10, steps).astype(dtype),
    discounts=np.where(rng.rand(*steps) < 0.2, 0, gammas).astype(dtype),
  )


def make_mask(lengths, num_steps):
  """1 on the first `lengths[b]` steps of each column; [T, B]."""
  return (np.arange(num_steps)[:, None] < np.array(lengths)).astype(np.float64)


def overwrite_padding(batch, mask, make_values):
  """Replaces padding, but for that of the actions, by `make_values(shape)`."""
  row_mask = np.pad(mask, [[1, 0], [0, 0]], constant_values=1)[..., None]  # [T+1, B, 1]
  result = dict(batch)
  for name in ('q', 'target_q', 'rewards', 'discounts'):
    is_real = (row_mask if batch[name].ndim == 3 else mask) == 1
    values = make_values(batch[name].shape)
    result[name] = np.where(is_real, batch[name], values).astype(batch[name].dtype)
  return result


def make_padding_garbage(batch, mask, seed=1):
  """Padding that no arithmetic survives, and random actions."""
  rng = np.random.RandomState(seed)
  result = overwrite_padding(
    batch, mask, lambda shape: rng.choice([np.nan, np.inf, -1e30, 0.0, 1e30], shape)
  )
  actions = rng.randint(batch['q'].shape[-1], size=mask.shape).astype(np.int32)
  result['actions'] = np.where(mask == 1, batch['actions'], actions)
  return result


def masked_td_errors(batch, mask, n_step):
  """What learner and actor do; the batch's discounts contain gamma already."""
  return losses.window_td_errors(**batch, mask=mask, gamma=1.0, n_step=n_step)


class RescalingTest(parameterized.TestCase):
  # h(3) = sqrt(4) - 1 + 0.003; h(-8) = -(sqrt(9) - 1) - 0.008.
  @parameterized.parameters(
    (0.0, 0.0), (3.0, 1 + 1e-3 * 3), (-8.0, -(2 + 1e-3 * 8)), (99.0, 9 + 1e-3 * 99)
  )
  def test_hand_written_values(self, x, expected):
    x, expected = np.float64(x), np.float64(expected)
    np.testing.assert_allclose(losses.signed_hyperbolic(x), expected, rtol=1e-14)
    np.testing.assert_allclose(losses.signed_parabolic(expected), x, rtol=1e-14)

  def test_epsilon_changes_the_slope(self):
    np.testing.assert_allclose(
      losses.signed_hyperbolic(np.float64(3), epsilon=0.5), 1 + 0.5 * 3, rtol=1e-14
    )
    np.testing.assert_allclose(
      losses.signed_parabolic(np.float64(2.5), epsilon=0.5), 3, rtol=1e-14
    )

  def test_epsilon_zero_is_the_square_root_and_its_inverse(self):
    x = np.array([-99.0, -3.0, 0.0, 3.0, 99.0])
    h_x = np.array([-9.0, -1.0, 0.0, 1.0, 9.0])
    np.testing.assert_allclose(losses.signed_hyperbolic(x, epsilon=0), h_x, rtol=1e-14)
    np.testing.assert_allclose(losses.signed_parabolic(h_x, epsilon=0), x, rtol=1e-14)

  # Few operations, none of which cancels: a few units in the last place, 1.2e-7 in
  # float32 and 2.2e-16 in float64. The textbook form misses by orders of magnitude.
  @parameterized.parameters((np.float32, 1e-6), (np.float64, 2e-15))
  def test_matches_60_digit_textbook_form(self, dtype, rtol):
    sizes = np.logspace(-9, 6, 151)
    x = np.concatenate([-sizes, [0.0], sizes]).astype(dtype)
    for epsilon in (1e-3, 1e-2):
      for function, oracle in (
        (losses.signed_hyperbolic, oracles.signed_hyperbolic),
        (losses.signed_parabolic, oracles.signed_parabolic),
      ):
        y = function(x, epsilon).numpy()
        self.assertEqual(y.dtype, dtype)
        np.testing.assert_allclose(y, oracle(x, epsilon), rtol=rtol)

  # PITFALLS 9. What remains is the rounding of h(x) to float32, at most doubled.
  def test_round_trip_in_float32(self):
    sizes = np.logspace(-9, 6, 1501)
    x = np.concatenate([-sizes, [0.0], sizes]).astype(np.float32)
    there = losses.signed_parabolic(losses.signed_hyperbolic(x))
    back = losses.signed_hyperbolic(losses.signed_parabolic(x))
    np.testing.assert_allclose(there, x, rtol=1e-5, atol=0)
    np.testing.assert_allclose(back, x, rtol=1e-5, atol=0)

  def test_odd_and_strictly_increasing(self):
    sizes = np.logspace(-9, 6, 1501).astype(np.float32)
    x = np.concatenate([-sizes[::-1], [0.0], sizes]).astype(np.float32)
    for function in (losses.signed_hyperbolic, losses.signed_parabolic):
      y = function(x).numpy()
      np.testing.assert_array_equal(function(-x), -y)
      self.assertTrue(np.all(np.diff(y) > 0))

  @parameterized.parameters(0.0, 1e-3, 0.1)
  def test_gradients(self, epsilon):
    x = tf.constant([-50.0, -1e-6, 0.0, 1e-6, 50.0], tf.float64)
    with tf.GradientTape(persistent=True) as tape:
      tape.watch(x)
      h_x = losses.signed_hyperbolic(x, epsilon)
      inverse_x = losses.signed_parabolic(x, epsilon)
    # h'(x) = 1 / (2 sqrt(|x| + 1)) + epsilon, also at 0.
    np.testing.assert_allclose(
      tape.gradient(h_x, x), 0.5 / np.sqrt(np.abs(x) + 1) + epsilon, rtol=1e-12
    )
    # (h^-1)'(x) = 1 / h'(h^-1(x)).
    np.testing.assert_allclose(
      tape.gradient(inverse_x, x),
      1 / (0.5 / np.sqrt(np.abs(inverse_x) + 1) + epsilon),
      rtol=1e-12,
    )

  def test_rejects_negative_epsilon(self):
    for function in (losses.signed_hyperbolic, losses.signed_parabolic):
      with self.assertRaisesRegex(ValueError, 'epsilon'):
        function(np.ones(3), epsilon=-1e-3)


class NStepReturnsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('one', 1, [1 + 0.9 * 100, 2 + 0.9 * 200, 3 + 0.9 * 300]),
    (
      'below_length',
      2,
      [1 + 0.9 * 2 + 0.9**2 * 200, 2 + 0.9 * 3 + 0.9**2 * 300, 3 + 0.9 * 300],
    ),
    (
      'at_length',
      3,
      [
        1 + 0.9 * 2 + 0.9**2 * 3 + 0.9**3 * 300,
        2 + 0.9 * 3 + 0.9**2 * 300,
        3 + 0.9 * 300,
      ],
    ),
    (
      'above_length',
      4,
      [
        1 + 0.9 * 2 + 0.9**2 * 3 + 0.9**3 * 300,
        2 + 0.9 * 3 + 0.9**2 * 300,
        3 + 0.9 * 300,
      ],
    ),
  )
  def test_hand_written_values(self, n_step, expected):
    returns = losses.n_step_bootstrapped_returns(
      rewards=np.array([[1.0], [2.0], [3.0]]),
      discounts=np.full([3, 1], 0.9),
      values=np.array([[100.0], [200.0], [300.0]]),
      n_step=n_step,
    )
    np.testing.assert_allclose(returns[:, 0], expected, rtol=1e-14)

  def test_termination_ends_the_sum(self):
    returns = losses.n_step_bootstrapped_returns(
      rewards=np.array([[1.0], [2.0], [4.0], [8.0]]),
      discounts=np.array([[0.9], [0.0], [0.9], [0.9]]),
      values=np.array([[100.0], [200.0], [300.0], [400.0]]),
      n_step=3,
    )
    np.testing.assert_allclose(
      returns[:, 0],
      [1 + 0.9 * 2, 2, 4 + 0.9 * 8 + 0.9**2 * 400, 8 + 0.9 * 400],
      rtol=1e-14,
    )

  @parameterized.parameters(*N_STEPS)
  def test_matches_oracle_and_rlax(self, n_step):
    batch = make_batch(seed=n_step)
    rewards, discounts = batch['rewards'], batch['discounts']
    values = 100 * batch['q'][1:, :, 0]
    returns = losses.n_step_bootstrapped_returns(rewards, discounts, values, n_step)
    self.assertEqual(returns.dtype, tf.float64)
    np.testing.assert_allclose(
      returns,
      oracles.n_step_bootstrapped_returns(rewards, discounts, values, n_step),
      rtol=1e-10,
    )
    with jax.experimental.enable_x64():
      per_window = functools.partial(rlax.n_step_bootstrapped_returns, n=n_step)
      expected = jax.vmap(per_window, in_axes=1, out_axes=1)(rewards, discounts, values)
    np.testing.assert_allclose(returns, expected, rtol=1e-10)

  def test_long_horizon_without_values_is_the_discounted_sum(self):
    batch = make_batch()
    rewards, zeros = batch['rewards'], np.zeros_like(batch['rewards'])
    returns = losses.n_step_bootstrapped_returns(rewards, zeros + 1, zeros, n_step=100)
    np.testing.assert_allclose(
      returns, np.cumsum(rewards[::-1], axis=0)[::-1], rtol=1e-10
    )

  def test_unknown_length_gives_the_same(self):
    steps = tf.TensorSpec([None, None], tf.float64)
    batch = make_batch()
    args = (batch['rewards'], batch['discounts'], batch['q'][1:, :, 0])
    for n_step in N_STEPS:
      traced = tf.function(
        functools.partial(losses.n_step_bootstrapped_returns, n_step=n_step),
        input_signature=[steps] * 3,
      )
      np.testing.assert_array_equal(
        traced(*args), losses.n_step_bootstrapped_returns(*args, n_step)
      )

  @parameterized.parameters(0, -1)
  def test_rejects_n_step_below_one(self, n_step):
    with self.assertRaisesRegex(ValueError, 'n_step'):
      losses.n_step_bootstrapped_returns(*np.ones([3, 4, 2]), n_step=n_step)

  def test_rejects_wrong_shapes(self):
    good = np.ones([4, 2])
    for position, name in enumerate(['rewards', 'discounts', 'values']):
      for bad in (np.ones([4]), np.ones([4, 2, 1]), np.ones([5, 2]), np.ones([4, 1])):
        args = [good, good, good]
        args[position] = bad
        # Sizes are compared with those of the rewards.
        pattern = name if position or bad.ndim != 2 else 'discounts'
        with self.assertRaisesRegex(ValueError, pattern):
          losses.n_step_bootstrapped_returns(*args, n_step=2)


class TdErrorsTest(parameterized.TestCase):
  def test_hand_written_values(self):
    # h^-1(9.099) = 99, h^-1(1.003) = 3, h(24) = 4.024. Two transitions, n = 2.
    q = np.array([[[0.5, 7.0]], [[2.0, -4.0]], [[-3.0, -2.0]]])
    target_q = np.array([[[50.0, 50.0]], [[1.003, 50.0]], [[50.0, 9.099]]])
    td_errors = losses.double_q_td_errors(
      q,
      target_q,
      actions=np.array([[0], [1]], np.int32),
      rewards=np.array([[-1.25], [-74.25]]),
      discounts=np.array([[1.0], [1.0]]),
      n_step=2,
    )
    # y_0 = h(-1.25 - 74.25 + 99) = h(23.5), y_1 = h(-74.25 + 99) = h(24.75).
    expected = [
      math.sqrt(24.5) - 1 + 1e-3 * 23.5 - 0.5,
      math.sqrt(25.75) - 1 + 1e-3 * 24.75 - -4.0,
    ]
    np.testing.assert_allclose(td_errors[:, 0], expected, rtol=1e-12)

    one_step = losses.double_q_td_errors(
      q,
      target_q,
      actions=np.array([[0], [1]], np.int32),
      rewards=np.array([[21.0], [-74.25]]),
      discounts=np.array([[1.0], [1.0]]),
      n_step=1,
    )
    expected[0] = 4.024 - 0.5  # y_0 = h(21 + 3) = h(24).
    np.testing.assert_allclose(one_step[:, 0], expected, rtol=1e-12)

  @parameterized.parameters(*N_STEPS)
  def test_matches_oracle_and_rlax(self, n_step):
    batch = make_batch(seed=n_step)
    td_errors = losses.double_q_td_errors(**batch, n_step=n_step)
    self.assertEqual(td_errors.dtype, tf.float64)
    np.testing.assert_allclose(
      td_errors, oracles.double_q_td_errors(**batch, n_step=n_step), rtol=1e-10
    )

    def per_window(q, target_q, actions, rewards, discounts):
      return rlax.transformed_n_step_q_learning(
        q[:-1],
        actions,
        target_q[1:],
        q[1:].argmax(-1).astype(actions.dtype),
        rewards,
        discounts,
        n_step,
        tx_pair=rlax.SIGNED_HYPERBOLIC_PAIR,
      )

    with jax.experimental.enable_x64():
      expected = jax.vmap(per_window, in_axes=1, out_axes=1)(*batch.values())
    # rlax's h^-1 divides an error of 1e-16 by 2 epsilon.
    np.testing.assert_allclose(td_errors, expected, rtol=1e-9)

  @parameterized.parameters(*N_STEPS)
  def test_matches_acme_in_float32(self, n_step):
    batch = make_batch(seed=n_step, dtype=np.float32)
    num_actions = batch['q'].shape[-1]
    _, extra = acme_losses.transformed_n_step_loss(
      tf.constant(batch['q']),
      tf.constant(batch['target_q']),
      tf.pad(batch['actions'], [[0, 1], [0, 0]]),  # [T + 1, B]
      tf.constant(batch['rewards']),
      tf.constant(batch['discounts']),
      tf.one_hot(tf.argmax(batch['q'], axis=-1), num_actions),
      n_step,
    )
    td_errors = losses.double_q_td_errors(**batch, n_step=n_step)
    # Acme's error is q - y. Its h^-1 subtracts 500 from a float32 near 500, which is
    # then good to 3e-5; near |Q| = 15, h^-1 multiplies that by 40 and h divides it
    # by as much again.
    np.testing.assert_allclose(td_errors, -extra.errors, rtol=0, atol=5e-4)

  @parameterized.parameters(*N_STEPS)
  def test_float32_is_close_to_the_oracle(self, n_step):
    batch = make_batch(seed=n_step, dtype=np.float32)
    td_errors = losses.double_q_td_errors(**batch, n_step=n_step)
    self.assertEqual(td_errors.dtype, tf.float32)
    # Some 30 roundings of 6e-8, relative to returns whose terms reach |300| and which
    # may cancel; h' <= 1/2.
    np.testing.assert_allclose(
      td_errors,
      oracles.double_q_td_errors(**batch, n_step=n_step),
      rtol=1e-6,
      atol=1e-4,
    )

  def test_one_step_is_plain_double_q_learning(self):
    batch = make_batch()
    num_steps, batch_size = batch['actions'].shape
    t, b = np.meshgrid(np.arange(num_steps), np.arange(batch_size), indexing='ij')
    best_actions = batch['q'][1:].argmax(axis=-1)
    next_values = oracles.signed_parabolic(batch['target_q'][t + 1, b, best_actions])
    targets = oracles.signed_hyperbolic(
      batch['rewards'] + batch['discounts'] * next_values
    )
    np.testing.assert_allclose(
      losses.double_q_td_errors(**batch, n_step=1),
      targets - batch['q'][t, b, batch['actions']],
      rtol=1e-10,
    )

  def test_online_network_chooses_and_target_network_values(self):
    td_errors = losses.double_q_td_errors(
      q=np.array([[[0.0, 0.0]], [[1.0, 2.0]]]),  # The online network prefers action 1,
      target_q=np.array([[[0.0, 0.0]], [[9.099, 1.003]]]),  # the target action 0.
      actions=np.array([[0]], np.int32),
      rewards=np.array([[0.0]]),
      discounts=np.array([[1.0]]),
      n_step=1,
    )
    np.testing.assert_allclose(td_errors, [[1.003]], rtol=1e-12)

  @parameterized.parameters(*N_STEPS)
  def test_constant_q_values_with_matching_reward_give_no_error(self, n_step):
    # gamma = 1, no reward: any constant is a fixed point.
    zeros = np.zeros([7, 2])
    td_errors = losses.double_q_td_errors(
      np.full([8, 2, 3], 12.0),
      np.full([8, 2, 3], 12.0),
      zeros.astype(np.int32),
      zeros,
      zeros + 1,
      n_step,
    )
    np.testing.assert_allclose(td_errors, zeros, atol=1e-10)

  def test_discount_zero_ignores_the_future(self):
    batch = make_batch()
    batch['discounts'] = np.zeros_like(batch['discounts'])
    taken = np.take_along_axis(batch['q'][:-1], batch['actions'][..., None], -1)[..., 0]
    for n_step in N_STEPS:
      np.testing.assert_allclose(
        losses.double_q_td_errors(**batch, n_step=n_step),
        oracles.signed_hyperbolic(batch['rewards']) - taken,
        rtol=1e-10,
      )

  def test_epsilon_reaches_both_transforms(self):
    batch = make_batch()
    np.testing.assert_allclose(
      losses.double_q_td_errors(**batch, n_step=3, epsilon=0.1),
      oracles.double_q_td_errors(**batch, n_step=3, epsilon=0.1),
      rtol=1e-10,
    )

  def test_without_epsilon_it_is_rlaxs_double_q_learning(self):
    batch = make_batch(dtype=np.float32)
    td_errors = losses.double_q_td_errors(**batch, n_step=1, epsilon=None)
    expected = jax.vmap(jax.vmap(rlax.double_q_learning))(
      batch['q'][:-1],
      batch['actions'],
      batch['rewards'],
      batch['discounts'],
      batch['target_q'][1:],
      batch['q'][1:],
    )
    np.testing.assert_allclose(td_errors, expected, rtol=1e-5, atol=1e-5)

  def test_without_epsilon_two_steps_by_hand(self):
    td_errors = losses.double_q_td_errors(
      q=np.array([[[1.0, 0.0]], [[0.0, 5.0]], [[2.0, 4.0]]]),
      target_q=np.array([[[0.0, 0.0]], [[7.0, 8.0]], [[30.0, 20.0]]]),
      actions=np.array([[0], [1]], np.int32),
      rewards=np.array([[100.0], [10.0]]),
      discounts=np.array([[0.5], [0.9]]),
      n_step=2,
      epsilon=None,
    )
    second = 10 + 0.9 * 20 - 5
    first = 100 + 0.5 * (10 + 0.9 * 20) - 1
    np.testing.assert_allclose(td_errors, [[first], [second]], rtol=1e-12)

  def test_unknown_shapes_and_tracing_give_the_same(self):
    batch = make_batch(dtype=np.float32)
    rows = tf.TensorSpec([None, None, None], tf.float32)
    steps = tf.TensorSpec([None, None], tf.float32)
    mask = make_mask([7, 4, 1, 0, 6], 7)

    @tf.function(
      input_signature=[
        rows,
        rows,
        tf.TensorSpec([None, None], tf.int32),
        steps,
        steps,
        steps,
      ]
    )
    def traced(q, target_q, actions, rewards, discounts, mask):
      batch = dict(
        q=q, target_q=target_q, actions=actions, rewards=rewards, discounts=discounts
      )
      return masked_td_errors(batch, mask, n_step=5)

    np.testing.assert_allclose(
      traced(*batch.values(), mask.astype(np.float32)),
      masked_td_errors(batch, mask, n_step=5),
      rtol=1e-6,
      atol=1e-6,
    )

  def test_rejects_wrong_shapes(self):
    batch = make_batch()
    for name, array in batch.items():
      for bad in (array[..., 0], array[..., None], array[:-1], array[:, :-1]):
        # Sizes are compared with those of the actions.
        pattern = 'q must' if name == 'actions' and bad.ndim == 2 else f'^{name} must'
        with self.assertRaisesRegex(ValueError, pattern):
          losses.double_q_td_errors(**{**batch, name: bad}, n_step=2)
    with self.assertRaisesRegex(ValueError, 'target_q'):
      losses.double_q_td_errors(
        **{**batch, 'target_q': batch['target_q'][..., :-1]}, n_step=2
      )
    with self.assertRaisesRegex(ValueError, 'n_step'):
      losses.double_q_td_errors(**batch, n_step=0)


class ExactValuesTest(parameterized.TestCase):
  """PITFALLS 5, 6 and 7 on a chain whose optimal values are known."""

  def setUp(self):
    super().setUp()
    self.chain = oracles.Chain()
    self.h_q = oracles.signed_hyperbolic(self.chain.q)  # [S, A]

  def make_batch(self, length):
    """One column for each state and action to begin with."""
    steps = [
      self.chain.walk(state, action, length)
      for state in range(self.chain.num_states)
      for action in range(self.chain.num_actions)
    ]
    states, actions, rewards, discounts = (
      np.stack(columns, axis=1) for columns in zip(*steps, strict=True)
    )
    q = self.h_q[states]  # [T + 1, B, A]
    return dict(q=q, target_q=q, actions=actions, rewards=rewards, discounts=discounts)

  @parameterized.parameters(1, 2, 3, 5, 12, 13, 30)
  def test_every_n_gives_no_error_across_terminations_and_in_the_tail(self, n_step):
    batch = self.make_batch(length=12)
    ends = batch['discounts'] == 0
    self.assertTrue(ends.any())  # There are terminations in the windows ...
    self.assertFalse(ends[-1].all())  # ... and windows that end without one.
    td_errors = losses.double_q_td_errors(**batch, n_step=n_step)
    np.testing.assert_allclose(td_errors, np.zeros_like(td_errors), atol=1e-10)

  @parameterized.parameters(1, 2, 3, 5, 12, 30)
  def test_truncation_keeps_bootstrap(self, n_step):
    batch = self.make_batch(length=12)
    lengths = np.arange(batch['q'].shape[1]) % 13  # Of 0 to all 12 transitions.
    mask = make_mask(lengths, 12)
    last_discounts = batch['discounts'][lengths - 1, np.arange(lengths.size)]
    self.assertTrue((last_discounts[lengths > 0] > 0).any())
    garbage = make_padding_garbage(batch, mask)
    td_errors = masked_td_errors(garbage, mask, n_step).numpy()
    np.testing.assert_allclose(td_errors[mask == 1], 0, atol=1e-10)

    # As zero padding, without the extension, that would go wrong unseen.
    if n_step > 1:
      zeros = overwrite_padding(batch, mask, np.zeros)
      naive = losses.double_q_td_errors(**zeros, n_step=n_step).numpy()
      self.assertGreater(np.abs(naive[mask == 1]).max(), 1)

  @parameterized.parameters(1, 2, 3, 5, 12, 30)
  def test_termination_does_not_bootstrap(self, n_step):
    batch = self.make_batch(length=12)
    ends = batch['discounts'] == 0
    lengths = np.where(ends.any(axis=0), ends.argmax(axis=0) + 1, 12)
    mask = make_mask(lengths, 12)
    garbage = make_padding_garbage(batch, mask)
    columns = np.arange(lengths.size)[ends.any(axis=0)]
    self.assertNotEmpty(columns)
    # The observation after the end is real, but what the networks say of it is not.
    garbage['q'][lengths[columns], columns] = [1e3, -1e3, 5.0]
    garbage['target_q'][lengths[columns], columns] = [1e3, -1e3, 5.0]
    td_errors = masked_td_errors(garbage, mask, n_step).numpy()
    np.testing.assert_allclose(td_errors[mask == 1], 0, atol=1e-10)

    # Marked as a truncation (discount gamma) the same data does bootstrap.
    garbage['discounts'][lengths[columns] - 1, columns] = self.chain.gamma
    td_errors = masked_td_errors(garbage, mask, n_step).numpy()
    self.assertGreater(np.abs(td_errors[lengths[columns] - 1, columns]).min(), 1)

  def test_shifted_rewards_are_noticed(self):
    # The tests above can fail: an error in time, discount or bootstrap shows.
    batch = self.make_batch(length=12)
    for name, wrong in (
      ('rewards', np.roll(batch['rewards'], 1, axis=0)),
      ('discounts', batch['discounts'] ** 2),
      ('discounts', np.roll(batch['discounts'], 1, axis=0)),
      ('target_q', np.roll(batch['target_q'], 1, axis=0)),
    ):
      for n_step in (1, 3, 30):
        td_errors = losses.double_q_td_errors(**{**batch, name: wrong}, n_step=n_step)
        self.assertGreater(np.abs(td_errors).max(), 0.1)


class ExtendPastEndTest(parameterized.TestCase):
  def test_hand_written_values(self):
    q = np.arange(1.0, 9.0).reshape([4, 1, 2])
    held, held_target, rewards, discounts = losses.extend_past_end(
      q,
      -q,
      rewards=np.array([[5.0], [6.0], [7.0]]),
      discounts=np.array([[0.9], [0.8], [0.0]]),
      mask=np.array([[1.0], [1.0], [0.0]]),
    )
    np.testing.assert_array_equal(held[:, 0], [[1, 2], [3, 4], [5, 6], [5, 6]])
    np.testing.assert_array_equal(held_target, -held)
    np.testing.assert_array_equal(rewards[:, 0], [5, 6, 0])
    np.testing.assert_array_equal(discounts[:, 0], [0.9, 0.8, 1])

  def test_full_mask_changes_nothing(self):
    batch = make_batch()
    names = ['q', 'target_q', 'rewards', 'discounts']
    extended = losses.extend_past_end(
      *(batch[name] for name in names), np.ones([7, 5], bool)
    )
    for name, tensor in zip(names, extended, strict=True):
      np.testing.assert_array_equal(tensor, batch[name])

  def test_all_padding_holds_the_first_row(self):
    batch = make_batch()
    q, target_q, rewards, discounts = losses.extend_past_end(
      batch['q'],
      batch['target_q'],
      batch['rewards'],
      batch['discounts'],
      np.zeros([7, 5]),
    )
    np.testing.assert_array_equal(q, np.repeat(batch['q'][:1], 8, axis=0))
    np.testing.assert_array_equal(target_q, np.repeat(batch['target_q'][:1], 8, axis=0))
    np.testing.assert_array_equal(rewards, np.zeros([7, 5]))
    np.testing.assert_array_equal(discounts, np.ones([7, 5]))

  @parameterized.product(dtype=[np.float32, np.float64], mask_dtype=[np.float32, bool])
  def test_keeps_dtypes_whatever_the_mask(self, dtype, mask_dtype):
    batch = make_batch(dtype=dtype)
    extended = losses.extend_past_end(
      batch['q'],
      batch['target_q'],
      batch['rewards'],
      batch['discounts'],
      make_mask([7, 4, 1, 0, 6], 7).astype(mask_dtype),
    )
    for tensor in extended:
      self.assertEqual(tensor.dtype, dtype)

  @parameterized.parameters(*N_STEPS)
  def test_padded_errors_match_oracle_that_never_sees_padding(self, n_step):
    batch, mask = make_batch(seed=n_step), make_mask([7, 4, 1, 0, 6], 7)
    td_errors = masked_td_errors(make_padding_garbage(batch, mask), mask, n_step)
    np.testing.assert_allclose(
      np.where(mask, td_errors, 0),
      oracles.double_q_td_errors(**batch, n_step=n_step, mask=mask),
      rtol=1e-10,
    )

  @parameterized.parameters(*N_STEPS)
  def test_padding_equals_a_shorter_window(self, n_step):
    batch = make_batch()
    short = {k: v[: 5 if v.ndim == 3 else 4] for k, v in batch.items()}
    padded = masked_td_errors(batch, make_mask([4] * 5, 7), n_step)
    np.testing.assert_allclose(
      padded[:4], losses.double_q_td_errors(**short, n_step=n_step), rtol=1e-12
    )

  def test_rejects_wrong_shapes(self):
    batch = make_batch()
    arrays = dict(
      {k: v for k, v in batch.items() if k != 'actions'}, mask=np.ones([7, 5])
    )
    for name, array in arrays.items():
      for bad in (array[..., 0], array[..., None], array[:-1], array[:, :-1]):
        # Sizes are compared with those of the mask.
        pattern = 'q must' if name == 'mask' and bad.ndim == 2 else f'^{name} must'
        with self.assertRaisesRegex(ValueError, pattern):
          losses.extend_past_end(**{**arrays, name: bad})


class WindowTdErrorsTest(parameterized.TestCase):
  def test_hand_written_values(self):
    # Two real transitions, then one of padding; h^-1(9.099) = 99.
    td_errors = losses.window_td_errors(
      q=np.array([[[0.5, 7.0]], [[2.0, -4.0]], [[-3.0, -2.0]], [[1e9, 0.0]]]),
      target_q=np.array([[[50.0, 50]], [[50.0, 50.0]], [[50.0, 9.099]], [[1e9, 0.0]]]),
      actions=np.array([[0], [1], [0]], np.int32),
      rewards=np.array([[3.0], [2.0], [1e9]]),
      discounts=np.array([[1.0], [1.0], [0.0]]),
      mask=np.array([[1.0], [1.0], [0.0]]),
      gamma=0.9,
      n_step=3,
    )
    # The padding costs no further gamma.
    returns = [3 + 0.9 * 2 + 0.9**2 * 99, 2 + 0.9 * 99]
    expected = [
      math.sqrt(returns[0] + 1) - 1 + 1e-3 * returns[0] - 0.5,
      math.sqrt(returns[1] + 1) - 1 + 1e-3 * returns[1] - -4.0,
    ]
    np.testing.assert_allclose(td_errors[:2, 0], expected, rtol=1e-12)

  @parameterized.product(n_step=N_STEPS, gamma=[0.5, 0.997])
  def test_matches_oracle(self, n_step, gamma):
    batch, mask = make_batch(seed=n_step), make_mask([7, 4, 1, 0, 6], 7)
    batch['discounts'] = np.ceil(batch['discounts'])  # 0 or 1
    td_errors = losses.window_td_errors(
      **make_padding_garbage(batch, mask),
      mask=mask,
      gamma=gamma,
      n_step=n_step,
      epsilon=0.01,
    )
    batch['discounts'] *= gamma
    np.testing.assert_allclose(
      np.where(mask, td_errors, 0),
      oracles.double_q_td_errors(**batch, n_step=n_step, epsilon=0.01, mask=mask),
      rtol=1e-10,
    )

  def test_keeps_float32(self):
    batch = make_batch(dtype=np.float32)
    td_errors = losses.window_td_errors(
      **batch, mask=np.ones([7, 5], np.float32), gamma=0.997, n_step=5
    )
    self.assertEqual(td_errors.dtype, tf.float32)


class PrioritiesTest(parameterized.TestCase):
  def test_hand_written_values(self):
    priorities = losses.sequence_priorities(
      np.array([[1.0, 1.0], [-4.0, 3.0], [1.0, 100.0]]),
      np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]]),
      eta=0.9,
    )
    np.testing.assert_allclose(
      priorities,
      [0.9 * 4 + 0.1 * (1 + 4 + 1) / 3, 0.9 * 3 + 0.1 * (1 + 3) / 2],
      rtol=1e-14,
    )

  @parameterized.parameters(0.0, 0.5, 0.9, 1.0)
  def test_matches_oracle(self, eta):
    td_errors = np.random.RandomState(0).normal(size=[7, 5])
    mask = make_mask([7, 4, 1, 0, 6], 7)
    np.testing.assert_allclose(
      losses.sequence_priorities(td_errors, mask, eta),
      oracles.sequence_priorities(td_errors, mask, eta),
      rtol=1e-10,
    )

  # A mean of few float32 numbers: roundings of 6e-8.
  def test_float32_is_close_to_the_oracle(self):
    td_errors = np.random.RandomState(0).normal(size=[80, 5]).astype(np.float32)
    mask = make_mask([80, 4, 1, 0, 60], 80)
    priorities = losses.sequence_priorities(td_errors, mask.astype(np.float32), 0.9)
    self.assertEqual(priorities.dtype, tf.float32)
    np.testing.assert_allclose(
      priorities, oracles.sequence_priorities(td_errors, mask, 0.9), rtol=1e-6
    )

  def test_eta_one_is_the_maximum_and_zero_the_mean(self):
    td_errors, mask = np.array([[2.0], [-6.0], [1.0]]), np.ones([3, 1], bool)
    np.testing.assert_allclose(losses.sequence_priorities(td_errors, mask, 1), [6.0])
    np.testing.assert_allclose(losses.sequence_priorities(td_errors, mask, 0), [3.0])

  # PITFALLS 10.
  def test_sign_does_not_matter(self):
    td_errors, mask = np.random.RandomState(0).normal(size=[7, 5]), np.ones([7, 5])
    signs = np.where(np.arange(7) % 2, -1, 1)[:, None]
    expected = losses.sequence_priorities(np.abs(td_errors), mask, 0.9)
    for signed in (td_errors, -td_errors, signs * np.abs(td_errors)):
      np.testing.assert_array_equal(
        losses.sequence_priorities(signed, mask, 0.9), expected
      )

  # PITFALLS 10: of degree one in the errors, not their squares.
  def test_scales_with_the_errors(self):
    td_errors, mask = np.random.RandomState(0).normal(size=[7, 5]), np.ones([7, 5])
    np.testing.assert_allclose(
      losses.sequence_priorities(10 * td_errors, mask, 0.9),
      10 * losses.sequence_priorities(td_errors, mask, 0.9),
      rtol=1e-12,
    )

  # PITFALLS 10: a return of 99 that was not expected is h(99) = 9.099.
  def test_of_rescaled_values(self):
    td_errors = losses.double_q_td_errors(
      np.zeros([2, 1, 3]),
      np.zeros([2, 1, 3]),
      np.zeros([1, 1], np.int32),
      np.array([[99.0]]),
      np.array([[0.0]]),
      n_step=1,
    )
    np.testing.assert_allclose(
      losses.sequence_priorities(td_errors, np.ones([1, 1]), 0.9), [9.099], rtol=1e-12
    )

  def test_rejects_wrong_arguments(self):
    for eta in (-0.1, 1.1):
      with self.assertRaisesRegex(ValueError, 'eta'):
        losses.sequence_priorities(np.ones([3, 2]), np.ones([3, 2]), eta)
    for errors, mask in (([3], [3]), ([3, 2], [2, 2]), ([3, 2], [3, 1]), ([3, 2], [3])):
      with self.assertRaises(ValueError):
        losses.sequence_priorities(np.ones(errors), np.ones(mask), 0.9)


class ImportanceWeightsTest(parameterized.TestCase):
  def test_hand_written_values(self):
    # N P = 2, 1, 1/4; to the power -1/2: 1/sqrt(2), 1, 2; divided by the largest, 2.
    weights = losses.importance_weights(
      np.array([1 / 2, 1 / 4, 1 / 16]), 4, exponent=0.5
    )
    np.testing.assert_allclose(weights, [0.5 / math.sqrt(2), 0.5, 1.0], rtol=1e-14)

  @parameterized.parameters(0.0, 0.2, 0.6, 1.0)
  def test_matches_oracle(self, exponent):
    rng = np.random.RandomState(0)
    probabilities = rng.dirichlet(np.ones(20))
    probabilities[[3, 11]] = 0
    for table_size in (20, rng.randint(1, 1000, size=20)):
      np.testing.assert_allclose(
        losses.importance_weights(probabilities, table_size, exponent),
        oracles.importance_weights(probabilities, table_size, exponent),
        rtol=1e-10,
      )

  def test_table_sizes_of_each_window_matter(self):
    # N P = 1 and 4 although P is the same: 1 and (1/4)^(1/2).
    weights = losses.importance_weights(
      np.array([0.1, 0.1]), np.array([10, 40]), exponent=0.5
    )
    np.testing.assert_allclose(weights, [1.0, 0.5], rtol=1e-12)

  def test_exponent_zero_gives_ones(self):
    weights = losses.importance_weights(np.array([0.5, 1e-9, 0.0, 0.2]), 100, 0.0)
    np.testing.assert_array_equal(weights, [1.0, 1.0, 0.0, 1.0])

  def test_uniform_sampling_gives_ones(self):
    weights = losses.importance_weights(np.full([8], 1 / 100), 100, 0.6)
    np.testing.assert_array_equal(weights, np.ones([8]))

  # PITFALLS 17.
  def test_maximum_is_of_the_whole_batch(self):
    probabilities = np.array([0.4, 0.2, 0.1, 0.05])
    whole = losses.importance_weights(probabilities, 10, 0.6)
    halves = np.concatenate(
      [losses.importance_weights(half, 10, 0.6) for half in np.split(probabilities, 2)]
    )
    np.testing.assert_allclose(whole, (0.05 / probabilities) ** 0.6, rtol=1e-12)
    self.assertGreater(np.abs(whole - halves).max(), 0.1)

  # PITFALLS 17.
  @parameterized.parameters(np.float32, np.float64)
  def test_padding_neither_counts_nor_poisons(self, dtype):
    probabilities = np.array([0.4, 0.0, 0.1, 0.0], dtype)
    weights = losses.importance_weights(probabilities, 10, 0.6).numpy()
    np.testing.assert_array_equal(weights[[1, 3]], [0, 0])
    np.testing.assert_array_equal(
      weights[[0, 2]], losses.importance_weights(probabilities[[0, 2]], 10, 0.6)
    )
    np.testing.assert_array_equal(
      losses.importance_weights(np.zeros([4], dtype), 10, 0.6), np.zeros([4])
    )

  # One division, one power: roundings of 6e-8, times the logarithm that `pow` takes
  # of a ratio as small as 1e-30.
  def test_tiny_probabilities_in_float32(self):
    probabilities = np.array([2e-38, 1e-30, 1e-20, 1e-10, 1e-6, 0.5], np.float32)
    for exponent in (0.2, 0.6, 1.0):
      weights = losses.importance_weights(probabilities, np.int64(1_000_000), exponent)
      self.assertEqual(weights.dtype, tf.float32)
      np.testing.assert_allclose(
        weights, oracles.importance_weights(probabilities, 1e6, exponent), rtol=1e-5
      )

  def test_rejects_wrong_arguments(self):
    for probabilities, table_size in (
      (np.ones([2, 2]), 4),
      (np.float64(1), 4),
      (np.ones([3]), np.ones([2])),
      (np.ones([3]), np.ones([3, 1])),
    ):
      with self.assertRaises(ValueError):
        losses.importance_weights(probabilities, table_size, 0.6)
    with self.assertRaisesRegex(ValueError, 'exponent'):
      losses.importance_weights(np.ones([3]), 3, -0.6)


class LossTest(parameterized.TestCase):
  def test_hand_written_values(self):
    loss = losses.r2d2_loss(
      np.array([[1.0, -2.0], [3.0, 100.0]]),
      np.array([[1.0, 1.0], [1.0, 0.0]]),
      np.array([0.5, 1.0]),
    )
    self.assertEqual(loss.shape, [])
    np.testing.assert_allclose(loss, (0.5 * (1 + 9) / 2 + 1.0 * 4 / 2) / 2, rtol=1e-14)

  # PITFALLS 3.
  def test_no_number_on_padding_is_no_harm(self):
    td_errors = tf.constant([[1.0, np.nan], [3.0, np.inf], [np.nan, -np.inf]])
    mask = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    with tf.GradientTape() as tape:
      tape.watch(td_errors)
      loss = losses.r2d2_loss(td_errors, mask, np.float32([0.5, 0.0]))
    self.assertEqual(loss, 0.5 * (1 + 9) / 2 / 2)
    np.testing.assert_array_equal(
      tape.gradient(loss, td_errors), [[0.5 * 1 / 2, 0], [0.5 * 3 / 2, 0], [0, 0]]
    )
    np.testing.assert_allclose(
      losses.sequence_priorities(td_errors, mask, 0.5), [0.5 * 3 + 0.5 * 2, 0]
    )

  # float32: a sum of 35 roundings of 6e-8.
  @parameterized.parameters((np.float32, 1e-5), (np.float64, 1e-10))
  def test_matches_oracle(self, dtype, rtol):
    rng = np.random.RandomState(0)
    td_errors, weights = rng.normal(size=[7, 5]), rng.rand(5)
    mask = make_mask([7, 4, 1, 0, 6], 7)
    loss = losses.r2d2_loss(
      td_errors.astype(dtype), mask.astype(dtype), weights.astype(dtype)
    )
    self.assertEqual(loss.dtype, dtype)
    np.testing.assert_allclose(
      loss, oracles.r2d2_loss(td_errors, mask, weights), rtol=rtol
    )

  def compute(self, batch, mask, weights, n_step):
    """Loss, priorities and gradients with respect to both Q-values."""
    batch = {k: tf.constant(v) for k, v in batch.items()}
    with tf.GradientTape() as tape:
      tape.watch([batch['q'], batch['target_q']])
      td_errors = masked_td_errors(batch, mask, n_step)
      loss = losses.r2d2_loss(td_errors, mask, weights)
    gradients = tape.gradient(
      loss,
      [batch['q'], batch['target_q']],
      unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    return loss, losses.sequence_priorities(td_errors, mask, 0.9), gradients

  # PITFALLS 3.
  @parameterized.parameters(1, 3, 5, 20)
  def test_padding_changes_neither_loss_nor_priority_nor_gradient(self, n_step):
    batch, mask = make_batch(), make_mask([7, 4, 1, 0, 6], 7)
    weights = np.array([1.0, 0.5, 0.7, 0.3, 0.2])
    loss, priorities, (gradient, _) = self.compute(batch, mask, weights, n_step)
    self.assertGreater(loss, 0)
    for seed in range(3):
      garbage = make_padding_garbage(batch, mask, seed)
      other = self.compute(garbage, mask, weights, n_step)
      np.testing.assert_array_equal(other[0], loss)
      np.testing.assert_array_equal(other[1], priorities)
      np.testing.assert_array_equal(other[2][0], gradient)

  # PITFALLS 3.
  def test_real_steps_all_count(self):
    # Garbage on a step that is not padding must show, or the test above is empty.
    batch, mask = make_batch(), make_mask([7, 4, 1, 2, 6], 7)
    loss, priorities, _ = self.compute(batch, mask, np.ones([5]), n_step=3)
    for t, b in np.argwhere(mask):
      changed = dict(batch, rewards=batch['rewards'].copy())
      changed['rewards'][t, b] += 50
      other_loss, other_priorities, _ = self.compute(
        changed, mask, np.ones([5]), n_step=3
      )
      self.assertNotEqual(float(other_loss), float(loss))
      differs = other_priorities.numpy() != priorities.numpy()
      np.testing.assert_array_equal(differs, np.arange(5) == b)

  @parameterized.parameters(1, 3, 5, 20)
  def test_all_padding_gives_zeros(self, n_step):
    mask = np.zeros([7, 5])
    batch = make_padding_garbage(make_batch(), mask)
    loss, priorities, gradients = self.compute(batch, mask, np.ones([5]), n_step)
    np.testing.assert_array_equal(loss, 0)
    np.testing.assert_array_equal(priorities, np.zeros([5]))
    np.testing.assert_array_equal(gradients[0], np.zeros([8, 5, 4]))

  @parameterized.parameters(1, 3, 5, 20)
  def test_gradient_reaches_chosen_actions_only(self, n_step):
    batch, mask = make_batch(), make_mask([7, 4, 1, 0, 6], 7)
    weights = np.array([1.0, 0.5, 0.7, 0.3, 0.2])
    _, _, (gradient, target_gradient) = self.compute(batch, mask, weights, n_step)
    td_errors = oracles.double_q_td_errors(**batch, n_step=n_step, mask=mask)
    expected = np.zeros([8, 5, 4])
    for t, b in np.ndindex(7, 5):
      # L = 1/B sum_b w_b sum_t 1/2 (y_t - Q(s_t, a_t))^2, y constant.
      expected[t, b, batch['actions'][t, b]] = -weights[b] * td_errors[t, b] / 5
    np.testing.assert_allclose(gradient, expected, rtol=1e-10)
    np.testing.assert_array_equal(target_gradient, np.zeros([8, 5, 4]))

  def test_target_is_constant_even_if_both_networks_are_one(self):
    batch = make_batch()
    actions, rewards, discounts = (
      batch[k] for k in ('actions', 'rewards', 'discounts')
    )
    q = tf.constant(batch['q'])
    with tf.GradientTape() as tape:
      tape.watch(q)
      td_errors = losses.double_q_td_errors(q, q, actions, rewards, discounts, n_step=3)
      loss = tf.reduce_sum(td_errors)
    gradient = tape.gradient(loss, q)  # [T + 1, B, A]
    np.testing.assert_array_equal(gradient[:-1], -np.eye(4)[actions])
    np.testing.assert_array_equal(gradient[-1], np.zeros([5, 4]))

  def test_weights_are_constants(self):
    weights = tf.constant([1.0, 2.0])
    with tf.GradientTape() as tape:
      tape.watch(weights)
      loss = losses.r2d2_loss(np.ones([3, 2], np.float32), np.ones([3, 2]), weights)
    self.assertIsNone(tape.gradient(loss, weights))

  def test_rejects_wrong_shapes(self):
    for errors, mask, weights in (
      ([3], [3], [3]),
      ([3, 2], [2, 2], [2]),
      ([3, 2], [3, 2], [3]),
      ([3, 2], [3, 2], [3, 2]),
      ([3, 2], [3, 2], [1]),
      ([3, 2], [3, 1], [2]),
      ([3, 2], [3, 2], []),
    ):
      with self.assertRaises(ValueError):
        losses.r2d2_loss(np.ones(errors), np.ones(mask), np.ones(weights))


if __name__ == '__main__':
  absltest.main()
