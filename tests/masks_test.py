"""The agent on nested observations with masks of valid actions, in one process."""

import collections

import dm_env
import numpy as np
import pytest
import reverb
import tensorflow as tf
import tree
from acme import make_environment_spec
from acme.utils import counting, loggers
from dm_env import specs

from r2d2_acme.acting.exploration import EpsilonGreedy
from r2d2_acme.acting.loop import VectorEnvironmentLoop
from r2d2_acme.agent import run_experiment
from r2d2_acme.builder import R2D2Builder
from r2d2_acme.environments import EnvironmentFailed, checked
from r2d2_acme.experiment import Experiment
from r2d2_acme.learning import losses, networks
from r2d2_acme.types import INVALID_Q, Observation
from tests import helpers

_NUM_ACTIONS = 4
_LENGTH = 7  # transitions of an episode


class MaskedWorld(dm_env.Environment):
  """Shows the step in each leaf, and refuses actions that its mask forbids."""

  def __init__(self, seed: int = 0, num_valid: int = 2):
    self._rng = np.random.default_rng(seed)
    self._num_valid = num_valid
    self._step = 0

  def reset(self):
    self._step = 0
    return dm_env.restart(self._observe())

  def step(self, action):
    assert self._mask[action], 'an action that is not valid'
    self._step += 1
    if self._step == _LENGTH:  # with no valid action
      return dm_env.termination(np.float32(1), self._observe(num_valid=0))
    return dm_env.transition(np.float32(action), self._observe())

  def _observe(self, num_valid: int | None = None):
    num_valid = self._num_valid if num_valid is None else num_valid
    valid = self._rng.choice(_NUM_ACTIONS, num_valid, replace=False)
    self._mask = np.isin(np.arange(_NUM_ACTIONS), valid).astype(np.int8)
    return {
      'eye': np.full((36, 36, 1), self._step + 1, np.uint8),
      'ears': (np.full(3, self._step + 1, np.float32), 'a text'),
      'action_mask': self._mask.copy(),
    }

  def observation_spec(self):
    return {
      'eye': specs.Array((36, 36, 1), np.uint8),
      'ears': (specs.Array((3,), np.float32), specs.StringArray(())),
      'action_mask': specs.BoundedArray((_NUM_ACTIONS,), np.int8, 0, 1),
    }

  def action_spec(self):
    return specs.DiscreteArray(_NUM_ACTIONS, np.int32)


_SPEC = make_environment_spec(MaskedWorld())
_CONFIG = helpers.make_config(
  envs_per_actor=2, epsilon_base=0.5, frame_stack=3, evaluation_period=0.2
)


def test_training_and_evaluation_take_only_valid_actions(tmp_path):
  rows = collections.defaultdict(list)

  class Logger(loggers.InMemoryLogger):
    def write(self, data):
      rows[self.role].append(data)

  def make_logger(workdir, role, index):
    logger = Logger()
    logger.role = role
    return logger

  metrics = []

  def observe(agent, steps):
    agent.learner.always_diagnose = True
    metrics.append(agent.learner.last_metrics)

  run_experiment(
    Experiment(
      _CONFIG,
      MaskedWorld,
      workdir=str(tmp_path),
      logger_factory=make_logger,
      max_learner_steps=30,
    ),
    observe=observe,
  )
  assert rows['evaluator']
  assert all(row['environment_failures'] == 0 for row in rows['actor'])
  names = ('loss', 'max_q', 'mean_q', 'max_abs_td', 'delta_q_initial', 'delta_q_final')
  values = [x[name] for x in metrics if x for name in names]
  assert len(values) >= 30 * len(names)
  assert all(np.abs(x).max() < 1e3 for x in values)  # those of valid actions


