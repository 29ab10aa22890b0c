"""The arithmetic of R2D2: pure functions on time-major tensors.

Q-values, rewards and masks of windows come in; TD errors, importance weights, the loss
and priorities go out. "The paper" is Kapturowski et al. 2019, "Recurrent Experience
Replay in Distributed Reinforcement Learning".

T transitions of a window have T + 1 observations. Row t of a [T + 1, B, ...] tensor
belongs to the observation s_t. Row t of a [T, B] tensor belongs to the transition from
s_t to s_{t+1}: the action a_t taken in s_t, the reward r_t and the discount that
followed. A discount is gamma times the probability of going on: 0 at a termination,
gamma anywhere else, a truncation included.

Every function takes float32 or float64 (all float arguments of a call alike), as
tensors or NumPy arrays, eagerly or inside `tf.function`, and raises `ValueError` where
static shapes disagree.
"""

from collections.abc import Sequence

import tensorflow as tf


def signed_hyperbolic(x: tf.Tensor, epsilon: float = 1e-3) -> tf.Tensor:
  """Rescales values: h(x) = sign(x) (sqrt(|x| + 1) - 1) + epsilon x.

  Pohlen et al. 2018, "Observe and Look Further"; section 2.3 of the paper. This form
  subtracts two almost equal numbers near 0. The one that is computed here does not, and
  its gradient at 0 is the true one, 1/2 + epsilon:

    h(x) = x / (sqrt(|x| + 1) + 1) + epsilon x

  Args:
    x: returns in units of reward; <float> of any shape, finite.
    epsilon: the slope that remains for large |x|; >= 0.

  Returns:
    Rescaled values; same shape and dtype as `x`.

  Raises:
    ValueError: if `epsilon` is negative (h would not be invertible).
  """
  _check_epsilon(epsilon)
  x = tf.convert_to_tensor(x)
  return x / (tf.sqrt(tf.abs(x) + 1) + 1) + epsilon * x


def signed_parabolic(x: tf.Tensor, epsilon: float = 1e-3) -> tf.Tensor:
  """Inverts `signed_hyperbolic`.

  Pohlen et al. 2018, appendix:

    h^-1(x) = sign(x) (((s - 1) / (2 epsilon))^2 - 1),
    s = sqrt(1 + 4 epsilon (|x| + 1 + epsilon))

  This form subtracts almost equal numbers twice near 0, which costs float32 up to 7e-2,
  and divides by epsilon. What is computed here avoids both. With
  y = (s - 1) / (2 epsilon) - 1 the value is sign(x) y (y + 2), and y = |x| c with

    c = (2 - 4 epsilon / (s + 1 + 2 epsilon)) / (s + 1)

  Neither sign(x) nor y is computed alone, so that the gradient at 0 is the true one,
  1 / (1/2 + epsilon), and not 0. For epsilon = 0 the value is the limit,
  sign(x) ((|x| + 1)^2 - 1).

  Args:
    x: rescaled values; <float> of any shape, finite.
    epsilon: the epsilon given to `signed_hyperbolic`; >= 0.

  Returns:
    Returns in units of reward; same shape and dtype as `x`.

  Raises:
    ValueError: if `epsilon` is negative.
  """
  _check_epsilon(epsilon)
  x = tf.convert_to_tensor(x)
  a = tf.abs(x)
  s = tf.sqrt(1 + 4 * epsilon * (a + 1 + epsilon))
  c = (2 - 4 * epsilon / (s + 1 + 2 * epsilon)) / (s + 1)
  return x * c * (a * c + 2)


