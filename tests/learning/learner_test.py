"""One learner step against float64 arithmetic and against the traps of others."""

import dataclasses
import itertools
import pickle
from concurrent import futures

import acme
import numpy as np
import pytest
import sonnet as snt
import tensorflow as tf
import tree
from acme import specs
from acme.tf import savers
from acme.utils import counting, loggers

from r2d2_acme.builder import R2D2Builder
from r2d2_acme.config import R2D2Config
from r2d2_acme.learning.learner import R2D2Learner
from r2d2_acme.system import runtime
from r2d2_acme.types import Batch, Observation
from r2d2_acme.workdir import loggers as columns
from tests import helpers, oracles

_NUM_ACTIONS = 3
_SIZE = 5
_CONFIG = R2D2Config(
  burn_in_length=3,
  trace_length=6,
  sequence_period=3,
  n_step=2,
  batch_size=4,
  core_size=8,
  torso_size=7,
  head_size=6,
  target_update_period=3,
  learning_rate=1e-2,
  num_actors=1,
)
_SPEC = specs.EnvironmentSpec(
  observations=specs.Array((_SIZE,), np.float32),
  actions=specs.DiscreteArray(_NUM_ACTIONS),
  rewards=specs.Array((), np.float32),
  discounts=specs.BoundedArray((), np.float32, 0.0, 1.0),
)


def _make_batch(config=_CONFIG, seed=0) -> Batch:
  """Windows: whole; first window; terminated tail; truncated tail."""
  rng = np.random.default_rng(seed)
  rows, burn_in, size = config.sequence_length + 1, config.burn_in_length, 4
  mask = np.ones((rows, size), np.float32)
  mask[:burn_in, 1] = 0
  mask[burn_in + 4 :, 2] = 0
  mask[burn_in + 3 :, 3] = 0
  discount = np.ones((rows, size), np.float32)
  discount[burn_in + 3, 2] = 0
  state = [
    rng.normal(size=(size, 3, config.core_size)).astype(np.float32) for _ in range(2)
  ]
  return Batch(
    observations=Observation(
      rng.normal(size=(rows, size, _SIZE)).astype(np.float32),
      rng.integers(_NUM_ACTIONS, size=(rows, size)).astype(np.int32),
      rng.normal(size=(rows, size)).astype(np.float32) * 3,
    ),
    discount=discount,
    mask=mask,
    core_state=snt.LSTMState(*state),
    learner_steps=np.zeros(size, np.int64),
    keys=np.arange(size, dtype=np.uint64),
    probabilities=np.array([0.1, 0.02, 0.3, 0.05]),
    table_size=np.full(size, 50, np.int64),
  )


def _make_learner(batches, config=_CONFIG):
  builder = R2D2Builder(config, _SPEC)
  batches = (tf.nest.map_structure(tf.constant, batch) for batch in batches)
  return builder.make_learner(batches)


def _shake(variables, seed=1):
  rng = np.random.default_rng(seed)
  for variable in variables:
    variable.assign(variable + 0.3 * rng.normal(size=variable.shape))


def _q_values(network, batch, config):
  """Q of the trace's rows, one `__call__` at a time from the stored state."""
  state = snt.LSTMState(*(x[:, 0] for x in batch.core_state))
  if config.state_strategy == 'zero':
    state = network.initial_state(4)
  q_values = []
  for t in range(config.sequence_length + 1):
    observation = tf.nest.map_structure(lambda x, t=t: x[t], batch.observations)
    q, state = network(observation, state)
    if t < config.burn_in_length:  # padding before an episode leaves no trace
      state = tf.nest.map_structure(
        lambda x, t=t: x * batch.mask[t][:, np.newaxis], state
      )
    else:
      q_values.append(q.numpy())
  return np.stack(q_values).astype(np.float64)  # [T + 1, B, A]


