"""Tests of the adder: what replay returns is what was lived.

Most run the real actor, table and dataset over scripted episodes (`helpers.py`) and
look every row of every window up in the environments' and the network's own accounts.
"""

import contextlib
import functools
import threading
import time

import numpy as np
import portpicker
import pytest
import reverb
import sonnet as snt
import tensorflow as tf
import tree
from acme import specs

from r2d2_acme.learning import priorities
from r2d2_acme.learning.learner import R2D2Learner
from r2d2_acme.replay import adder as adder_lib
from r2d2_acme.replay import tables
from r2d2_acme.replay.priority_updater import PriorityUpdater
from r2d2_acme.types import Step
from tests import helpers, oracles
from tests.helpers import Episode, Key
from tests.replay import servers

# S, T and n are the sequence period, the trace length and n_step.
RUNS = {
  'S = T': dict(burn_in_length=2, trace_length=4, sequence_period=4),
  'S < T': dict(burn_in_length=3, trace_length=5, sequence_period=3, n_step=3),
  'S < burn-in': dict(burn_in_length=5, trace_length=3, sequence_period=2),
  'S = 1': dict(burn_in_length=1, trace_length=2, sequence_period=1, n_step=1),
  'S = 1, long burn-in': dict(
    burn_in_length=14,
    trace_length=2,
    sequence_period=1,
    n_step=1,
    max_replay_size=3000,
  ),
  'no burn-in': dict(burn_in_length=0, trace_length=4, sequence_period=4, n_step=4),
  'no burn-in, S < T': dict(burn_in_length=0, trace_length=4, sequence_period=3),
  'blocks of S / 2': dict(burn_in_length=2, trace_length=22, sequence_period=22),
  'S prime': dict(burn_in_length=2, trace_length=23, sequence_period=23),
  'single frames': dict(burn_in_length=2, trace_length=4, frame_stack=1),
  'vectors': dict(burn_in_length=3, trace_length=4, n_step=4),
  'unscaled': dict(burn_in_length=2, trace_length=4, value_rescaling=False),
  'trajectories': dict(
    burn_in_length=0, trace_length=12, sequence_period=12, state_strategy='zero'
  ),
}
_MAX_LENGTHS = 24  # of episodes, where windows are long


@pytest.fixture(scope='module', params=RUNS)
def run(request) -> helpers.Run:
  """Two environments play episodes of all lengths up to more than two windows.

  Where windows are long, it is not all lengths but some.
  """
  config = helpers.make_config(**RUNS[request.param])
  longest = 2 * config.sequence_length + 3
  if request.param == 'trajectories':
    longest = config.trace_length
  rng = np.random.default_rng(0)
  lengths = 1 + rng.permutation(longest)[:_MAX_LENGTHS]
  terminates = rng.random(len(lengths)) < 0.5
  return helpers.run(
    config,
    # Each length ends in both ways.
    [
      [Episode(*episode) for episode in zip(lengths, terminates, strict=True)],
      [Episode(*episode) for episode in zip(lengths, ~terminates, strict=True)],
    ],
    image=request.param != 'vectors',
  )


def num_transitions(run: helpers.Run, key: Key) -> int:
  return run.episodes[key.environment][key.episode].length


def first_trained(run: helpers.Run, window) -> Key:
  return helpers.key_of(window.observations.observation[run.config.burn_in_length])


def rows_of(run: helpers.Run, window):
  """(row, key) of the rows that must be real, counted from the first trained one."""
  first = first_trained(run, window)
  for row in range(run.config.sequence_length + 1):
    key = first._replace(step=first.step + row - run.config.burn_in_length)
    if 0 <= key.step <= num_transitions(run, key):
      yield row, key


