"""An LSTM with one set of weights and two ways to apply it: a step, and a fast unroll.

Inputs [T, B, D] and a recurrent state come in, outputs [T, B, H] and the next state go
out. The step is that of `snt.LSTM`.

The unroll and its gradient are written by hand, because nothing that TensorFlow 2.8
offers is both fast and right on a CPU. `tf.raw_ops.BlockLSTMV2` was 3 times slower, and
its gradients differ. `snt.UnrolledLSTM` crashes. Automatic differentiation of a loop
over steps multiplies by the input weights, and adds up weight gradients as large as the
weights, at every step. The unroll here does each of these as one matrix product over
[T x B]; only `h_{t-1} W_h` and its transpose stay in the loops, forward and backward.
On a GPU it is cuDNN's.
"""

import sonnet as snt
import tensorflow as tf
import tree


class LSTM(snt.LSTM):
  """`snt.LSTM` (its weights, initialisers and step) with `unroll`.

  The state is `snt.LSTMState(hidden=[B, H], cell=[B, H])`, initially zero.
  """

  def __init__(
    self, hidden_size: int, *, dtype: tf.DType = tf.float32, name: str | None = None
  ):
    # `unroll` supports no other options of `snt.LSTM`.
    super().__init__(hidden_size, dtype=dtype, name=name)

  def unroll(
    self,
    inputs: tf.Tensor,
    state: snt.LSTMState,
    keep: tf.Tensor | None = None,
  ) -> tuple[tf.Tensor, snt.LSTMState]:
    """Runs the core over T steps; equals T calls of the core.

    Only first-order gradients exist, and none with respect to `keep`.

    Args:
      inputs: float [T, B, D].
      state: the state before the first step.
      keep: float [T, B] or None (all ones). The state is multiplied by keep[t] after
        step t. Thus 0 restores the initial state, and padding in front of an episode's
        first step does not change anything. On a GPU all zeros must be in front.

    Returns:
      The outputs [T, B, H], which are not multiplied by `keep` and have no meaning
      where it is 0, and the state after the last step, multiplied by keep[T - 1].
    """
    self._initialize(snt.merge_leading_dims(inputs, 2))
    if tf.config.list_logical_devices('GPU'):
      return self._unroll_by_cudnn(inputs, state, keep)
    gates = tf.tensordot(inputs, self.input_to_hidden, 1) + self.b  # [T, B, 4H]
    if keep is None:
      keep = tf.ones(tf.shape(inputs)[:2], inputs.dtype)
    # Read here, because a function with a custom gradient should not read variables.
    w_h = tf.convert_to_tensor(self.hidden_to_hidden)
    outputs, hidden, cell = _recurrence(
      gates, state.hidden, state.cell, w_h, keep[..., tf.newaxis]
    )
    outputs.set_shape([inputs.shape[0], *outputs.shape[1:]])
    return outputs, snt.LSTMState(hidden=hidden, cell=cell)

  def _unroll_by_cudnn(self, inputs, state, keep):
    w_x, w_h = self.input_to_hidden, self.hidden_to_hidden
    inputs, state, w_x = fold_bias_and_padding(inputs, state, w_x, self.b, keep)
    # cuDNN takes one vector: the weights of each gate, transposed, in the order that
    # Sonnet has too, and then its two biases of each gate, which are in the weights.
    weights = [*tf.split(w_x, 4, axis=1), *tf.split(w_h, 4, axis=1)]
    params = [tf.reshape(tf.transpose(w), [-1]) for w in weights]
    params.append(tf.zeros([8 * self._hidden_size], inputs.dtype))
    outputs, hidden, cell, *_ = tf.raw_ops.CudnnRNN(
      input=inputs,
      input_h=state.hidden[tf.newaxis],
      input_c=state.cell[tf.newaxis],
      params=tf.concat(params, axis=0),
      rnn_mode='lstm',
      is_training=True,
    )
    return outputs, snt.LSTMState(hidden=hidden[0], cell=cell[0])


