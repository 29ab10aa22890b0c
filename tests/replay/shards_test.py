"""Windows on several servers are drawn as from one table, on real servers."""

import contextlib
import functools
import itertools
import signal
import threading
import time

import numpy as np
import portpicker
import pytest
import reverb

from r2d2_acme import builder as builder_lib
from r2d2_acme.builder import R2D2Builder
from r2d2_acme.learning import losses
from r2d2_acme.replay import adder as adder_lib
from r2d2_acme.replay import shards, tables
from tests import helpers
from tests.replay import servers
from tests.replay.stores import add_windows, make_tables, read_infos

pytestmark = pytest.mark.timeout(600)

_SPEC = helpers.make_spec(image=False)
_NUM_SHARDS = 3
_PARTS = (0, 20, 32, 36)  # where the windows of each shard begin, and the last end
_NUM_WINDOWS = _PARTS[-1]
_NUM_DRAWS = 100_000
_NUM_PREFETCHED = 6  # batches that may be drawn before they are asked for


def _config(**overrides):
  return helpers.make_config(
    **{
      'num_replay_shards': _NUM_SHARDS,
      'envs_per_actor': _NUM_SHARDS,
      'burn_in_length': 0,
      'trace_length': 1,
      'sequence_period': 1,
      'n_step': 1,
      'batch_size': 500,
      'min_replay_size': _NUM_WINDOWS,
      'max_replay_size': 1000,
      'samples_per_insert_tolerance': 1e6,  # a test draws as many as it likes
      **overrides,
    }
  )


def _draw_priorities(seed: int) -> np.ndarray:
  """Priorities of which the shards have 71, 27 and 2 %."""
  priorities = np.random.default_rng(seed).uniform(0.1, 3.0, _NUM_WINDOWS)
  priorities[_PARTS[1] :] /= 2
  priorities[_PARTS[2] :] /= 4
  return priorities


def _probabilities(config, priorities: np.ndarray) -> np.ndarray:
  powers = priorities**config.priority_exponent
  return powers / powers.sum()


@contextlib.contextmanager
def _sampling(config, clients):
  sampler = shards.Sampler(clients, config, _SPEC)
  try:
    yield sampler
  finally:
    sampler.close()


@pytest.fixture
def serve_shards(serve):
  def serve_all(config) -> list[reverb.Client]:
    return [
      serve(tables.make_tables(config, _SPEC, shard=shard))
      for shard in range(config.num_replay_shards)
    ]

  return serve_all


def _fill(config, clients, priorities):
  """Adds windows to the shards; the i-th has `learner_steps` i."""
  for client, (begin, end) in zip(clients, itertools.pairwise(_PARTS), strict=True):
    add_windows(config, client, priorities[begin:end], _SPEC, first=begin)


# Of 35 degrees of freedom; larger ones have a probability of 1e-6.
_MAX_CHI_SQUARE = 90.6


