"""Tests of `r2d2_acme/lstm.py`.

The oracle is Sonnet's own step in a Python loop, and autodiff of that loop. Tolerances
are relative to the largest element: 1e-10 in float64 is far above the roundings of a
few hundred additions, 1e-5 in float32 likewise.
"""

import copy

import numpy as np
import sonnet as snt
import tensorflow as tf
import tree
from absl.testing import absltest, parameterized

from r2d2_acme.learning import lstm

_INPUT_SIZE, _HIDDEN_SIZE = 3, 4
_TOLERANCE = {tf.float32: 1e-5, tf.float64: 1e-10}

_CASES = parameterized.product(
  dtype=[tf.float32, tf.float64],
  sizes=[(7, 5), (7, 1), (1, 5), (1, 1)],
  with_keep=[False, True],
)


class LSTMTest(parameterized.TestCase):
  @_CASES
  def test_unroll_equals_repeated_call(self, dtype, sizes, with_keep):
    core, inputs, state, keep = _case(dtype, *sizes, with_keep)
    _assert_close(
      core.unroll(inputs, state, keep), _loop(core, inputs, state, keep), dtype
    )

  @_CASES
  def test_gradients_equal_those_of_repeated_call(self, dtype, sizes, with_keep):
    case = _case(dtype, *sizes, with_keep)
    actual = _gradients(lstm.LSTM.unroll, *case)
    expected = _gradients(_loop, *case)
    # w.r.t. inputs, hidden, cell, and b, w_h, w_i: none is missing, none is 0.
    self.assertLen(actual, 6)
    for gradient in actual:
      self.assertGreater(np.abs(gradient).max(), 0)
    _assert_close(actual, expected, dtype)

  @parameterized.parameters('outputs', 'hidden', 'cell')
  def test_gradients_of_one_result_alone(self, of):
    case = _case(tf.float64, 5, 2, True)
    actual = _gradients(lstm.LSTM.unroll, *case, of=[of])
    _assert_close(actual, _gradients(_loop, *case, of=[of]), tf.float64)

  @parameterized.product(
    signature=[(7, 5), (None, 5), (7, None), (None, None)],
    state_batch=[5, None],
    with_keep=[False, True],
  )
  def test_gradients_inside_function_equal_eager(
    self, signature, state_batch, with_keep
  ):
    core, inputs, state, keep = _case(tf.float64, 7, 5, with_keep)
    expected = _gradients(lstm.LSTM.unroll, core, inputs, state, keep)

    @tf.function(
      input_signature=[
        tf.TensorSpec([*signature, _INPUT_SIZE], tf.float64),
        tf.TensorSpec([state_batch, _HIDDEN_SIZE], tf.float64),
        tf.TensorSpec([state_batch, _HIDDEN_SIZE], tf.float64),
        tf.TensorSpec(signature, tf.float64),
      ]
    )
    def function(inputs, hidden, cell, keep):
      return _gradients(
        lstm.LSTM.unroll,
        core,
        inputs,
        snt.LSTMState(hidden, cell),
        keep if with_keep else None,
      )

    some_keep = tf.ones([7, 5], tf.float64) if keep is None else keep
    actual = function(inputs, *state, some_keep)
    _assert_close(actual, expected, tf.float64)

  def test_gradients_outside_function_equal_eager(self):
    case = _case(tf.float64, 7, 5, True)
    unroll = tf.function(lstm.LSTM.unroll)
    expected = _gradients(lstm.LSTM.unroll, *case)
    _assert_close(_gradients(unroll, *case), expected, tf.float64)

  def test_function_keeps_static_shapes(self):
    core = lstm.LSTM(_HIDDEN_SIZE)

    @tf.function(input_signature=[tf.TensorSpec([7, None, _INPUT_SIZE])])
    def function(inputs):
      state = core.initial_state(tf.shape(inputs)[1])
      outputs, state = core.unroll(inputs, state)
      self.assertEqual(outputs.shape.as_list(), [7, None, _HIDDEN_SIZE])
      self.assertEqual(state.hidden.shape.as_list(), [None, _HIDDEN_SIZE])
      self.assertEqual(state.cell.shape.as_list(), [None, _HIDDEN_SIZE])
      return outputs

    self.assertEqual(function(tf.zeros([7, 5, _INPUT_SIZE])).shape, [7, 5, 4])

  def test_consecutive_unrolls_equal_one(self):
    core, inputs, state, keep = _case(tf.float64, 7, 5, True)

    def two(core, inputs, state, keep):
      first, state = core.unroll(inputs[:3], state, keep[:3])
      second, state = core.unroll(inputs[3:], state, keep[3:])
      return tf.concat([first, second], axis=0), state

    case = core, inputs, state, keep
    _assert_close(two(*case), core.unroll(inputs, state, keep), tf.float64)
    expected = _gradients(lstm.LSTM.unroll, *case)
    _assert_close(_gradients(two, *case), expected, tf.float64)

  @parameterized.product(
    dtype=[tf.float32, tf.float64], burn_in=[0, 40], with_padding=[False, True]
  )
  def test_window_equals_repeated_call(self, dtype, burn_in, with_padding):
    """As the learner uses it: the paper's lengths, no gradient into burn-in."""
    core, inputs, state, _ = _case(dtype, burn_in + 80, 5, with_keep=False)
    keep = None
    if with_padding:
      keep = np.arange(burn_in)[:, np.newaxis] >= np.array([0, 1, 20, 39, 40])
      keep = tf.constant(keep, dtype)

    def window(unroll):
      def call(core, inputs, state, keep):
        if burn_in:
          _, state = unroll(core, inputs[:burn_in], state, keep)
        state = tree.map_structure(tf.stop_gradient, state)
        return unroll(core, inputs[burn_in:], state, None)

      return call

    actual, expected = window(lstm.LSTM.unroll), window(_loop)
    case = core, inputs, state, keep
    _assert_close(actual(*case), expected(*case), dtype)
    actual, expected = (_gradients(unroll, *case) for unroll in (actual, expected))
    # None with respect to the state in front of it.
    self.assertEqual([x is None for x in actual], [x is None for x in expected])
    self.assertLen([x for x in actual if x is not None], 4)
    _assert_close(
      *([x for x in xs if x is not None] for xs in (actual, expected)), dtype
    )

  def test_keep_zero_leaves_the_initial_state_and_no_trace(self):
    core, inputs, state, _ = _case(tf.float32, 6, 2, False)
    # The first window starts with 4 steps of padding, the second with none.
    keep = tf.constant([[0, 1]] * 4 + [[1, 1]] * 2, tf.float32)
    _, after_padding = core.unroll(inputs[:4], state, keep[:4])
    np.testing.assert_array_equal(after_padding.hidden[0], np.zeros(_HIDDEN_SIZE))
    np.testing.assert_array_equal(after_padding.cell[0], np.zeros(_HIDDEN_SIZE))
    self.assertGreater(np.abs(after_padding.hidden[1]).min(), 0)

    # What the padding holds and the state in front of it change nothing behind it.
    noise = np.zeros_like(inputs)
    noise[:4, 0] = 1
    other_state = tree.map_structure(lambda x: x + [[1], [0]], state)
    with tf.GradientTape() as tape:
      tape.watch([inputs, state])
      outputs, final_state = core.unroll(inputs, state, keep)
      tail = outputs[4:], final_state
    others, other_final_state = core.unroll(inputs + noise, other_state, keep)
    tree.map_structure(
      np.testing.assert_array_equal, tail, (others[4:], other_final_state)
    )
    alone, _ = core.unroll(inputs[4:, :1], core.initial_state(1))
    _assert_close(alone, outputs[4:, :1], tf.float32)
    gradients = tape.gradient(tail, [inputs, state])
    np.testing.assert_array_equal(gradients[0][:4, 0], np.zeros([4, _INPUT_SIZE]))
    np.testing.assert_array_equal(gradients[1].hidden[0], np.zeros(_HIDDEN_SIZE))
    np.testing.assert_array_equal(gradients[1].cell[0], np.zeros(_HIDDEN_SIZE))
    self.assertGreater(np.abs(gradients[0][4:]).min(), 0)
    self.assertGreater(np.abs(gradients[0][:, 1]).min(), 0)

  @parameterized.product(dtype=[tf.float32, tf.float64], with_keep=[False, True])
  def test_folded_bias_and_padding_change_nothing(self, dtype, with_keep):
    """What cuDNN is given, to Sonnet's step."""
    core, inputs, state, keep = _case_padded_in_front(dtype, with_keep)
    inputs_and_1, state_in, w_x = lstm.fold_bias_and_padding(
      inputs, state, core.input_to_hidden, core.b, keep
    )
    folded = lstm.LSTM(_HIDDEN_SIZE, dtype=dtype)
    folded(inputs_and_1[0], state_in)
    folded.input_to_hidden.assign(w_x)
    folded.hidden_to_hidden.assign(core.hidden_to_hidden)
    folded.b.assign(tf.zeros_like(core.b))
    outputs, final_state = _loop(folded, inputs_and_1, state_in)
    expected, expected_state = _loop(core, inputs, state, keep)
    if with_keep:
      outputs, expected = (x * keep[..., tf.newaxis] for x in (outputs, expected))
    _assert_close((outputs, final_state), (expected, expected_state), dtype)

  @parameterized.parameters(False, True)
  def test_cudnn_equals_repeated_call(self, with_keep):
    if not tf.config.list_logical_devices('GPU'):
      self.skipTest('no GPU')
    case = _case_padded_in_front(tf.float32, with_keep)

    def masked(unroll):
      def call(core, inputs, state, keep):
        outputs, state = unroll(core, inputs, state, keep)
        return outputs if keep is None else outputs * keep[..., tf.newaxis], state

      return call

    actual, expected = masked(lstm.LSTM.unroll), masked(_loop)
    _assert_close(actual(*case), expected(*case), tf.float32)
    _assert_close(_gradients(actual, *case), _gradients(expected, *case), tf.float32)

  def test_equals_sonnet_given_its_weights(self):
    sonnet_core = snt.LSTM(_HIDDEN_SIZE)
    _, inputs, state, _ = _case(tf.float32, 7, 5, False)
    expected = snt.static_unroll(sonnet_core, inputs, state)
    core = lstm.LSTM(_HIDDEN_SIZE)
    core.unroll(inputs, state)  # creates the variables, in the same order
    for ours, theirs in zip(core.variables, sonnet_core.variables, strict=True):
      self.assertEqual(ours.shape, theirs.shape)
      ours.assign(theirs)
    _assert_close(core.unroll(inputs, state), expected, tf.float32)

  def test_initial_weights_equal_sonnets_for_a_seed(self):
    inputs = tf.zeros([7, 5, _INPUT_SIZE])
    cores = lstm.LSTM(_HIDDEN_SIZE), snt.LSTM(_HIDDEN_SIZE)
    for core in cores:
      tf.random.set_seed(1)
      if isinstance(core, lstm.LSTM):
        core.unroll(inputs, core.initial_state(5))
      else:
        core(inputs[0], core.initial_state(5))
    for ours, theirs in zip(*(core.variables for core in cores), strict=True):
      np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(cores[0].b, np.repeat([0, 1, 0, 0], _HIDDEN_SIZE))

  def test_initial_state_is_zero(self):
    for dtype in (tf.float32, tf.float64):
      state = lstm.LSTM(_HIDDEN_SIZE, dtype=dtype).initial_state(3)
      self.assertEqual(state.hidden.dtype, dtype)
      tree.map_structure(
        lambda x: np.testing.assert_array_equal(x, np.zeros([3, _HIDDEN_SIZE])), state
      )

  def test_no_steps_leave_the_state(self):
    core, inputs, state, _ = _case(tf.float32, 1, 5, False)
    outputs, final_state = core.unroll(inputs[:0], state)
    self.assertEqual(outputs.shape, [0, 5, _HIDDEN_SIZE])
    tree.map_structure(np.testing.assert_array_equal, final_state, state)

  def test_graph_does_not_grow_with_length(self):
    def num_nodes(length):
      core, inputs, state, keep = _case(tf.float32, length, 5, True)
      function = tf.function(
        lambda x: _gradients(lstm.LSTM.unroll, core, x, state, keep)
      )
      graph = function.get_concrete_function(inputs).graph.as_graph_def()
      functions = graph.library.function
      return len(graph.node) + sum(len(function.node_def) for function in functions)

    self.assertEqual(num_nodes(60), num_nodes(120))

  def test_copy_has_weights_of_its_own(self):
    core, inputs, state, _ = _case(tf.float32, 2, 5, False)
    other = copy.deepcopy(core)
    expected, _ = core.unroll(inputs, state)
    np.testing.assert_array_equal(other.unroll(inputs, state)[0], expected)
    core.b.assign(core.b + 1)
    np.testing.assert_array_equal(other.unroll(inputs, state)[0], expected)