def _expected(learner, batch, config=_CONFIG):
  """TD errors of each window's real transitions, loss and priorities, in float64."""
  q = _q_values(learner.state['network'], batch, config)
  target_q = _q_values(learner.state['target_network'], batch, config)
  burn_in = config.burn_in_length
  weights = (batch.table_size * batch.probabilities) ** -0.6
  weights /= weights.max()
  loss, priorities = 0.0, []
  for b in range(4):
    n = int(batch.mask[burn_in + 1 :, b].sum())  # real transitions
    rows = slice(burn_in + 1, burn_in + 1 + n)
    td_errors = oracles.double_q_td_errors(
      q[: n + 1, b : b + 1],
      target_q[: n + 1, b : b + 1],
      batch.observations.action[rows, b : b + 1],
      batch.observations.reward[rows, b : b + 1].astype(np.float64),
      config.discount * batch.discount[rows, b : b + 1].astype(np.float64),
      config.n_step,
      config.value_rescaling_epsilon if config.value_rescaling else None,
    )[:, 0]
    loss += weights[b] * 0.5 * np.sum(np.square(td_errors)) / 4
    absolute = np.abs(td_errors)
    priorities.append(0.9 * absolute.max() + 0.1 * absolute.mean())
  return loss, np.array(priorities)


def _update(learner, batch):
  """One update, after which the learner's variables are what it made of them."""
  results = learner._run_update(batch, np.array(True))
  with learner.locked:
    return results


@pytest.mark.parametrize('rescaling', [True, False])
@pytest.mark.parametrize('strategy', ['stored', 'zero'])
@pytest.mark.parametrize('burn_in', [0, 3])
def test_loss_and_priorities_match_float64_arithmetic(strategy, burn_in, rescaling):
  config = dataclasses.replace(
    _CONFIG,
    state_strategy=strategy,
    burn_in_length=burn_in,
    value_rescaling=rescaling,
  )
  batch = _make_batch(config)
  learner = _make_learner([], config)
  # Were the target burned in with the online parameters, this would not match.
  _shake(learner.state['target_network'].variables)
  loss, priorities = _expected(learner, batch, config)
  actual_priorities, metrics = _update(learner, batch)
  np.testing.assert_allclose(actual_priorities, priorities, rtol=1e-4)
  np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-4)


def _expected_delta_q(learner, batch, config):
  """[2, B] in float64, each of the actor's states through a call of its own."""
  burn_in, network = config.burn_in_length, learner.state['network']
  lengths = batch.mask[burn_in + 1 :].sum(axis=0).astype(int)
  stored_q = np.zeros([2, 4, _NUM_ACTIONS])
  for b, length in enumerate(lengths):
    for end, row in enumerate((burn_in, burn_in + length)):
      observation = tf.nest.map_structure(
        lambda x, b=b, row=row: x[row, b : b + 1], batch.observations
      )
      state = snt.LSTMState(*(x[b : b + 1, end + 1] for x in batch.core_state))
      stored_q[end, b] = network(observation, state)[0][0]
  return oracles.delta_q(_q_values(network, batch, config), stored_q, lengths)


@pytest.mark.parametrize('strategy', ['stored', 'zero'])
@pytest.mark.parametrize('burn_in', [0, 3])
def test_delta_q_matches_float64_arithmetic_before_the_update(strategy, burn_in):
  config = dataclasses.replace(_CONFIG, state_strategy=strategy, burn_in_length=burn_in)
  batch = _make_batch(config)
  learner = _make_learner([batch], config)
  expected = _expected_delta_q(learner, batch, config)
  learner.step()
  metrics = learner.last_metrics
  with learner.locked:
    after = _expected_delta_q(learner, batch, config)
  actual = [metrics['delta_q_initial'], metrics['delta_q_final']]
  np.testing.assert_allclose(actual, expected, rtol=1e-4)
  assert np.all(expected[1] > 1e-2)
  # The update moved the parameters by far more than the tolerance.
  assert np.abs(after / expected - 1).max() > 1e-2


_EPISODES = [
  [helpers.Episode(length, length % 2 == end) for length in (11, 1, 3, 6, 9, 14, 8, 2)]
  for end in range(2)
]


def _delta_q_of_replay(parameters_changed=False, **overrides):
  """Delta-Q [2, B] of all windows of some episodes; and which start an episode."""
  config = helpers.make_config(trace_length=4, sequence_period=3, **overrides)
  run = helpers.run(config, _EPISODES, image=False)
  network = run.network.network
  if parameters_changed:
    _shake(network.variables)
  batch = helpers.make_batch(run.windows)
  learner = R2D2Learner(network, run.builder.make_network(), iter([batch]), run.config)
  learner.step()
  metrics = learner.last_metrics
  first = batch.observations.observation[config.burn_in_length].numpy()
  starts_episode = np.array([helpers.key_of(x).step == 0 for x in first])
  assert 0 < starts_episode.sum() < len(starts_episode)
  return np.stack(
    [metrics['delta_q_initial'], metrics['delta_q_final']]
  ), starts_episode