def test_each_transition_is_trained(run):
  counts = dict.fromkeys((key for key in run.tape if key.step > 0), 0)
  for window in run.windows:
    for row in range(run.config.burn_in_length + 1, run.config.sequence_length + 1):
      if window.mask[row]:  # a transition is named by the row it leads to
        counts[helpers.key_of(window.observations.observation[row])] += 1
  assert len(counts) == sum(
    episode.length for script in run.episodes for episode in script
  )
  assert min(counts.values()) >= 1
  if run.config.sequence_period == run.config.trace_length:
    assert max(counts.values()) == 1


def test_windows_tile_each_episode(run):
  config = run.config
  expected = []
  for environment, script in enumerate(run.episodes):
    for index, episode in enumerate(script):
      start, end = 0, 0  # of the last window, in transitions
      while end < episode.length:
        expected.append(Key(environment, index, start))
        end = start + config.trace_length
        start += config.sequence_period
  assert [first_trained(run, window) for window in run.windows] == expected


def test_windows_hold_the_steps_in_order_and_mask_the_rest(run):
  for window in run.windows:
    rows = dict(rows_of(run, window))
    expected_mask = [row in rows for row in range(len(window.mask))]
    np.testing.assert_array_equal(window.mask, expected_mask)
    for row, key in rows.items():
      assert helpers.key_of(window.observations.observation[row]) == key


def test_inputs_are_restacked_as_the_network_saw_them(run):
  for window in run.windows:
    for row, key in rows_of(run, window):
      tree.map_structure(
        np.testing.assert_array_equal,
        tree.map_structure(lambda x: x[row], window.observations),  # noqa: B023
        run.network.acted[key].observation,
      )


def test_rows_hold_the_transition_that_led_to_them(run):
  for window in run.windows:
    for row, key in rows_of(run, window):
      assert window.observations.action[row] == run.tape[key].action
      assert window.observations.reward[row] == np.float32(run.tape[key].reward)
      assert window.discount[row] == run.tape[key].discount


def test_previous_action_and_reward_are_0_at_an_episodes_start(run):
  actions = [key for key in run.tape if run.tape[key].action]
  assert len(actions) > len(run.tape) / 3  # else zeros would prove nothing
  starts = 0
  for window in run.windows:
    for row, key in rows_of(run, window):
      if key.step == 0:
        starts += 1
        assert window.observations.action[row] == 0
        assert window.observations.reward[row] == 0
        assert window.discount[row] == 1
  assert starts >= sum(len(script) for script in run.episodes)


def test_discount_is_0_exactly_at_terminations(run):
  for window in run.windows:
    for row, key in rows_of(run, window):
      episode = run.episodes[key.environment][key.episode]
      terminated = episode.terminates and key.step == episode.length
      assert window.discount[row] == (0 if terminated else 1)


def test_stored_states_are_the_actors(run):
  config = run.config
  for window in run.windows:
    first = first_trained(run, window)
    last_step = min(first.step + config.trace_length, num_transitions(run, first))
    steps = [first.step - config.burn_in_length, first.step, last_step]
    for i, step in enumerate(steps):
      state = tree.map_structure(lambda x: x[i], window.core_state)  # noqa: B023
      if step <= 0:
        assert not np.any(tree.flatten(state))
      else:
        acted = run.network.acted[first._replace(step=step)]
        tree.map_structure(np.testing.assert_array_equal, state, acted.core_state)


def replay_q(run: helpers.Run, states):
  """The learner's calls: Q of the trained rows [trace + 1, B, A] from states [B]."""
  batch = helpers.make_batch(run.windows)
  burn_in, network = run.config.burn_in_length, run.network.network
  context = tree.map_structure(lambda x: x[:burn_in], batch.observations)
  trace = tree.map_structure(lambda x: x[burn_in:], batch.observations)
  if burn_in:
    states = network.burn_in(context, states, batch.mask[:burn_in])
  return network.unroll(trace, states)[0].numpy()