class MemorylessLSTM(LSTM):
  """An LSTM in which each step starts from the initial state and ends in it.

  It has the weights of `LSTM` and is a baseline: what it learns needs no memory.
  """

  def __call__(
    self, inputs: tf.Tensor, prev_state: snt.LSTMState
  ) -> tuple[tf.Tensor, snt.LSTMState]:
    initial = tree.map_structure(tf.zeros_like, prev_state)
    return super().__call__(inputs, initial)[0], initial

  def unroll(
    self,
    inputs: tf.Tensor,
    state: snt.LSTMState,
    keep: tf.Tensor | None = None,
  ) -> tuple[tf.Tensor, snt.LSTMState]:
    """Computes what `LSTM.unroll` documents, all steps in one call."""
    del keep  # there is no state to keep
    merged = snt.merge_leading_dims(inputs, 2)  # [T x B, D]
    outputs, _ = self(merged, self.initial_state(tf.shape(merged)[0]))
    initial = tree.map_structure(tf.zeros_like, state)
    return snt.split_leading_dim(outputs, inputs, 2), initial


def fold_bias_and_padding(
  inputs: tf.Tensor,
  state: snt.LSTMState,
  w_x: tf.Tensor,
  b: tf.Tensor,
  keep: tf.Tensor | None,
) -> tuple[tf.Tensor, snt.LSTMState, tf.Tensor]:
  """Expresses `keep`, which cuDNN does not have, by inputs that are 0.

  The bias becomes the weight of one more input, which is 1. Where all inputs and the
  state are 0, so are all pre-activations and the candidate tanh(0), and the state stays
  0. This is the same as `keep` if the zeros of `keep` are in front.

  Args:
    inputs: [T, B, D].
    state: the state before the first step, [B, H].
    w_x: the input weights, [D, 4H].
    b: the bias, [4H].
    keep: as for `LSTM.unroll`, [T, B] or None.

  Returns:
    Inputs [T, B, D + 1], state and weights [D + 1, 4H] of an LSTM without bias.
  """
  inputs = tf.concat([inputs, tf.ones_like(inputs[..., :1])], axis=-1)
  if keep is not None:
    inputs *= keep[..., tf.newaxis]
    first = keep[0, :, tf.newaxis]
    state = snt.LSTMState(hidden=state.hidden * first, cell=state.cell * first)
  return inputs, state, tf.concat([w_x, b[tf.newaxis]], axis=0)


@tf.custom_gradient
def _recurrence(
  gates: tf.Tensor,
  initial_hidden: tf.Tensor,
  initial_cell: tf.Tensor,
  w_h: tf.Tensor,
  keep: tf.Tensor,
):
  """The part of an LSTM that must go step by step.

  With k_t = keep[t], and i, f, g, o the input, forget, update and output gates:

    i, f, g, o = split(gates_t + h_{t-1} W_h), through sigmoid, sigmoid, tanh, sigmoid
    c'_t = f c_{t-1} + i g,   c_t = k_t c'_t
    h'_t = o tanh(c'_t),      h_t = k_t h'_t

  Args:
    gates: [T, B, 4H], what inputs and bias add to the pre-activations.
    initial_hidden: [B, H], h_{-1}.
    initial_cell: [B, H], c_{-1}.
    w_h: [H, 4H].
    keep: [T, B, 1].

  Returns:
    h'_t [T, B, H], h_{T-1} [B, H], c_{T-1} [B, H]; and, for automatic differentiation,
    the function from their gradients to those of the arguments.
  """
  final_hidden, final_cell, rows = _forward_loop(
    gates, initial_hidden, initial_cell, w_h, keep
  )
  hidden, cell, i, f, g, o = rows  # [T, B, H]

  def gradient(d_outputs, d_final_hidden, d_final_cell):
    """Backpropagates through time; `d_x` is the loss's gradient with respect to x."""
    previous_hidden = _shift(hidden * keep, initial_hidden)  # [T, B, H]
    previous_cell = _shift(cell * keep, initial_cell)  # [T, B, H]
    tanh_cell = tf.tanh(cell)
    # These need no recurrence: dh'/dc', and the derivatives of c' (for the output gate,
    # of h') with respect to the four pre-activations.
    d_hidden_d_cell = o * (1 - tanh_cell**2)  # [T, B, H]
    slopes = tf.stack(
      [
        g * i * (1 - i),
        previous_cell * f * (1 - f),
        i * (1 - g**2),
        tanh_cell * o * (1 - o),
      ],
      axis=2,
    )  # [T, B, 4, H]

    def backward_step(t, d_hidden, d_cell):
      d_hidden = d_hidden * keep[t] + d_outputs[t]
      d_cell = d_cell * keep[t] + d_hidden * d_hidden_d_cell[t]
      d_gates = tf.stack([d_cell, d_cell, d_cell, d_hidden], axis=1) * slopes[t]
      return tf.reshape(d_gates, [-1, w_h.shape[1]]), d_cell * f[t]

    d_gates, d_initial_hidden, d_initial_cell = _backward_loop(
      backward_step, d_final_hidden, d_final_cell, w_h, gates
    )
    d_w_h = tf.matmul(
      tf.reshape(previous_hidden, [-1, w_h.shape[0]]),  # [T x B, H]
      tf.reshape(d_gates, [-1, w_h.shape[1]]),  # [T x B, 4H]
      transpose_a=True,
    )
    return d_gates, d_initial_hidden, d_initial_cell, d_w_h, None

  return (hidden, final_hidden, final_cell), gradient