@pytest.mark.parametrize('burn_in', [0, 2])
def test_delta_q_is_0_while_the_parameters_that_acted_are_the_learners(burn_in):
  # Were a state of another row compared, padded tails included, this would not hold.
  delta_q, _ = _delta_q_of_replay(burn_in_length=burn_in)
  assert delta_q.max() < 1e-3  # rounding, over values that may be near 0


def test_delta_q_of_a_zero_state_is_0_in_an_episodes_first_window_only():
  delta_q, starts_episode = _delta_q_of_replay(burn_in_length=0, state_strategy='zero')
  assert delta_q[:, starts_episode].max() < 1e-3
  assert delta_q[0, ~starts_episode].min() > 1e-3
  # The state recovers along the trained part.
  initial, final = delta_q[:, ~starts_episode].mean(axis=1)
  assert final < initial


def test_delta_q_shows_changed_parameters_but_not_where_an_episode_starts():
  delta_q, starts_episode = _delta_q_of_replay(parameters_changed=True)
  assert delta_q[0, starts_episode].max() < 1e-3
  assert delta_q[0, ~starts_episode].min() > 1e-3
  assert delta_q[1].min() > 1e-3


def test_row_holds_the_medians_over_the_batch():
  log = loggers.InMemoryLogger()
  batch = _make_batch()._replace(learner_steps=np.array([-1, -2, -3, -6]))
  learner = R2D2Builder(_CONFIG, _SPEC).make_learner(
    iter([tf.nest.map_structure(tf.constant, batch)]),
    counter=counting.Counter(prefix='learner'),
    logger=log,
  )
  learner.step()
  (row,) = log.data
  # A logger leaves out what has no column.
  assert row.keys() <= set(columns.COLUMNS['learner'])
  assert row['parameter_age'] == 1 + (2 + 3) / 2
  for name in ('delta_q_initial', 'delta_q_final'):
    values = learner.last_metrics[name]
    assert values.shape == (4,)
    assert row[name] == pytest.approx(np.sort(values)[1:3].mean())


def test_delta_q_is_left_out_of_steps_without_a_row(monkeypatch):
  monkeypatch.setattr('r2d2_acme.learning.learner._LOG_PERIOD', 1e3)
  batch, log = _make_batch(), loggers.InMemoryLogger()
  learner = R2D2Builder(_CONFIG, _SPEC).make_learner(
    iter([tf.nest.map_structure(tf.constant, batch)] * 3), logger=log
  )
  is_nan = []
  for always in (False, False, True):
    learner.always_diagnose = always
    learner.step()
    is_nan.append(np.isnan(learner.last_metrics['delta_q_initial']).all())
  assert is_nan == [False, True, False]
  (row,) = log.data
  assert np.isfinite(row['delta_q_final'])


def test_stored_state_is_used():
  batch = _make_batch()
  other = batch._replace(
    core_state=tf.nest.map_structure(lambda x: x + 1, batch.core_state)
  )
  losses = [_update(_make_learner([]), x)[1]['loss'] for x in (batch, other)]
  assert losses[0] != losses[1]


def test_first_window_starts_from_exactly_the_initial_state():
  batch = _make_batch()
  # Garbage before the episode's first step: in the state and in what was padded.
  core_state = tf.nest.map_structure(np.copy, batch.core_state)
  observations = tf.nest.map_structure(np.copy, batch.observations)
  for state in core_state:
    state[1] = 7.0
  observations.observation[:3, 1] = 9.0
  observations.reward[:3, 1] = 5.0
  garbage = batch._replace(core_state=core_state, observations=observations)
  clean, _ = _update(_make_learner([]), batch)
  dirty, _ = _update(_make_learner([]), garbage)
  np.testing.assert_array_equal(clean, dirty)