def replay_error(run: helpers.Run, q):
  """Largest difference, in all trained rows of each window, to what the actor saw."""
  errors = np.zeros(len(run.windows))
  for i, window in enumerate(run.windows):
    for row, key in rows_of(run, window):
      trained_row = row - run.config.burn_in_length
      if trained_row >= 0:
        difference = np.abs(q[trained_row, i] - run.network.acted[key].q)
        errors[i] = max(errors[i], difference.max())
  return errors


def test_q_from_the_stored_state_is_the_actors_at_every_step(run):
  stored = tree.map_structure(
    lambda *xs: tf.stack(xs)[:, 0], *(window.core_state for window in run.windows)
  )
  if run.config.state_strategy == 'zero':
    stored = tree.map_structure(tf.zeros_like, stored)
  # Float32: one step adds products in another order than an unroll.
  assert replay_error(run, replay_q(run, stored)).max() < 1e-5


def test_q_from_a_neighbouring_steps_state_is_not_the_actors(run):
  """The test above can tell: off by one, and by the burn-in."""
  config = run.config
  if config.state_strategy == 'zero':
    pytest.skip('the stored state is not used')
  for shift in {-1, 1, config.burn_in_length or 1}:
    states, shifted = [], []
    for window in run.windows:
      first = first_trained(run, window)
      step = first.step - config.burn_in_length
      key = first._replace(step=step + shift)
      # Windows that start in padding do not depend on their state.
      shifted.append(step > 0 and key in run.network.acted)
      state = tree.map_structure(lambda x: x[0], window.core_state)
      states.append(run.network.acted[key].core_state if shifted[-1] else state)
    states = tree.map_structure(lambda *xs: tf.stack(xs), *states)
    errors = replay_error(run, replay_q(run, states))
    assert sum(shifted) > len(run.windows) / 4
    assert np.median(errors[shifted]) > 1e-4
    assert errors[np.logical_not(shifted)].max() < 1e-5


def test_priority_is_the_learners_formula_on_the_acted_q(run):
  config = run.config
  for window, priority in zip(run.windows, run.priorities, strict=True):
    first = first_trained(run, window)
    length = min(config.trace_length, num_transitions(run, first) - first.step)
    keys = [first._replace(step=first.step + t) for t in range(length + 1)]
    q = np.stack([run.network.acted[key].q for key in keys]).astype(np.float64)
    transitions = [run.tape[key] for key in keys[1:]]
    td_errors = oracles.double_q_td_errors(
      q[:, None],
      q[:, None],
      np.array([[transition.action] for transition in transitions]),
      np.array([[transition.reward] for transition in transitions]),
      config.discount * np.array([[t.discount] for t in transitions]),
      config.n_step,
      config.value_rescaling_epsilon if config.value_rescaling else None,
    )
    expected = oracles.sequence_priorities(
      td_errors, np.ones([length, 1]), config.priority_eta
    )
    # Float32: values of about 1, a few roundings.
    np.testing.assert_allclose(priority, expected[0], rtol=1e-4, atol=1e-5)


def test_priorities_differ_and_are_positive(run):
  assert run.priorities.min() > 0
  assert len(np.unique(run.priorities)) > 0.9 * len(run.priorities)


class _PrioritySink:
  """In place of a Reverb client: keeps the learner's updates."""

  def __init__(self):
    self.written = threading.Event()
    self.updates: dict[int, float] = {}

  def mutate_priorities(self, table, updates):
    assert table == tables.TABLE
    self.updates.update(updates)
    self.written.set()


# Tracing the learner takes seconds: not for all runs.
@pytest.mark.parametrize('run', ['S < T', 'no burn-in', 'unscaled'], indirect=True)
def test_learner_with_the_actors_parameters_finds_the_actors_priorities(run):
  client = _PrioritySink()
  learner = R2D2Learner(
    run.network.network,
    run.builder.make_network(),
    iter([helpers.make_batch(run.windows)]),
    run.config,
    update_priorities=PriorityUpdater(client).update,
  )
  learner.step()
  assert client.written.wait(60)
  learned = [client.updates[int(window.keys)] for window in run.windows]
  # Float32, and TD errors are differences of values: 1e-5 of those of about 10.
  np.testing.assert_allclose(run.priorities, learned, rtol=1e-4, atol=1e-4)