def test_replay_gives_back_what_the_actor_saw_in_each_leaf():
  builder = R2D2Builder(_CONFIG, _SPEC)
  tables = builder.make_tables(reverb.rate_limiters.MinSize(1))
  server, client = helpers.start_server(tables)
  actor = builder.make_actor(replay_clients=[client])
  loop = VectorEnvironmentLoop(
    [MaskedWorld(i) for i in range(2)], actor, counting.Counter(), loggers.NoOpLogger()
  )
  loop.run(num_episodes=6)
  actor.flush()
  batch = next(iter(builder.make_dataset(client.server_address)))
  server.stop()
  eye, ears, mask = (x.numpy() for x in batch.observations.observation)
  is_real = batch.mask.numpy() > 0  # [R, B]
  assert eye.shape == (*is_real.shape, 36, 36, 3)
  assert (eye.dtype, ears.dtype, mask.dtype) == (np.uint8, np.float32, np.int8)
  newest = ears[..., 0]
  np.testing.assert_array_equal(newest > 0, is_real)
  for age in range(3):
    shown = np.maximum(newest - age, 0)  # zeros before an episode's first frame
    np.testing.assert_array_equal(
      eye[is_real][:, 5, 5, 2 - age], shown[is_real].astype(np.uint8)
    )
  is_last = newest == _LENGTH + 1
  np.testing.assert_array_equal(mask.sum(-1)[is_real & ~is_last], 2)
  assert not mask[is_last].any()


def _q_of(mask):
  network = networks.make_network(_CONFIG, _SPEC)
  mask = tf.constant(mask, tf.int8)
  observation = (
    tf.zeros([len(mask), 36, 36, 3], tf.uint8),
    tf.ones([len(mask), 3]),
    mask,
  )
  zeros = tf.zeros([len(mask)])
  inputs = Observation(observation, tf.cast(zeros, tf.int32), zeros)
  state = network.initial_state(len(mask))
  q, _ = network(inputs, state)
  unrolled, _ = network.unroll(tree.map_structure(lambda x: x[None], inputs), state)
  np.testing.assert_allclose(unrolled[0], q, rtol=1e-5)
  return q.numpy()


def test_actions_that_are_not_valid_have_the_least_value():
  q = _q_of([[1, 0, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
  masked = np.array([[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], bool)
  assert (q[masked] == INVALID_Q).all()
  assert (np.abs(q[~masked]) < 100).all()
  # The mask is no input of the torso: the value of an action does not depend on it.
  np.testing.assert_allclose(q[0, 0], q[2, 0], rtol=1e-5)


def test_bootstrap_is_the_best_valid_action():
  q = tf.constant([[[1.0, 2.0]], [[3.0, INVALID_Q]]])  # [T + 1 = 2, B = 1, A = 2]
  target_q = tf.constant([[[0.0, 0.0]], [[5.0, INVALID_Q]]])
  td = losses.double_q_td_errors(
    q,
    target_q,
    actions=tf.constant([[1]]),
    rewards=tf.constant([[0.5]]),
    discounts=tf.constant([[0.9]]),
    n_step=1,
    epsilon=None,
  )
  np.testing.assert_allclose(td, [[0.5 + 0.9 * 5.0 - 2.0]])


def test_random_actions_are_uniform_over_the_valid_ones():
  explore = EpsilonGreedy([1.0], [0], _NUM_ACTIONS)
  q = np.array([[INVALID_Q, 0.5, INVALID_Q, 0.1]], np.float32)
  counts = np.bincount([explore(q)[0] for _ in range(2000)], minlength=_NUM_ACTIONS)
  assert counts[[0, 2]].sum() == 0
  assert abs(counts[1] - 1000) < 5 * np.sqrt(2000 / 4)  # five standard deviations


def test_state_without_a_valid_action_is_a_fault_of_the_environment():
  with pytest.raises(EnvironmentFailed, match='action_mask has no valid action'):
    checked(MaskedWorld(num_valid=0)).reset()


@pytest.mark.parametrize(
  ('mask', 'words'),
  [
    (specs.Array((3,), np.int8), r'numbers \[4\], .* not int8 \[3\]'),
    (specs.Array((4,), np.complex64), 'not complex64'),
    ((specs.Array((2,), np.int8),) * 2, 'not a tuple'),
    ({'a': specs.Array((4,), np.int8)}, 'not a dict'),
  ],
  ids=str,
)
def test_mask_that_is_none_is_refused(mask, words):
  observations = {**_SPEC.observations, 'action_mask': mask}
  with pytest.raises(ValueError, match=words):
    R2D2Builder(_CONFIG, _SPEC._replace(observations=observations))
