"""Tests of `r2d2_acme/networks.py`.

Networks are float32. `unroll` and repeated calls add up the same products in another
order, which costs a few float32 roundings: 1e-5.
"""

import copy
import dataclasses

import numpy as np
import sonnet as snt
import tensorflow as tf
import tree
from absl.testing import absltest, parameterized
from acme import specs

from r2d2_acme import config as config_lib
from r2d2_acme import types
from r2d2_acme.learning import networks
from tests import helpers

_NUM_ACTIONS = 3
_CONFIG = dataclasses.replace(
  config_lib.laptop(),
  conv_channels=(2, 3, 4),
  torso_size=8,
  core_size=6,
  head_size=5,
  frame_stack=2,
)
_IMAGE = specs.Array([40, 36, 1], np.uint8)
_VECTOR = specs.Array([4], np.float32)


class DuellingHeadTest(absltest.TestCase):
  def test_hand_values(self):
    head = networks.DuellingHead(num_actions=3, hidden_size=1)
    head(tf.zeros([1, 1]))
    weights = {v.name: v for v in head.variables}
    self.assertLen(weights, 8)
    for name, value in {
      'value/linear_0/w': [[1.0]],
      'value/linear_0/b': [1.0],
      'value/linear_1/w': [[2.0]],
      'value/linear_1/b': [-3.0],
      'advantage/linear_0/w': [[3.0]],
      'advantage/linear_0/b': [0.0],
      'advantage/linear_1/w': [[1.0, 2.0, 6.0]],
      'advantage/linear_1/b': [0.0, 0.0, 3.0],
    }.items():
      weights[f'duelling_head/{name}:0'].assign(value)
    # x = 2: V = 2 (2 + 1) - 3 = 3; A = [6, 12, 36 + 3], mean 19.
    # x = -2: both hidden layers are cut off at 0, V = -3; A = [0, 0, 3], mean 1.
    np.testing.assert_allclose(
      head(tf.constant([[2.0], [-2.0]])),
      [[3 + 6 - 19, 3 + 12 - 19, 3 + 39 - 19], [-3 - 1, -3 - 1, -3 + 2]],
    )

  def test_mean_over_actions_is_the_value(self):
    head = networks.DuellingHead(num_actions=5, hidden_size=7)
    features = tf.random.stateless_normal([4, 6], seed=[0, 1])
    q = head(features)
    self.assertEqual(q.shape, [4, 5])
    value = head._value(features)
    np.testing.assert_allclose(np.mean(q, axis=1), value[:, 0], rtol=1e-5, atol=1e-6)