def test_padding_changes_neither_loss_nor_priorities_nor_parameters():
  batch = _make_batch()
  padded = batch.mask == 0
  padded[:3] = False  # in front: see the first window's test
  observations = tf.nest.map_structure(np.copy, batch.observations)
  observations.observation[padded] = 100.0
  observations.reward[padded] = 1e4
  discount = np.where(padded, 0.3, batch.discount).astype(np.float32)
  garbage = batch._replace(observations=observations, discount=discount)
  results = []
  for x in (batch, garbage):
    learner = _make_learner([])
    priorities, metrics = _update(learner, x)
    results.append((priorities, metrics['loss'], metrics['mean_abs_td'], learner))
  np.testing.assert_array_equal(results[0][0], results[1][0])
  np.testing.assert_array_equal(results[0][1], results[1][1])
  np.testing.assert_array_equal(results[0][2], results[1][2])
  for a, b in zip(results[0][3].variables, results[1][3].variables, strict=True):
    np.testing.assert_array_equal(a, b)


def test_convolutions_have_the_torso_dtype():
  spec = _SPEC._replace(observations=specs.BoundedArray((36, 36, 1), np.uint8, 0, 255))
  rng = np.random.default_rng(0)
  vectors = _make_batch()
  shape = (*vectors.mask.shape, 36, 36, _CONFIG.frame_stack)
  images = rng.integers(0, 256, shape).astype(np.uint8)
  batch = vectors._replace(
    observations=vectors.observations._replace(observation=images)
  )
  results = {}
  for dtype in ('float32', 'auto'):
    config = dataclasses.replace(_CONFIG, torso_dtype=dtype)
    learner = R2D2Builder(config, spec).make_learner(iter([]))
    metrics = _update(learner, batch)[1]
    target_q, _ = tf.function(learner.state['target_network'].unroll)(
      tf.nest.map_structure(tf.constant, batch.observations),
      learner.state['target_network'].initial_state(4),
    )
    # Of the online network, and of the target network.
    results[dtype] = np.array([metrics['max_q'], tf.reduce_max(target_q)])
    variables = [*learner.state['network'].variables, *learner.state['optimizer'].v]
    assert {variable.dtype for variable in variables} == {tf.float32}
  is_bfloat16 = results['auto'] != results['float32']
  assert is_bfloat16.tolist() == [runtime.multiplies_bfloat16()] * 2
  np.testing.assert_allclose(results['auto'], results['float32'], rtol=2e-2)


def test_no_gradient_flows_into_burn_in():
  learner = _make_learner([])
  batch = tf.nest.map_structure(tf.constant, _make_batch())
  with tf.GradientTape() as tape:
    tape.watch([batch.observations.observation, batch.core_state])
    loss = learner._update(batch, tf.constant(False))[1]['loss']
  into_frames, into_state = tape.gradient(
    loss,
    [batch.observations.observation, batch.core_state],
    unconnected_gradients=tf.UnconnectedGradients.ZERO,
  )
  assert np.all(into_frames[:3].numpy() == 0)
  assert np.any(into_frames[3:].numpy() != 0)
  for gradient in tf.nest.flatten(into_state):
    assert np.all(gradient.numpy() == 0)


def test_target_follows_every_target_update_period_and_only_then():
  learner = _make_learner([_make_batch(seed=i) for i in range(7)])
  network = learner.state['network'].variables
  target = learner.state['target_network'].variables

  def equal():
    with learner.locked:
      return all(np.array_equal(a, b) for a, b in zip(network, target, strict=True))

  assert equal()
  seen = []
  for _ in range(7):
    learner.step()
    seen.append(equal())
  assert seen == [False, False, True, False, False, True, False]


def test_step_counter_counts_beyond_float32():
  learner = _make_learner([_make_batch()] * 2)
  with learner.locked:
    steps = learner.state['num_steps']
    assert steps.dtype == tf.int64
    steps.assign(2**24)  # where a float32 stands still
  learner.step()
  learner.step()
  assert learner.num_steps == 2**24 + 2


def test_training_fits_a_fixed_batch():
  config = dataclasses.replace(_CONFIG, target_update_period=1000)
  learner = _make_learner(itertools.repeat(_make_batch()), config)
  first = _update(learner, _make_batch())[1]['loss']
  for _ in range(200):
    learner.step()
  last = _update(learner, _make_batch())[1]['loss']
  assert last < 0.2 * first