class MemorylessLSTMTest(parameterized.TestCase):
  def test_each_step_is_an_lstms_first(self):
    core, inputs, state, _ = _case(tf.float32, 7, 5, False)
    memoryless = _memoryless(core)
    outputs, final_state = memoryless.unroll(inputs, state)
    for t in range(7):
      expected, _ = core(inputs[t], core.initial_state(5))
      np.testing.assert_allclose(outputs[t], expected, rtol=0, atol=1e-5)
    # So the weights of the state do not matter.
    core.hidden_to_hidden.assign(0 * core.hidden_to_hidden)
    np.testing.assert_array_equal(_memoryless(core).unroll(inputs, state)[0], outputs)
    tree.map_structure(
      np.testing.assert_array_equal, final_state, core.initial_state(5)
    )

  @parameterized.parameters(False, True)
  def test_unroll_equals_repeated_call(self, with_keep):
    core, inputs, state, keep = _case(tf.float32, 7, 5, with_keep)
    core = _memoryless(core)
    _assert_close(
      core.unroll(inputs, state, keep), _loop(core, inputs, state, keep), tf.float32
    )

  def test_no_gradient_reaches_an_earlier_step(self):
    core, inputs, state, _ = _case(tf.float32, 7, 5, False)
    core = _memoryless(core)
    with tf.GradientTape() as tape:
      tape.watch(inputs)
      last = core.unroll(inputs, state)[0][-1]
    gradient = tape.gradient(last, inputs).numpy()
    np.testing.assert_array_equal(gradient[:-1], 0)
    self.assertGreater(np.abs(gradient[-1]).max(), 0)

  def test_unknown_sizes(self):
    core, inputs, state, _ = _case(tf.float32, 7, 5, False)
    core = _memoryless(core)
    unroll = tf.function(core.unroll)
    signature = tf.TensorSpec([None, None, _INPUT_SIZE], tf.float32)
    outputs, _ = unroll.get_concrete_function(signature, state)(inputs, *state)
    np.testing.assert_allclose(outputs, core.unroll(inputs, state)[0], atol=1e-5)