def n_step_bootstrapped_returns(
  rewards: tf.Tensor,
  discounts: tf.Tensor,
  values: tf.Tensor,
  n_step: int,
) -> tf.Tensor:
  """Computes n-step returns that get shorter at the window's end.

  With d for the discounts, v for the values and m = min(n_step, T - t):

    G_t = r_t + d_t (r_{t+1} + d_{t+1} (... (r_{t+m-1} + d_{t+m-1} v_{t+m-1})))

  This is the sum in the paper's target, sum_{k<n} gamma^k r_{t+k} + gamma^n V(s_{t+n}),
  with the terminations inside the discounts. The paper does not say what happens where
  fewer than n transitions are left in the window. Like
  `rlax.n_step_bootstrapped_returns` (lambda = 1), this takes those that there are.

  Args:
    rewards: r_t; <float>[T, B] with T >= 1.
    discounts: d_t, gamma included, 0 at a termination; <float>[T, B].
    values: the value of s_{t+1}, where transition t leads, in the units of the
      rewards; <float>[T, B].
    n_step: n, in transitions; may be greater than T.

  Returns:
    G_t in the units of the rewards; <float>[T, B].

  Raises:
    ValueError: if `n_step` < 1 or shapes disagree.
  """
  if n_step < 1:
    raise ValueError(f'n_step must be at least 1, got {n_step}.')
  num_steps, batch_size = _time_and_batch('rewards', rewards)
  _check_shape('discounts', discounts, [num_steps, batch_size])
  _check_shape('values', values, [num_steps, batch_size])

  if num_steps is None:
    num_steps = tf.shape(rewards)[0]
  else:
    n_step = min(n_step, num_steps)  # the same result from a smaller graph

  # Past the window's end, reward 0 and discount 1 pass the last value on unchanged.
  beyond = [[0, n_step - 1], [0, 0]]
  rewards = tf.pad(rewards, beyond)  # [T + n - 1, B]
  discounts = tf.pad(discounts, beyond, constant_values=1)  # [T + n - 1, B]
  last_steps = tf.minimum(tf.range(num_steps) + n_step - 1, num_steps - 1)  # [T]
  returns = tf.gather(values, last_steps)  # [T, B]
  for k in reversed(range(n_step)):
    returns = rewards[k : k + num_steps] + discounts[k : k + num_steps] * returns
  return returns