# What follows drives the adder by hand.


def make_adder(config, client, **kwargs) -> adder_lib.WindowAdder:
  kwargs.setdefault('priority_fn', lambda *_: 1.0)
  return adder_lib.WindowAdder(client, config, COUNTING_SPEC, **kwargs)


# Observations [1]: row t of an episode holds 10 + t.
COUNTING_SPEC = helpers.make_spec(image=False)._replace(
  observations=specs.Array((1,), np.float32)
)


def add_row(
  adder,
  t: int,
  *,
  last: bool,
  terminates: bool = True,
  first: bool = False,
  q: float = 0.0,
  reward: float | None = None,
):
  """Action 20 + t and reward 30 + t follow row t by default; its state is 40 + t."""
  if reward is None:
    reward = 30 + t - 1 if t else 0
  step = Step(
    observation=np.array([10 + t], np.float32),
    action=np.int32(20 + t - 1 if t else 0),
    reward=np.float32(reward),
    discount=np.float32(not (last and terminates)),
    mask=np.float32(1),
  )
  state = snt.LSTMState(
    hidden=np.array([40 + t], np.float32), cell=np.array([-40 - t], np.float32)
  )
  adder.add(
    step,
    state,
    np.full(3, q, np.float32),
    last=last,
    first=first,
    learner_steps=50 + t,
  )


def add_episode(adder, length: int, terminates: bool = True):
  for t in range(length + 1):
    add_row(adder, t, last=t == length, terminates=terminates)


def read_windows(client):
  """All windows of a table with exponent 0, by their age."""
  size = helpers.table_info(client).current_size
  windows = {}
  while len(windows) < size:
    for sample in client.sample(
      tables.TABLE, emit_timesteps=False, unpack_as_table_signature=True
    ):
      windows[sample.info.key] = sample.data
  return sorted(windows.values(), key=lambda window: window.learner_steps)


def make_counting_tables(config, rate_limiter=None):
  if rate_limiter is None:
    rate_limiter = reverb.rate_limiters.MinSize(1)
  return tables.make_tables(config, COUNTING_SPEC, rate_limiter)


@pytest.fixture(name='config')
def make_config():
  return helpers.make_config(
    burn_in_length=2,
    trace_length=3,
    sequence_period=2,
    core_size=1,
    priority_exponent=0.0,
  )


def test_two_windows_written_out(serve, config):
  client = serve(make_counting_tables(config))
  add_episode(make_adder(config, client), length=4)
  first, second = read_windows(client)

  # Rows -2 to 3; the transitions 0, 1, 2 are trained.
  frames = first.steps.observation.ravel()  # in three blocks of two
  np.testing.assert_array_equal(frames, [0, 0, 10, 11, 12, 13])
  np.testing.assert_array_equal(first.steps.action, [0, 0, 0, 20, 21, 22])
  np.testing.assert_array_equal(first.steps.reward, [0, 0, 0, 30, 31, 32])
  np.testing.assert_array_equal(first.steps.discount[2:], [1, 1, 1, 1])
  np.testing.assert_array_equal(first.steps.mask, [0, 0, 1, 1, 1, 1])
  states = [state.hidden[0] for state in first.core_state]
  np.testing.assert_array_equal(states, [0, 40, 43])
  assert first.learner_steps == 53

  # Rows 0 to 5, of which the last is padding; the transitions 2 and 3 are trained.
  frames = second.steps.observation.ravel()
  np.testing.assert_array_equal(frames, [10, 11, 12, 13, 14, 0])
  np.testing.assert_array_equal(second.steps.action, [0, 20, 21, 22, 23, 0])
  np.testing.assert_array_equal(second.steps.reward, [0, 30, 31, 32, 33, 0])
  np.testing.assert_array_equal(second.steps.discount[:-1], [1, 1, 1, 1, 0])
  np.testing.assert_array_equal(second.steps.mask, [1, 1, 1, 1, 1, 0])
  states = [state.cell[0] for state in second.core_state]
  np.testing.assert_array_equal(states, [-40, -42, -44])
  assert second.learner_steps == 54