def test_frequencies_and_weights_are_those_of_one_table(serve, serve_shards):
  """Also after priorities have gone back, by which each shard becomes another part."""
  config = _config()
  one = serve(make_tables(_config(num_replay_shards=1), _SPEC))
  add_windows(_config(num_replay_shards=1), one, _draw_priorities(0), _SPEC)
  infos = read_infos(one, 3000)
  clients = serve_shards(config)
  update = builder_lib._make_update_priorities(clients)
  counts, expected = np.zeros(_NUM_WINDOWS), np.zeros(_NUM_WINDOWS)
  keys = np.zeros(_NUM_WINDOWS, np.uint64)
  with _sampling(config, clients) as sampler:
    _fill(config, clients, _draw_priorities(0))
    iterator = iter(sampler.make_dataset())
    while not keys.all():
      batch = next(iterator)
      keys[batch.learner_steps.numpy()] = batch.keys
    for seed in range(10):
      priorities = np.roll(_draw_priorities(seed), 7 * seed)
      if seed:
        update(keys, priorities)
        time.sleep(0.2)
        for _ in range(_NUM_PREFETCHED):
          next(iterator)
      p = _probabilities(config, priorities)
      for _ in range(_NUM_DRAWS // 10 // config.batch_size):
        batch = next(iterator)
        drawn = batch.learner_steps.numpy()
        counts += np.bincount(drawn, minlength=_NUM_WINDOWS)
        expected += len(drawn) * p
        np.testing.assert_allclose(batch.probabilities, p[drawn], rtol=1e-9)
      if not seed:  # as in the one table, and so are the weights
        seen = np.array([x in infos for x in drawn])
        assert seen.mean() > 0.9
        table = [infos[x] for x in drawn[seen]]
        beta = config.importance_sampling_exponent
        np.testing.assert_allclose(
          losses.importance_weights(
            batch.probabilities[seen], batch.table_size[seen], beta
          ),
          losses.importance_weights(
            np.array([x.probability for x in table]),
            np.array([x.table_size for x in table]),
            beta,
          ),
          rtol=1e-9,
        )
  assert counts.sum() == _NUM_DRAWS
  chi_square = ((counts - expected) ** 2 / expected).sum()
  assert chi_square < _MAX_CHI_SQUARE


def test_probabilities_are_exact_while_priorities_change(serve_shards):
  """The mean of [i was drawn] / (its probability) is 1, if that is the true one."""
  config = _config(batch_size=100)
  clients = serve_shards(config)
  update = builder_lib._make_update_priorities(clients)
  weights, squares, num_batches = np.zeros(_NUM_WINDOWS), np.zeros(_NUM_WINDOWS), 0
  rng = np.random.default_rng(0)
  with _sampling(config, clients) as sampler:
    _fill(config, clients, _draw_priorities(0))
    iterator = iter(sampler.make_dataset())
    while num_batches * config.batch_size < 20_000:
      batch = next(iterator)
      update(batch.keys.numpy(), rng.uniform(0.1, 3.0, 100).astype(np.float32))
      means = np.bincount(
        batch.learner_steps, 1 / batch.probabilities.numpy(), _NUM_WINDOWS
      )
      weights += means / config.batch_size
      squares += (means / config.batch_size) ** 2
      num_batches += 1
  mean = weights / num_batches
  deviation = np.sqrt((squares / num_batches - mean**2) / num_batches)
  assert (np.abs(mean - 1) < 5 * deviation).all()
  assert deviation.max() < 0.2


def test_batch_has_the_windows_it_says(serve_shards):
  """Rows of one window stay together, however a batch is put together."""
  config = _config(batch_size=50)
  clients = serve_shards(config)
  with _sampling(config, clients) as sampler:
    for shard, client in enumerate(clients):
      add_windows(
        config, client, 12 * [1.0], _SPEC, first=100 * shard, reward=np.float32(shard)
      )
    dataset = sampler.make_dataset()
    single = R2D2Builder(config, _SPEC).make_dataset('localhost:1')
    assert dataset.element_spec == single.element_spec
    batch = next(iter(dataset))
  assert len(set(batch.learner_steps.numpy() // 100)) == _NUM_SHARDS
  for row in batch.observations.reward:
    np.testing.assert_array_equal(row, batch.learner_steps.numpy() // 100)


def test_priorities_of_zero_are_drawn_as_from_one_table(serve_shards):
  config = _config(batch_size=200)
  clients = serve_shards(config)
  with _sampling(config, clients) as sampler:
    _fill(config, clients, np.repeat([0.0, 1.0, 0.0], np.diff(_PARTS)))
    iterator = iter(sampler.make_dataset())
    for _ in range(3):
      drawn = next(iterator).learner_steps.numpy()
      assert ((_PARTS[1] <= drawn) & (drawn < _PARTS[2])).all()


def test_environments_write_to_the_shards_in_turn(serve_shards):
  """The environments 4 to 7 of all, to the shards 1, 2, 0, 1."""
  config = _config(num_actors=2, envs_per_actor=4)
  clients = serve_shards(config)
  actor = R2D2Builder(config, _SPEC).make_actor(1, replay_clients=clients)
  script = [helpers.Episode(length=1, terminates=True)]
  environments = [helpers.ScriptedEnvironment(script, i, image=False) for i in range(4)]
  helpers.play(environments, actor)
  actor.flush()
  assert [tables.size(client) for client in clients] == [1, 2, 1]
  del actor


def _play(config, client, stop: threading.Event, priority: float):
  """Adds windows as fast as it may."""
  with contextlib.suppress(adder_lib.Stopped):
    while not stop.is_set():
      add_windows(config, client, 10 * [priority], _SPEC, should_stop=stop.is_set)


@contextlib.contextmanager
def _playing(config, clients, priorities):
  stop = threading.Event()
  threads = [
    threading.Thread(target=_play, args=(config, client, stop, x), daemon=True)
    for client, x in zip(clients, priorities, strict=True)
  ]
  for thread in threads:
    thread.start()
  try:
    yield
  finally:
    stop.set()
    for thread in threads:
      thread.join(10)


def _count(clients) -> tuple[list[int], int]:
  """Returns inserted windows by shard, and all sampled ones."""
  limiters = [helpers.table_info(client).rate_limiter_info for client in clients]
  inserted = [limiter.insert_stats.completed for limiter in limiters]
  return inserted, sum(limiter.sample_stats.completed for limiter in limiters)


@pytest.mark.parametrize('learner_pause', [0.0, 0.02])
def test_ratio_is_that_of_all_shards_however_unequal(serve_shards, learner_pause):
  """The last shard has 1 % of the priorities, but a third of the inserts."""
  config = _config(
    batch_size=16,
    min_replay_size=60,
    samples_per_insert=4.0,
    samples_per_insert_tolerance=0.1,
  )
  clients = serve_shards(config)
  with (
    _sampling(config, clients) as sampler,
    _playing(config, clients, [1.0, 1.0, 0.01]),
  ):
    iterator = iter(sampler.make_dataset())
    # On its way: windows that wait at the gates, what these let in, and batches.
    waiting = 3 * (adder_lib._MAX_PENDING_ITEMS + tables.gate_period(config))
    slack = waiting * config.samples_per_insert + _NUM_PREFETCHED * config.batch_size
    seen = []
    for i in range(250):
      next(iterator)
      time.sleep(learner_pause)
      if i % 50 == 0:
        inserted = _count(clients)[0]
        seen.append((sum(inserted), (i + 1) * config.batch_size))
  # The sampler looks ten times a second whether `min_replay_size` windows are there, so
  # it begins with more, and with those it ends.
  ahead = [i * config.samples_per_insert - s for i, s in seen]
  assert max(ahead) - min(ahead) <= 2 * config.error_buffer + slack
  num_inserted, num_sampled = np.subtract(seen[-1], seen[0])
  assert num_sampled / num_inserted == pytest.approx(4.0, rel=0.1)
  assert max(inserted) < 2 * min(inserted)  # no shard's actors are held back for it


def test_actors_wait_while_nobody_samples(serve_shards):
  config = _config(
    min_replay_size=60, samples_per_insert=1.0, samples_per_insert_tolerance=0.1
  )
  clients = serve_shards(config)
  with _sampling(config, clients), _playing(config, clients, 3 * [1.0]):
    helpers.wait_until(lambda: sum(_count(clients)[0]) >= 60)
    helpers.wait_until(lambda: _stands_still(clients), timeout=20)
    assert _count(clients)[1] == 0


def _stands_still(clients) -> bool:
  before = _count(clients)
  time.sleep(1.0)
  return _count(clients) == before


def test_sizes_are_totals(serve_shards):
  config = _config(max_replay_size=10, min_replay_size=10)
  clients = serve_shards(config)
  sizes = [helpers.table_info(client).max_size for client in clients]
  assert sizes == [4, 3, 3]
  with _sampling(config, clients) as sampler:
    iterator = iter(sampler.make_dataset())
    first = threading.Thread(target=next, args=(iterator,), daemon=True)
    first.start()
    for i, client in enumerate(clients):
      first.join(0.3)
      assert first.is_alive()
      helpers.wait_until(sampler.is_starved)
      add_windows(config, client, sizes[i] * [1.0], _SPEC)
    first.join(20)
    assert not first.is_alive()
    helpers.wait_until(lambda: not sampler.is_starved())
    assert set(next(iterator).table_size.numpy()) == {10}


def _server_process(port: int, config):
  return servers.process(
    port, functools.partial(tables.make_tables, config, _SPEC, shard=0)
  )


def test_lost_shard_costs_its_windows_and_is_used_again(serve_shards):
  config = _config(batch_size=30)
  clients = serve_shards(config)
  port = portpicker.pick_unused_port()
  clients[2] = reverb.Client(f'localhost:{port}')

  def drawn(iterator) -> set[int]:
    return {_shard_of(x) for x in next(iterator).learner_steps.numpy()}

  with (
    _server_process(port, config) as (process, start),
    _server_process(port, config) as (_, start_again),
    _sampling(config, clients) as sampler,
  ):
    iterator = iter(sampler.make_dataset())
    start()
    _fill(config, clients, np.ones(_NUM_WINDOWS))
    helpers.wait_until(lambda: drawn(iterator) == {0, 1, 2})
    process.send_signal(signal.SIGKILL)
    process.wait()
    begun = time.monotonic()
    helpers.wait_until(lambda: drawn(iterator) == {0, 1})
    for _ in range(50):
      batch = next(iterator)
      assert batch.learner_steps.numpy().max() < _PARTS[2]
      np.testing.assert_allclose(batch.probabilities, 1 / _PARTS[2])
      np.testing.assert_array_equal(batch.table_size, _PARTS[2])
    assert time.monotonic() - begun < 20
    start_again()  # empty
    for _ in range(20):
      assert 2 not in drawn(iterator)
    # An actor has a client of its own.
    client = reverb.Client(f'localhost:{port}')
    add_windows(config, client, 4 * [1.0], _SPEC, first=_PARTS[2])
    helpers.wait_until(lambda: 2 in drawn(iterator))


@pytest.mark.parametrize('with_servers', [True, False])
def test_closed_sampler_has_no_threads(with_servers):
  """Those that waited at a gate of a server without end used a core in the end."""
  config = _config()
  before = set(threading.enumerate())
  started = [
    helpers.start_server(tables.make_tables(config, _SPEC, shard=shard))
    for shard in range(config.num_replay_shards)
  ]
  with _sampling(config, [client for _, client in started]):
    time.sleep(0.5)
    assert set(threading.enumerate()) - before
    if not with_servers:
      for server, _ in started:
        server.stop()
  helpers.wait_until(lambda: not set(threading.enumerate()) - before)
  for server, _ in started:
    server.stop()


def test_close_in_the_middle_of_a_batch_ends_the_dataset_soon(
  serve_shards, monkeypatch
):
  config = _config()
  clients = serve_shards(config)
  with _sampling(config, clients) as sampler:
    _fill(config, clients, np.ones(_NUM_WINDOWS))
    iterator = iter(sampler.make_dataset())
    next(iterator)
    ask = sampler._shards[0].ask

    def close_and_ask(number: int):
      sampler.close()
      ask(number)

    monkeypatch.setattr(sampler._shards[0], 'ask', close_and_ask)
    begun = time.monotonic()
    for _ in iterator:  # batches that were there already, and then the end
      pass
    assert time.monotonic() - begun < 5.0


def _shard_of(window: int) -> int:
  return int(np.searchsorted(_PARTS, window, side='right')) - 1


def test_learner_that_waits_on_a_dead_connection_goes_on(serve_shards):
  config = _config(
    min_replay_size=60,
    batch_size=20,
    samples_per_insert=1.0,
    samples_per_insert_tolerance=0.1,
  )
  clients = serve_shards(config)
  port = portpicker.pick_unused_port()
  clients[0] = reverb.Client(f'localhost:{port}')
  batches = []

  def learn(dataset):
    for batch in dataset:
      batches.append(batch)

  with (
    contextlib.ExitStack() as stack,
    _server_process(port, config) as (_, start),
    contextlib.closing(servers.Relay(port)) as relay,
  ):
    start()
    through = [reverb.Client(f'localhost:{relay.port}'), *clients[1:]]
    sampler = stack.enter_context(_sampling(config, through))
    threading.Thread(target=learn, args=(sampler.make_dataset(),), daemon=True).start()
    with _playing(config, clients, 3 * [1.0]):
      helpers.wait_until(lambda: len(batches) > 5)
    helpers.wait_until(lambda: all(sampler.is_starved() for _ in range(5)))
    time.sleep(1.0)
    num_batches = len(batches)
    relay.cut()
    with _playing(config, clients[:1], [1.0]):  # whose gate the learner has asked
      helpers.wait_until(lambda: not sampler.is_starved())
      helpers.wait_until(lambda: len(batches) > num_batches + 2)