def _memoryless(core):
  """With the weights of another core."""
  memoryless = lstm.MemorylessLSTM(_HIDDEN_SIZE)
  memoryless(tf.zeros([1, _INPUT_SIZE]), memoryless.initial_state(1))
  for variable, other in zip(memoryless.variables, core.variables, strict=True):
    variable.assign(other)
  return memoryless


def _case(dtype, length, batch_size, with_keep):
  """A core with random weights, inputs [T, B, D], a state and keep [T, B] or None."""
  rng = np.random.default_rng(0)

  def random(*shape):
    return tf.constant(rng.normal(size=shape), dtype)

  core = lstm.LSTM(_HIDDEN_SIZE, dtype=dtype)
  core(random(1, _INPUT_SIZE), core.initial_state(1))
  for variable in core.variables:
    variable.assign(random(*variable.shape))
  state = snt.LSTMState(
    hidden=random(batch_size, _HIDDEN_SIZE), cell=random(batch_size, _HIDDEN_SIZE)
  )
  keep = None
  if with_keep:
    # Not only 0 and 1: in between, a power of it that is wrong shows. The first
    # steps are kept, or no gradient would reach the initial state.
    keep = rng.choice([0, 0.5, 1], size=[length, batch_size])
    keep[: length // 2 + 1] = 0.5
    keep = tf.constant(keep, dtype)
  return core, random(length, batch_size, _INPUT_SIZE), state, keep


def _case_padded_in_front(dtype, with_keep):
  """The first three windows have 2, 4 and 7 steps of padding."""
  core, inputs, state, _ = _case(dtype, 7, 5, with_keep=False)
  keep = np.arange(7)[:, np.newaxis] >= np.array([2, 4, 7, 0, 0])
  return core, inputs, state, tf.constant(keep, dtype) if with_keep else None


def _loop(core, inputs, state, keep=None):
  """What `unroll` must equal."""
  outputs = []
  for t in range(inputs.shape[0]):
    output, state = core(inputs[t], state)
    outputs.append(output)
    if keep is not None:
      hidden, cell = state
      state = snt.LSTMState(hidden * keep[t][:, None], cell * keep[t][:, None])
  return tf.stack(outputs), state


def _gradients(unroll, core, inputs, state, keep, of=('outputs', 'hidden', 'cell')):
  """Of a loss that weighs every element of the results, w.r.t. all that matters."""
  with tf.GradientTape() as tape:
    sources = [inputs, state.hidden, state.cell, *core.trainable_variables]
    tape.watch(sources)
    outputs, final_state = unroll(core, inputs, state, keep)
    results = dict(outputs=outputs, hidden=final_state.hidden, cell=final_state.cell)
    loss = 0.0
    for name in of:
      result = results[name]
      weights = tf.cos(tf.cast(tf.range(tf.size(result)), result.dtype))
      loss += tf.reduce_sum(tf.reshape(weights, tf.shape(result)) * result)
  return tape.gradient(loss, sources)


def _assert_close(actual, expected, dtype):
  def check(x, y):
    atol = _TOLERANCE[dtype] * max(1e-3, np.abs(y).max())
    np.testing.assert_allclose(x, y, rtol=0, atol=atol)

  tree.map_structure(check, actual, expected)


if __name__ == '__main__':
  absltest.main()
