"""Delta-Q: how far stale recurrent states move the Q-values.

Q-values from two recurrent states of the same step come in, their relative distance
goes out (Kapturowski et al. 2019, section 3). Rows and transitions are as in
`losses.py`.
"""

import tensorflow as tf

# The least denominator, in rescaled units. Without it one window whose Q-values are
# near 0 would outweigh all others in a mean.
_MIN_SCALE = 1e-3


def end_indices(mask: tf.Tensor) -> tf.Tensor:
  """Returns where the trained part begins and ends, for `tf.gather_nd`.

  It begins with row 0 and ends with the row after the last real transition, which is
  the episode's last observation if padding follows. Replay holds the actor's states
  for these two rows.

  Args:
    mask: 1 on real transitions, 0 on padding, which comes last; <float>[T, B].

  Returns:
    Indices (row, column) that gather [2, B, ...] from [T + 1, B, ...]; int32
    [2, B, 2].
  """
  last = tf.reduce_sum(tf.cast(mask, tf.int32), axis=0)  # [B]
  rows = tf.stack([tf.zeros_like(last), last])  # [2, B]
  return tf.stack([rows, tf.zeros_like(rows) + tf.range(tf.size(last))], axis=-1)


def delta_q(q: tf.Tensor, stored_q: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
  """Computes Delta-Q at both ends of the trained part.

  Kapturowski et al. 2019, section 3:

    Delta-Q_i = ||q(h^_i; theta) - q(h_i; theta)||_2 / |max_{a,j} q(h^_j; theta)_a|

  Here h^ is the state that training unrolls to, from a stored or zero state and through
  burn-in; h is the state that the actor stored at the same step; theta are the present
  parameters, for both. j runs over real rows. The denominator is at least 0.001, since
  the paper says nothing about Q-values near 0.

  0 means that training sees what the actor saw. h is the reference although it is stale
  too, so that without burn-in a stored state has Delta-Q 0 at the first row.

  Args:
    q: Q-values from h^, of s_0 ... s_T; <float>[T + 1, B, A].
    stored_q: Q-values from h, of the rows at `end_indices`; <float>[2, B, A].
    mask: 1 on real transitions, 0 on padding, which comes last; <float>[T, B].

  Returns:
    Delta-Q of the first row and of the row after the last real transition;
    <float>[2, B].
  """
  q = tf.convert_to_tensor(q)
  difference = tf.norm(tf.gather_nd(q, end_indices(mask)) - stored_q, axis=-1)  # [2, B]
  is_real = tf.pad(tf.cast(mask, tf.bool), [[1, 0], [0, 0]], constant_values=True)
  max_q = tf.where(is_real, tf.reduce_max(q, axis=-1), q.dtype.min)  # [T + 1, B]
  scale = tf.abs(tf.reduce_max(max_q, axis=0))  # [B]
  return difference / tf.maximum(scale, tf.constant(_MIN_SCALE, q.dtype))