def extend_past_end(
  q: tf.Tensor,
  target_q: tf.Tensor,
  rewards: tf.Tensor,
  discounts: tf.Tensor,
  mask: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
  """Replaces padding, as if the last real observation were repeated for ever.

  Padded rows of `q` and `target_q` repeat the row of the last real observation. Padded
  transitions get reward 0 and discount 1. Thus an n-step return that runs into the
  padding becomes the shorter return that bootstraps from the last real observation.
  This is right at a truncation. At a termination, the discount 0 of the last real
  transition keeps the bootstrap out. The paper does not treat this case.

  Padding may hold anything, NaN included, because it is not multiplied by 0 but left
  out. Call this before `double_q_td_errors`. The errors of padded transitions have no
  meaning; the functions below leave them out by the same `mask`.

  Args:
    q: online Q-values of s_0 ... s_T; <float>[T + 1, B, A].
    target_q: target network's Q-values of s_0 ... s_T; <float>[T + 1, B, A].
    rewards: r_t; <float>[T, B].
    discounts: gamma included, 0 at a termination; <float>[T, B].
    mask: 1 on real transitions, 0 on padding; <float or bool>[T, B]. In every column
      the ones come first (not checked). Row t + 1 of `q` is real where `mask[t]` is 1,
      and row 0 always.

  Returns:
    `(q, target_q, rewards, discounts)`, shapes and dtypes as given.

  Raises:
    ValueError: if shapes disagree.
  """
  num_steps, batch_size = _time_and_batch('mask', mask)
  for name, tensor in (('q', q), ('target_q', target_q)):
    _check_shape(name, tensor, [_add_one(num_steps), batch_size, None])
  for name, tensor in (('rewards', rewards), ('discounts', discounts)):
    _check_shape(name, tensor, [num_steps, batch_size])

  is_real = tf.cast(mask, tf.bool)  # [T, B]
  row_is_real = tf.pad(is_real, [[1, 0], [0, 0]], constant_values=True)  # [T + 1, B]
  last_row = tf.reduce_sum(tf.cast(is_real, tf.int32), axis=0)  # [B]
  last_index = tf.stack([last_row, tf.range(tf.size(last_row))], axis=-1)  # [B, 2]

  def hold(values):
    last_values = tf.gather_nd(values, last_index)  # [B, A]
    return tf.where(row_is_real[..., tf.newaxis], values, last_values)  # [T + 1, B, A]

  return (
    hold(q),
    hold(target_q),
    tf.where(is_real, rewards, tf.zeros_like(rewards)),
    tf.where(is_real, discounts, tf.ones_like(discounts)),
  )


def double_q_td_errors(
  q: tf.Tensor,
  target_q: tf.Tensor,
  actions: tf.Tensor,
  rewards: tf.Tensor,
  discounts: tf.Tensor,
  n_step: int,
  epsilon: float | None = 1e-3,
) -> tf.Tensor:
  """Computes n-step double-Q errors of rescaled values.

  Section 2.3 of the paper:

    y_t = h(sum_{k<n} gamma^k r_{t+k} + gamma^n h^-1(Q(s_{t+n}, a*; theta^-)))
    a* = argmax_a Q(s_{t+n}, a; theta)
    delta_t = y_t - Q(s_t, a_t; theta)

  n gets smaller at the window's end, see `n_step_bootstrapped_returns`. The sign is
  that of `rlax.transformed_n_step_q_learning`, and opposite to that of Acme's
  `transformed_n_step_loss`.

  Args:
    q: online Q-values of s_0 ... s_T, rescaled; <float>[T + 1, B, A].
    target_q: the target network's, rescaled; <float>[T + 1, B, A]. Row 0 is not used.
    actions: a_t, in [0, A); <int32>[T, B].
    rewards: r_t, not rescaled; <float>[T, B].
    discounts: gamma included, 0 at a termination; <float>[T, B].
    n_step: n, in transitions; may be greater than T.
    epsilon: of the rescaling, see `signed_hyperbolic`; None for Q-values in units of
      reward, that is h(x) = x.

  Returns:
    delta_t in the units of `q`; <float>[T, B]. Its gradient reaches q[t, a_t] only.

  Raises:
    ValueError: if `n_step` < 1, `epsilon` < 0 or shapes disagree.
  """
  num_steps, batch_size = _time_and_batch('actions', actions)
  _check_shape('q', q, [_add_one(num_steps), batch_size, None])
  _check_shape('target_q', target_q, q.shape)
  for name, tensor in (('rewards', rewards), ('discounts', discounts)):
    _check_shape(name, tensor, [num_steps, batch_size])

  best_actions = tf.argmax(q[1:], axis=-1, output_type=tf.int32)  # [T, B]
  next_values = tf.gather(target_q[1:], best_actions, batch_dims=2)  # [T, B]
  if epsilon is not None:
    next_values = signed_parabolic(next_values, epsilon)  # [T, B], in units of reward.
  targets = n_step_bootstrapped_returns(rewards, discounts, next_values, n_step)
  if epsilon is not None:
    targets = signed_hyperbolic(targets, epsilon)  # [T, B]
  return tf.stop_gradient(targets) - tf.gather(q[:-1], actions, batch_dims=2)  # [T, B]


def window_td_errors(
  q: tf.Tensor,
  target_q: tf.Tensor,
  *,
  actions: tf.Tensor,
  rewards: tf.Tensor,
  discounts: tf.Tensor,
  mask: tf.Tensor,
  gamma: float,
  n_step: int,
  epsilon: float | None = 1e-3,
) -> tf.Tensor:
  """Computes `double_q_td_errors` of windows from replay, which may hold padding.

  Learner and actor share it, so that their priorities mean the same.

  Args:
    q: online Q-values; <float>[T + 1, B, A].
    target_q: the target network's; <float>[T + 1, B, A].
    actions: a_t; <int32>[T, B].
    rewards: r_t; <float>[T, B].
    discounts: the environment's, 0 at a termination and else 1; <float>[T, B].
    mask: 1 on real transitions, 0 on padding, which comes last; <float>[T, B].
    gamma: the discount of one step.
    n_step: n, in transitions.
    epsilon: of the value rescaling; None does not rescale.

  Returns:
    TD errors in the units of `q`, without meaning on padding; <float>[T, B].

  Raises:
    ValueError: if `n_step` < 1 or shapes disagree.
  """
  q, target_q, rewards, discounts = extend_past_end(
    q, target_q, rewards, gamma * discounts, mask
  )
  return double_q_td_errors(q, target_q, actions, rewards, discounts, n_step, epsilon)


def sequence_priorities(td_errors: tf.Tensor, mask: tf.Tensor, eta: float) -> tf.Tensor:
  """Mixes max and mean absolute error: p = eta max_t |d_t| + (1 - eta) mean_t |d_t|.

  Section 2.3 of the paper. Max and mean run over real transitions only. The priority
  exponent is not applied here, because the replay table applies it.

  Args:
    td_errors: from `double_q_td_errors`, in rescaled units; <float>[T, B].
    mask: 1 on real transitions, 0 on padding; <float or bool>[T, B].
    eta: weight of the maximum, in [0, 1]; the paper's is 0.9.

  Returns:
    Priorities in the units of the errors; <float>[B]. 0 where all is padding.

  Raises:
    ValueError: if `eta` is outside [0, 1] or shapes disagree.
  """
  if not 0 <= eta <= 1:
    raise ValueError(f'eta must be in [0, 1], got {eta}.')
  _check_shape('mask', mask, _time_and_batch('td_errors', td_errors))

  is_real = tf.cast(mask, tf.bool)  # [T, B]
  errors = tf.where(is_real, tf.abs(td_errors), tf.zeros_like(td_errors))  # [T, B]
  num_real = tf.reduce_sum(tf.cast(is_real, errors.dtype), axis=0)  # [B]
  largest = tf.reduce_max(errors, axis=0)  # [B]
  mean = tf.reduce_sum(errors, axis=0) / tf.maximum(num_real, 1)  # [B]
  return eta * largest + (1 - eta) * mean


def importance_weights(
  probabilities: tf.Tensor, table_size: tf.Tensor, exponent: float
) -> tf.Tensor:
  """Corrects for prioritized sampling: w_i = (N_i P_i)^-beta / max_j (N_j P_j)^-beta.

  Schaul et al. 2016, "Prioritized Experience Replay", section 3.4. The maximum is over
  the whole batch, so call this before a batch is split between devices. N would cancel
  if all windows were drawn from a table of the same size, but those of a batch need not
  be. The largest weight belongs to the smallest N P, and dividing by that first cannot
  overflow:

    w_i = (min_j N_j P_j / (N_i P_i))^beta

  Args:
    probabilities: P_i, with which each window was drawn; <float>[B]. Windows with
      probability 0, which stand for padding, get weight 0 and do not enter the maximum.
    table_size: N, the number of windows in the table at that time; <int or float>[] or
      [B].
    exponent: beta >= 0; the paper's is 0.6. 0 switches the correction off: the weight
      is 1 for all but padding.

  Returns:
    Weights, the largest of them 1; <float>[B], dtype of `probabilities`. All 0 if all
    is padding.

  Raises:
    ValueError: if `exponent` is negative or shapes disagree.
  """
  if exponent < 0:
    raise ValueError(f'exponent must not be negative, got {exponent}.')
  _check_rank('probabilities', probabilities, 1)
  probabilities = tf.convert_to_tensor(probabilities)
  table_size = tf.cast(table_size, probabilities.dtype)
  if table_size.shape.rank != 0:
    _check_shape('table_size', table_size, probabilities.shape)

  relative = table_size * probabilities  # [B], 1 where sampling is uniform
  is_real = relative > 0  # [B]
  smallest = tf.reduce_min(tf.where(is_real, relative, relative.dtype.max))  # []
  ratios = smallest / tf.where(is_real, relative, tf.ones_like(relative))  # [B]
  return tf.where(is_real, tf.pow(ratios, exponent), tf.zeros_like(ratios))


def r2d2_loss(td_errors: tf.Tensor, mask: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
  """Computes L = 1/B sum_b w_b sum_t 1/2 d_{t,b}^2 over real transitions.

  The paper does not say how the loss is reduced. Like Acme's, this one is a sum over
  time and a mean over the batch, so that each transition weighs the same.

  Args:
    td_errors: from `double_q_td_errors`, in rescaled units; <float>[T, B].
    mask: 1 on real transitions, 0 on padding; <float or bool>[T, B].
    weights: importance weights, taken as constants; <float>[B].

  Returns:
    The loss; <float>[].

  Raises:
    ValueError: if shapes disagree.
  """
  num_steps, batch_size = _time_and_batch('td_errors', td_errors)
  _check_shape('mask', mask, [num_steps, batch_size])
  _check_shape('weights', weights, [batch_size])

  # Before the square: a NaN on padding would come back as 0 * NaN in the gradient.
  is_real = tf.cast(mask, tf.bool)  # [T, B]
  errors = tf.where(is_real, td_errors, tf.zeros_like(td_errors))  # [T, B]
  losses = 0.5 * tf.reduce_sum(tf.square(errors), axis=0)  # [B]
  return tf.reduce_mean(tf.stop_gradient(weights) * losses)


def _check_epsilon(epsilon: float):
  if epsilon < 0:
    raise ValueError(f'epsilon must not be negative, got {epsilon}.')


def _check_rank(name: str, tensor: tf.Tensor, rank: int):
  _check_shape(name, tensor, [None] * rank)


def _check_shape(name: str, tensor: tf.Tensor, shape: Sequence[int | None]):
  """Raises `ValueError` unless static shapes agree, as far as they are known."""
  expected = tf.TensorShape(shape)
  if not expected.is_compatible_with(tensor.shape):
    raise ValueError(f'{name} must have shape {expected}, got {tensor.shape}.')


def _time_and_batch(name: str, tensor: tf.Tensor) -> tuple[int | None, int | None]:
  """Returns the static (T, B) of a [T, B] tensor, None where unknown."""
  _check_rank(name, tensor, 2)
  num_steps, batch_size = tf.TensorShape(tensor.shape).with_rank(2).as_list()
  return num_steps, batch_size


def _add_one(length: int | None) -> int | None:
  return None if length is None else length + 1