def test_gradient_norm_is_clipped_but_reported_whole():
  batch = _make_batch()
  small = dataclasses.replace(_CONFIG, max_gradient_norm=1e-6)
  learners = [_make_learner([], _CONFIG), _make_learner([], small)]
  norms = [_update(learner, batch)[1]['gradient_norm'] for learner in learners]
  assert norms[0] == pytest.approx(norms[1]) and norms[0] > 1e-3
  # Adam's first step is scale free, but for its epsilon of 1e-3.
  moments = [max(np.abs(m).max() for m in x._update.optimizer.m) for x in learners]
  assert moments[1] < 1e-6 < moments[0]


def test_importance_weights_weigh_rare_windows_more():
  batch = _make_batch()
  uniform = batch._replace(probabilities=np.full(4, 0.02))
  assert (
    _update(_make_learner([]), uniform)[1]['loss']
    > (_update(_make_learner([]), batch)[1]['loss'])
  )


def test_parameters_that_actors_fetch_are_the_online_ones_and_their_age():
  learner = _make_learner([_make_batch()] * 2)
  learner.step()
  learner.step()
  (values,) = learner.get_variables(['policy'])
  *network, age = values
  assert age == 2
  with learner.locked:
    expected = learner.state['network'].variables
    for value, variable in zip(network, expected, strict=True):
      np.testing.assert_array_equal(value, variable)


def test_a_state_written_under_the_lock_is_what_the_next_step_starts_from():
  """As when a checkpoint is restored after some steps."""
  batches = [_make_batch(seed=i) for i in range(3)]
  learner, other = _make_learner(batches), _make_learner(batches[:1])
  learner.step()
  with learner.locked:
    state = _values(learner)
  learner.step()
  with learner.locked:
    assert not _equal(_values(learner), state)
    for variable, value in zip(_variables(learner), state, strict=True):
      variable.assign(value)
  assert learner.num_steps == 1
  learner.step()
  other.step()
  other._iterator = iter(batches[2:])
  other.step()
  with learner.locked, other.locked:
    assert _equal(_values(learner), _values(other))


def _variables(learner):
  optimizer = learner.state['optimizer']
  return [
    *learner.state['network'].variables,
    *learner.state['target_network'].variables,
    *(optimizer.step, *optimizer.m, *optimizer.v),
    learner.state['num_steps'],
  ]


def _values(learner):
  return [variable.numpy() for variable in _variables(learner)]


def _equal(xs, ys) -> bool:
  return all(map(np.array_equal, xs, ys))


def test_all_who_fetch_after_a_step_get_one_snapshot_that_no_step_changes():
  learner = _make_learner([_make_batch(seed=i) for i in range(3)])
  snapshots, copies = [], []
  for step in range(4):
    (first,), (second,) = (learner.get_variables(['policy']) for _ in range(2))
    assert all(a is b for a, b in zip(first, second, strict=True))
    assert first[-1] == step
    snapshots.append(first)
    copies.append([np.copy(value) for value in first])
    if step < 3:
      learner.step()
  for snapshot, copy in zip(snapshots, copies, strict=True):
    assert _equal(snapshot, copy)
  for before, after in itertools.pairwise(snapshots):
    assert not any(map(np.array_equal, before, after))


def test_version_is_returned_once_and_another_one_after_a_step_or_a_restore():
  learner, other = (_make_learner([_make_batch(seed=i)]) for i in range(2))
  first, (values,) = learner.get_new_variables(['policy'], '')
  assert _equal(values, learner.get_variables(['policy'])[0])
  assert learner.get_new_variables(['policy'], first) == (first, [])
  learner.step()
  other.step()
  second, (values,) = learner.get_new_variables(['policy'], first)
  assert values[-1] == 1
  assert learner.get_new_variables(['policy'], second) == (second, [])
  learner.restore(other.save())  # of as many steps, and other batches
  third, (values,) = learner.get_new_variables(['policy'], second)
  assert _equal(values, other.get_variables(['policy'])[0])
  assert len({first, second, third, other.get_new_variables([], '')[0]}) == 4


def test_snapshot_takes_no_writes():
  learner = _make_learner([_make_batch()])
  for _ in range(2):  # before the first step, and after it
    (snapshot,) = learner.get_variables(['policy'])
    for value in snapshot:
      with pytest.raises(ValueError, match='read-only'):
        value[...] = 7
    snapshot.clear()  # the list is the caller's own
    (again,) = learner.get_variables(['policy'])
    assert len(again) == len(learner.variables)
    if not learner.num_steps:
      learner.step()