class R2D2NetworkTest(parameterized.TestCase):
  @parameterized.product(
    frame=[_IMAGE, _VECTOR],
    sizes=[(6, 4), (6, 1), (1, 4), (1, 1)],
    with_keep=[False, True],
  )
  def test_unroll_equals_repeated_call(self, frame, sizes, with_keep):
    network, observations, state, keep = _case(frame, *sizes, with_keep)
    q, final_state = network.unroll(observations, state, keep)
    self.assertEqual(q.shape, [*sizes, _NUM_ACTIONS])
    self.assertEqual(q.dtype, tf.float32)
    expected_q, expected_state = _loop(network, observations, state, keep)
    _assert_close(q, expected_q)
    _assert_close(final_state, expected_state)
    _assert_close(network.burn_in(observations, state, keep), expected_state)

  @parameterized.parameters(False, True)
  def test_gradients_equal_those_of_repeated_call(self, with_keep):
    network, *case = _case(_IMAGE, 4, 2, with_keep)

    def gradients(unroll):
      with tf.GradientTape() as tape:
        q, _ = unroll(*case)
        loss = tf.reduce_sum(q**2)
      return tape.gradient(loss, network.trainable_variables)

    actual = gradients(network.unroll)
    for variable, gradient in zip(network.trainable_variables, actual, strict=True):
      self.assertGreater(np.abs(gradient).max(), 0, variable.name)
    _assert_close(actual, gradients(lambda *args: _loop(network, *args)))

  def test_learner_and_actor_scale_alike(self):
    spec = specs.BoundedArray([40, 36, 1], np.float32, -500, 500)
    network = networks.make_network(_CONFIG, _spec(spec))
    _, observations, state, _ = _case(_IMAGE, 4, 2, False)
    observations = observations._replace(
      observation=2 * tf.cast(observations.observation, tf.float32) - 255
    )
    q, _ = network.unroll(observations, state)
    expected, _ = _loop(network, observations, state)
    _assert_close(q, expected)

  def test_torso_is_applied_once_to_all_steps(self):
    network, observations, state, _ = _case(_VECTOR, 6, 4, False)
    shapes = []
    torso = network._torso

    def spy(inputs):
      shapes.append(inputs.shape.as_list())
      return torso(inputs)

    network._torso = spy
    network.unroll(observations, state)
    self.assertEqual(shapes, [[24, 4]])

  def test_padding_leaves_no_trace(self):
    network, observations, state, _ = _case(_IMAGE, 4, 2, False)
    keep = tf.constant([[0, 1]] * 4, tf.float32)
    burned_in = network.burn_in(observations, state, keep)
    initial = network.initial_state(1)
    tree.map_structure(
      lambda x, y: np.testing.assert_array_equal(x[:1], y), burned_in, initial
    )
    self.assertGreater(np.abs(burned_in.hidden[1]).min(), 0)

  def test_core_sees_features_previous_action_and_previous_reward(self):
    network, _, _, _ = _case(_VECTOR, 1, 1, False)
    vectors = tf.random.stateless_normal([3, 4], seed=[0, 1])
    features = network.features(
      types.Observation(
        observation=vectors,
        action=tf.constant([2, 0, 1]),
        reward=tf.constant([0.0, -0.5, 3000.0]),
      )
    )
    self.assertEqual(features.dtype, tf.float32)
    np.testing.assert_allclose(features[:, :8], network._torso(vectors))
    np.testing.assert_allclose(
      features[:, 8:],
      [[0, 0, 1, 0], [1, 0, 0, np.tanh(-0.5)], [0, 1, 0, 1]],
      rtol=1e-6,
    )

  @parameterized.parameters(_IMAGE, _VECTOR)
  def test_q_depends_on_every_input(self, frame):
    network, observations, state, _ = _case(frame, 1, 1, False)
    inputs = tree.map_structure(lambda x: x[0], observations)
    q, _ = network(inputs, state)
    for name, other in {
      'observation': 1 + inputs.observation,
      'action': (1 + inputs.action) % _NUM_ACTIONS,
      'reward': 1 + inputs.reward,
    }.items():
      other_q, _ = network(inputs._replace(**{name: other}), state)
      self.assertGreater(np.abs(other_q - q).max(), 1e-5, name)
    other_q, _ = network(inputs, network.initial_state(1))
    self.assertGreater(np.abs(other_q - q).max(), 1e-5)

  def test_function_of_unknown_batch_size(self):
    network, observations, _, _ = _case(_IMAGE, 6, 4, False)
    spec = tree.map_structure(
      lambda x: tf.TensorSpec([None, None, *x.shape[2:]], x.dtype), observations
    )

    @tf.function(input_signature=[spec])
    def unroll(observations):
      state = network.initial_state(tf.shape(observations.reward)[1])
      return network.unroll(observations, state)

    for batch_size in (4, 2):
      inputs = tree.map_structure(lambda x, n=batch_size: x[:, :n], observations)
      expected = network.unroll(inputs, network.initial_state(batch_size))
      _assert_close(unroll(inputs), expected)

  def test_initial_state_is_zero(self):
    network, *_ = _case(_VECTOR, 1, 1, False)
    state = network.initial_state(3)
    self.assertIsInstance(state, snt.LSTMState)
    for x in state:
      self.assertEqual(x.dtype, tf.float32)
      np.testing.assert_array_equal(x, np.zeros([3, 6]))

  def test_copy_has_weights_of_its_own(self):
    network, observations, state, _ = _case(_VECTOR, 2, 3, False)
    other = copy.deepcopy(network)
    expected, _ = network.unroll(observations, state)
    for variable in network.variables:
      variable.assign(variable + 1)
    np.testing.assert_array_equal(other.unroll(observations, state)[0], expected)