def _forward_loop(gates, initial_hidden, initial_cell, w_h, keep):
  """Returns h_{T-1}, c_{T-1} and, of all steps, (h', c', i, f, g, o) [T, B, H] each."""
  num_steps = tf.shape(gates)[0]

  def step(t, hidden, cell, *rows):
    i, f, g, o = tf.split(gates[t] + tf.matmul(hidden, w_h), 4, axis=-1)  # [B, H]
    i, f, g, o = tf.sigmoid(i), tf.sigmoid(f), tf.tanh(g), tf.sigmoid(o)
    cell = f * cell + i * g
    hidden = o * tf.tanh(cell)
    saved = (hidden, cell, i, f, g, o)
    rows = [array.write(t, x) for array, x in zip(rows, saved, strict=True)]
    return t + 1, hidden * keep[t], cell * keep[t], *rows

  row_shape = [gates.shape[1], w_h.shape[0]]
  arrays = [
    tf.TensorArray(gates.dtype, num_steps, element_shape=row_shape) for _ in range(6)
  ]
  _, hidden, cell, *arrays = tf.while_loop(
    lambda t, *_: t < num_steps, step, (0, initial_hidden, initial_cell, *arrays)
  )
  return hidden, cell, [array.stack() for array in arrays]


def _backward_loop(step, d_final_hidden, d_final_cell, w_h, gates):
  """Runs `step` from the last step to the first.

  Args:
    step: a function from t and the gradients with respect to h_t and c_t to those with
      respect to gates_t [B, 4H] and c_{t-1} [B, H].
    d_final_hidden, d_final_cell: the gradients with respect to h_{T-1} and c_{T-1}.
    w_h: as in `_recurrence`.
    gates: as in `_recurrence`; only the shape and dtype matter.

  Returns:
    The gradients with respect to the gates [T, B, 4H], h_{-1} and c_{-1} [B, H].
  """
  num_steps = tf.shape(gates)[0]
  w_h_transposed = tf.transpose(w_h)  # [4H, H]

  def step_and_write(t, d_hidden, d_cell, rows):
    d_gates, d_cell = step(t, d_hidden, d_cell)
    return t - 1, tf.matmul(d_gates, w_h_transposed), d_cell, rows.write(t, d_gates)

  array = tf.TensorArray(gates.dtype, num_steps, element_shape=gates.shape[1:])
  _, d_hidden, d_cell, array = tf.while_loop(
    lambda t, *_: t >= 0,
    step_and_write,
    (num_steps - 1, d_final_hidden, d_final_cell, array),
  )
  return array.stack(), d_hidden, d_cell


def _shift(x: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
  """Moves rows [T, B, H] one step later, behind `first` [B, H]."""
  return tf.concat([first[tf.newaxis], x[:-1]], axis=0)