@pytest.mark.parametrize('num_steps', [0, 1])
def test_fetch_does_not_wait_for_who_holds_the_learner(num_steps):
  """As a save does, for as long as the disk takes."""
  learner = _make_learner([_make_batch()] * 2)
  for _ in range(num_steps):
    learner.step()
  with futures.ThreadPoolExecutor() as pool, learner.locked:
    fetch = pool.submit(learner.get_variables, ['policy'])
    (values,) = fetch.result(timeout=1)
    assert values[-1] == num_steps


def test_fetch_gives_what_was_written_once_the_lock_is_free():
  learner = _make_learner([_make_batch()])
  learner.step()
  (before,) = learner.get_variables(['policy'])
  with learner.locked:
    for variable in learner.state['network'].variables:
      variable.assign(variable + 1)
    assert _equal(learner.get_variables(['policy'])[0], before)
  (after,) = learner.get_variables(['policy'])
  for a, b in zip(before[:-1], after[:-1], strict=True):
    np.testing.assert_array_equal(a + 1, b)


def test_what_is_written_between_nested_locks_stays():
  learner = _make_learner([_make_batch()] * 2)
  learner.step()
  with learner.locked:
    learner.state['num_steps'].assign(40)
    with learner.locked:
      assert learner.state['num_steps'].numpy() == 40
      learner.state['num_steps'].assign_add(1)
    learner.state['num_steps'].assign_add(1)
  assert learner.num_steps == 42
  learner.step()
  assert learner.num_steps == 43


def test_step_is_refused_to_who_holds_the_learner():
  learner = _make_learner([_make_batch()])
  with learner.locked, pytest.raises(RuntimeError, match='inside `locked`'):
    learner.step()


def test_learner_that_was_restored_goes_on_bit_equal():
  batches = [_make_batch(seed=i) for i in range(5)]
  learner, other = _make_learner(batches), _make_learner(batches[3:])
  for _ in range(3):
    learner.step()
  state = learner.save()
  stored = pickle.dumps(state)  # as Acme's checkpointer stores it
  learner.step()
  learner.step()
  assert pickle.dumps(state) == stored  # a copy
  other.restore(pickle.loads(stored))
  assert other.num_steps == 3
  other.step()
  other.step()
  with learner.locked, other.locked:
    assert _equal(_values(learner), _values(other))
  learner.restore(state)
  learner._iterator = iter(batches[3:])
  learner.step()
  learner.step()
  with learner.locked, other.locked:
    assert _equal(_values(learner), _values(other))


def test_state_of_another_network_is_refused_and_changes_nothing():
  learner = _make_learner([])
  wide = dataclasses.replace(_CONFIG, head_size=9)
  before = _values(learner)
  with pytest.raises(ValueError, match='another network'):
    learner.restore(_make_learner([], wide).save())
  assert _equal(_values(learner), before)


def test_acmes_checkpointer_keeps_what_the_newest_step_left(tmp_path):
  learner, other = _make_learner([_make_batch()] * 2), _make_learner([])
  learner.step()
  for x in (learner, other):
    checkpointer = savers.Checkpointer(
      {'learner': x},
      directory=str(tmp_path),
      add_uid=False,
      time_delta_minutes=0.0,
    )
    checkpointer.save(force=True)
    if x is learner:
      learner.step()
      checkpointer.save(force=True)
  with learner.locked:
    assert _equal(_values(learner), _values(other))


def test_steps_leak_nothing():
  """A call of a function in TensorFlow 2.8's eager runtime keeps 430 bytes."""
  learner = _make_learner(itertools.repeat(_make_batch()))
  assert helpers.growth(learner.step, warm_up=300, num_calls=1_000) < 100_000  # bytes


def test_is_an_acme_learner():
  assert isinstance(_make_learner([]), acme.Learner)


def _spoil(batch, window: int, **values) -> Batch:
  """A batch with one window whose data are not finite."""
  batch = tree.map_structure(np.copy, batch)
  for field, value in values.items():
    array = {
      'reward': batch.observations.reward[5],
      'observation': batch.observations.observation[4],
      'hidden': batch.core_state.hidden,
    }[field]
    array[window] = value
  return batch


_BAD = _spoil(_make_batch(), 2, reward=np.nan)