class MakeNetworkTest(parameterized.TestCase):
  def test_parameter_count_of_the_papers_network(self):
    frame = specs.Array([84, 84, 1], np.uint8)
    network = networks.make_network(config_lib.paper(), _spec(frame, num_actions=18))
    convolutions = 8 * 8 * 4 * 32 + 32 + 4 * 4 * 32 * 64 + 64 + 3 * 3 * 64 * 64 + 64
    torso = convolutions + (7 * 7 * 64) * 512 + 512
    core = (512 + 18 + 1) * 4 * 512 + 512 * 4 * 512 + 4 * 512
    head = 2 * (512 * 512 + 512) + (512 * 1 + 1) + (512 * 18 + 18)
    self.assertEqual(torso + core + head, 4_357_299)
    sizes = [np.prod(variable.shape) for variable in network.trainable_variables]
    self.assertEqual(sum(sizes), 4_357_299)
    self.assertLen(sizes, 8 + 3 + 8)
    self.assertLen(network.variables, len(sizes))

  def test_returns_all_variables(self):
    for frame in (_IMAGE, _VECTOR):
      network, observations, state, _ = _case(frame, 2, 3, False)
      before = [variable.ref() for variable in network.variables]
      network.unroll(observations, state)
      network.burn_in(observations, state)
      self.assertEqual([variable.ref() for variable in network.variables], before)

  @parameterized.parameters(
    dict(conv_channels=(3, 3, 4)),
    dict(conv_channels=(2, 4, 4)),
    dict(conv_channels=(2, 3, 5)),
    dict(torso_size=9),
    dict(core_size=7),
    dict(head_size=6),
    dict(frame_stack=3),
  )
  def test_every_size_matters(self, **change):
    def shapes(config):
      network = networks.make_network(config, _spec(_IMAGE))
      return [variable.shape.as_list() for variable in network.variables]

    changed = dataclasses.replace(_CONFIG, **change)
    self.assertNotEqual(shapes(changed), shapes(_CONFIG))

  def test_without_recurrence_the_state_and_the_past_do_not_matter(self):
    def last_q(recurrent, observations, state):
      tf.random.set_seed(0)
      config = dataclasses.replace(_CONFIG, recurrent=recurrent)
      network = networks.make_network(config, _spec(_VECTOR))
      return network.unroll(observations, state)[0][-1]

    _, observations, state, _ = _case(_VECTOR, 4, 3, False)
    other_past = tree.map_structure(lambda x: x[-1:], observations)
    no_state = tree.map_structure(tf.zeros_like, state)
    for recurrent in (True, False):
      whole = last_q(recurrent, observations, state)
      alone = last_q(recurrent, other_past, no_state)
      self.assertEqual(np.allclose(whole, alone, atol=1e-6), not recurrent)

  def test_images_are_stacked_and_vectors_are_not(self):
    rgb = specs.Array([36, 36, 3], np.uint8)
    network = networks.make_network(_CONFIG, _spec(rgb))
    self.assertIn([8, 8, 3 * 2, 2], [v.shape.as_list() for v in network.variables])
    network = networks.make_network(_CONFIG, _spec(_VECTOR))
    self.assertIn([4, 8], [v.shape.as_list() for v in network.variables])

  def test_seed_fixes_the_weights(self):
    def weights(seed):
      tf.random.set_seed(seed)
      network = networks.make_network(_CONFIG, _spec(_IMAGE))
      return [variable.numpy() for variable in network.variables]

    tree.map_structure(np.testing.assert_array_equal, weights(1), weights(1))
    differs = [np.any(x != y) for x, y in zip(weights(1), weights(2), strict=True)]
    self.assertEqual(sum(differs), 4 + 2 + 4)  # all but the biases

  @parameterized.parameters(
    ([0], 'axis 0 has size 0'),
    ([84, 3, 84], 'axis 1, of size 3, holds the channels'),
    ([4, 84, 84, 3], 'axis 0, of size 4, is a stack of frames'),
  )
  def test_unsupported_observations_raise(self, shape, message):
    frame = specs.Array(shape, np.uint8)
    with self.assertRaisesRegex(ValueError, message):
      networks.make_network(_CONFIG, _spec(frame))

  def test_continuous_actions_raise(self):
    actions = specs.BoundedArray([2], np.float32, -1, 1)
    with self.assertRaisesRegex(ValueError, 'actions must be discrete'):
      networks.make_network(_CONFIG, _spec(_VECTOR)._replace(actions=actions))


def _spec(frame, num_actions=_NUM_ACTIONS):
  return specs.EnvironmentSpec(
    observations=frame,
    actions=specs.DiscreteArray(num_actions),
    rewards=specs.Array([], np.float32),
    discounts=specs.BoundedArray([], np.float32, 0, 1),
  )


def _random_images(shape):
  return tf.constant(np.random.default_rng(0).integers(0, 256, shape), tf.uint8)


def _case(frame, length, batch_size, with_keep):
  """A network, its inputs [T, B, ...], a state and keep [T, B] or None."""
  rng = np.random.default_rng(1)
  axes = [length, batch_size]
  tf.random.set_seed(2)
  network = networks.make_network(_CONFIG, _spec(frame))
  if len(frame.shape) == 3:
    observation = _random_images([*axes, *frame.shape[:2], 2])
  else:
    observation = tf.constant(rng.normal(size=[*axes, *frame.shape]), tf.float32)
  observations = types.Observation(
    observation=observation,
    action=tf.constant(rng.integers(0, _NUM_ACTIONS, axes), tf.int32),
    reward=tf.constant(rng.normal(size=axes), tf.float32),
  )
  state = tree.map_structure(
    lambda x: tf.constant(rng.normal(size=x.shape), tf.float32),
    network.initial_state(batch_size),
  )
  keep = tf.constant(rng.choice([0, 0.5, 1], axes), tf.float32) if with_keep else None
  return network, observations, state, keep


def _loop(network, observations, state, keep=None):
  """What `unroll` must equal."""
  values = []
  for t in range(observations.reward.shape[0]):
    q, state = network(tree.map_structure(lambda x, t=t: x[t], observations), state)
    values.append(q)
    if keep is not None:
      state = tree.map_structure(lambda x, k=keep[t][:, None]: x * k, state)
  return tf.stack(values), state


def _assert_close(actual, expected):
  def check(x, y):
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * max(1, np.abs(y).max()))

  tree.map_structure(check, actual, expected)


class EstimateTest(parameterized.TestCase):
  @parameterized.parameters(True, False)
  def test_estimate_of_parameters_is_that_of_the_network(self, image):
    config = config_lib.laptop()
    spec = helpers.make_spec(image)
    network = networks.make_network(config, spec)
    number = sum(int(np.prod(x.shape)) for x in network.variables)
    estimate = networks.estimate_parameters(config, spec)
    self.assertBetween(estimate / number, 0.95, 1.0)


if __name__ == '__main__':
  absltest.main()