def test_a_window_is_written_with_its_last_row(serve, config):
  client = serve(make_counting_tables(config))
  adder = make_adder(config, client)
  for t in range(config.trace_length):
    add_row(adder, t, last=False)
  assert adder.num_windows == 0
  add_row(adder, config.trace_length, last=False)
  assert adder.num_windows == 1
  adder.flush()
  assert helpers.table_info(client).current_size == 1


def test_an_environment_may_have_one_action(serve, config):
  spec = COUNTING_SPEC._replace(actions=specs.DiscreteArray(1))
  client = serve(make_counting_tables(config))
  priority_fn = priorities.make_priority_fn(config)
  adder = adder_lib.WindowAdder(client, config, spec, priority_fn)
  for t in range(5):
    q = np.array([float(t)], np.float32)
    step = Step(np.zeros(1, np.float32), 0, 0.0, 1.0, 1.0)
    adder.add(step, snt.LSTMState(*np.zeros([2, 1], np.float32)), q, last=t == 4)
  assert len(read_windows(client)) == 2


def test_a_long_episode_does_not_need_more_memory(serve, config):
  client = serve(make_counting_tables(config))
  adder = make_adder(config, client)
  sizes = []
  for t in range(300):
    add_row(adder, t, last=False)
    sizes.append(len(adder._writer._states))
  assert max(sizes[150:]) == max(sizes[:150]) <= config.sequence_length + 1


def test_an_episode_without_transitions_leaves_nothing(serve, config):
  client = serve(make_counting_tables(config))
  adder = make_adder(config, client)
  add_row(adder, 0, last=True)
  assert adder.num_windows == 0
  add_episode(adder, 1)
  (window,) = read_windows(client)
  np.testing.assert_array_equal(window.steps.mask, [0, 0, 1, 1, 0, 0])


@pytest.mark.parametrize('priority', [np.nan, np.inf])
def test_a_priority_that_is_not_finite_is_an_error(serve, config, priority):
  """In Reverb it would end the table: all sides would wait for ever."""
  client = serve(make_counting_tables(config))
  with pytest.raises(FloatingPointError, match=f'{priority}.* not finite'):
    add_episode(make_adder(config, client, priority_fn=lambda *_: priority), 1)
  add_episode(make_adder(config, client), 1)
  assert len(read_windows(client)) == 1


@pytest.mark.parametrize('field', ['q', 'reward'])
def test_what_is_not_finite_is_an_error_whatever_the_priority(serve, config, field):
  client = serve(make_counting_tables(config))
  adder = make_adder(config, client, priority_fn=lambda *_: 1.0)
  add_row(adder, 0, last=False)
  with pytest.raises(FloatingPointError, match='not finite'):
    add_row(adder, 1, last=True, **{field: np.inf})
  assert adder.num_windows == 0