def _make_counting_learner(batches, max_bad_batches=10):
  """Returns a learner, its updates of priorities, its rows and its counter."""
  updates, counter, logger = [], counting.Counter(), loggers.InMemoryLogger()
  config = dataclasses.replace(_CONFIG, max_bad_batches=max_bad_batches)
  network = R2D2Builder(config, _SPEC).make_network
  learner = R2D2Learner(
    network(),
    network(),
    iter(batches),
    config,
    update_priorities=lambda *update: updates.append(update),
    counter=counter,
    logger=logger,
  )
  return learner, updates, logger.data, counter


_NOT_FINITE = (
  dict(reward=np.nan),
  dict(reward=np.inf),
  dict(reward=1e25),  # the square of a TD error is not finite
  dict(observation=np.nan),
  dict(hidden=np.inf),
)


def test_gradient_that_is_not_finite_changes_nothing_but_its_windows(capsys):
  good = [_make_batch(seed=i) for i in range(4)]
  bad = [_spoil(good[0], 2, **values) for values in _NOT_FINITE]
  # The target network would be copied at step 3.
  learner, updates, rows, counter = _make_counting_learner([*good[:2], *bad, *good[2:]])
  other, *_ = _make_counting_learner(good)
  for _ in range(2):
    learner.step()
    other.step()
  for i in range(len(bad)):
    learner.step()
    keys, priorities = updates[2 + i]
    assert keys.tolist() == [2]
    assert priorities.tolist() == [0.0]
    assert learner.num_steps == counter.get_counts()['steps'] == 2
    with learner.locked, other.locked:
      assert _equal(_values(learner), _values(other))
  for _ in range(2):
    learner.step()
    other.step()
  with learner.locked, other.locked:
    assert _equal(_values(learner), _values(other))
  assert learner.num_steps == counter.get_counts()['steps'] == 4
  assert len(updates) == 4 + len(bad)
  first, second, *_ = capsys.readouterr().err.splitlines()
  assert 'at learner step 2 and this batch is skipped (1 of at most 10 in a' in first
  assert first.endswith(
    'windows that are to blame are not sampled again: 1 of 4, key 2.'
  )
  assert '(2 of at most 10' in second


def test_bad_batches_are_counted_in_the_log(monkeypatch):
  monkeypatch.setattr('r2d2_acme.learning.learner._LOG_PERIOD', 0.0)
  learner, _, rows, _ = _make_counting_learner(
    [_BAD, _make_batch(), _BAD, _make_batch()]
  )
  for _ in range(4):
    learner.step()
  assert [row['bad_batches'] for row in rows] == [1, 2]


def test_where_all_windows_are_bad_the_parameters_are_to_blame(capsys):
  batch = _make_batch()
  learner, updates, *_ = _make_counting_learner([batch])
  with learner.locked:
    for variable in learner.state['network'].trainable_variables:
      variable.assign(tf.fill(variable.shape, np.nan))
  learner.step()
  assert [len(keys) for keys, _ in updates] == [0]
  assert 'the parameters may be' in capsys.readouterr().err


def test_parameters_are_restored_after_so_many_bad_batches_in_a_row(capsys):
  good, bad = _make_batch(), _BAD
  script = [good, bad, bad, good, bad, bad, bad, good, bad, bad, bad, bad, bad, bad]
  learner, *_ = _make_counting_learner(script, max_bad_batches=3)
  learner.step()
  state, restored = learner.save(), []

  def restore():
    restored.append(learner.num_steps)
    learner.restore(state)
    return True

  learner.restore_newest = restore
  for _ in script[1:7]:
    learner.step()
  assert restored == [2]  # not after two of them
  assert _equal(tree.flatten(learner.save()), tree.flatten(state))
  for _ in script[7:11]:
    learner.step()
  assert restored == [2, 2]  # since there was a good one between
  learner.step()
  learner.step()
  with pytest.raises(FloatingPointError, match='not finite in 3 .* restored') as error:
    learner.step()
  assert '\n' not in str(error.value)
  assert len(restored) == 2


def test_without_a_checkpoint_so_many_bad_batches_end_learning():
  learner, *_ = _make_counting_learner([_BAD] * 3, max_bad_batches=3)
  learner.step()
  learner.step()
  with pytest.raises(FloatingPointError, match='there is no checkpoint to restore'):
    learner.step()