@pytest.mark.parametrize('num_rows', range(2, 9))
def test_an_interrupted_call_loses_its_episode_and_spoils_nothing(
  serve, config, num_rows
):
  """Ctrl-C may come at any place; here it comes where a window gets its priority."""
  is_interrupted = False

  def priority_fn(*unused):
    if is_interrupted:
      raise KeyboardInterrupt
    return 1.0

  client = serve(make_counting_tables(config))
  adder = make_adder(config, client, priority_fn=priority_fn)
  for t in range(num_rows):
    is_interrupted = t == num_rows - 1
    with contextlib.suppress(KeyboardInterrupt):
      add_row(adder, t, last=is_interrupted, first=t == 0)
  is_interrupted = False
  before = adder.num_windows
  for t in (3, 4, 5, 6):  # somebody goes on in mid-episode: nothing is taken
    add_row(adder, t, last=False)
  assert adder.num_windows == before
  for _ in range(2):
    add_row(adder, 0, last=False, first=True)
    for t in range(1, 7):
      add_row(adder, t, last=t == 6)
  alone = serve(make_counting_tables(config))
  add_episode(make_adder(config, alone), 6)
  expected = read_windows(alone)
  written = read_windows(client)
  assert adder.num_windows - before == 2 * len(expected)
  for window in written:
    assert any(
      all(
        np.array_equal(a, b)
        for a, b in zip(tree.flatten(window), tree.flatten(other), strict=True)
      )
      for other in expected
    )


@pytest.mark.parametrize('length, num_ahead', [(1000, 5), (3, 1)])
def test_add_waits_for_the_limiter_says_so_and_stops_when_told(
  serve, monkeypatch, caplog, config, length, num_ahead
):
  """Inside a long episode, and at the end of a short one."""
  monkeypatch.setattr(adder_lib, '_STALL_PERIOD', 0.4)
  (table,) = tables.make_tables(config, COUNTING_SPEC)
  client = serve([table])
  max_inserts = config.min_replay_size + int(config.error_buffer)  # ratio 1
  stop = threading.Event()
  adder = make_adder(config, client, should_stop=stop.is_set)
  stopped = []

  def act():
    try:
      while True:
        add_episode(adder, length)
    except adder_lib.Stopped:
      stopped.append(True)

  thread = threading.Thread(target=act, daemon=True)
  thread.start()
  try:
    helpers.wait_until(lambda: table.info.current_size == max_inserts)
    time.sleep(0.7)  # longer than the adder waits before it asks `should_stop`
    assert thread.is_alive()
    assert table.info.current_size == max_inserts
    assert adder.num_windows <= max_inserts + num_ahead
    assert 'Acting has waited for ' in caplog.text
    # It goes on with the learner.
    list(client.sample(tables.TABLE, 3, emit_timesteps=False))
    helpers.wait_until(lambda: table.info.current_size == max_inserts + 3)
    assert adder.num_windows <= max_inserts + 3 + num_ahead
  finally:
    stop.set()
  thread.join(60)
  assert stopped


def test_adder_that_waits_on_a_dead_connection_goes_on(config):
  """The server may take more windows, but its answers do not come."""
  port = portpicker.pick_unused_port()
  make = functools.partial(tables.make_tables, config, COUNTING_SPEC)
  max_inserts = config.min_replay_size + int(config.error_buffer)  # ratio 1
  client, stop = reverb.Client(f'localhost:{port}'), threading.Event()

  def size() -> int:
    return helpers.table_info(client).current_size

  def act(adder):
    with contextlib.suppress(adder_lib.Stopped):
      while True:
        add_episode(adder, 100)

  with (
    servers.process(port, make) as (_, start),
    contextlib.closing(servers.Relay(port)) as relay,
  ):
    start()
    through = reverb.Client(f'localhost:{relay.port}')
    adder = make_adder(config, through, should_stop=stop.is_set)
    thread = threading.Thread(target=act, args=(adder,), daemon=True)
    thread.start()
    try:
      helpers.wait_until(lambda: size() == max_inserts)
      time.sleep(1.0)
      relay.cut()
      learner = threading.Thread(
        target=lambda: list(client.sample(tables.TABLE, 100, emit_timesteps=False)),
        daemon=True,
      )
      learner.start()
      helpers.wait_until(lambda: size() > max_inserts + 50)
    finally:
      stop.set()
    thread.join(60)
    assert not thread.is_alive()
