"""The ratio over several servers, with threads for actors and learner."""

import contextlib
import threading
import time

import pytest

from r2d2_acme.replay.ratio import Closed, Ratio
from tests import helpers

pytestmark = pytest.mark.timeout(30)


def _config(**overrides):
  # Sampling may run ahead of inserting, or behind, by 8 samples: 4 windows.
  return helpers.make_config(
    **{
      'min_replay_size': 20,
      'samples_per_insert': 2.0,
      'samples_per_insert_tolerance': 0.2,
      **overrides,
    }
  )


def _is_blocked(work) -> bool:
  thread = threading.Thread(target=work, daemon=True)
  thread.start()
  thread.join(0.1)
  return thread.is_alive()


def test_nothing_is_sampled_and_all_is_inserted_before_the_ratio_begins():
  ratio = Ratio(_config())
  ratio.wait_for_inserts(10**9)
  ratio.add_inserts(10**9)
  taken = []
  assert _is_blocked(lambda: taken.append(ratio.take_samples(1)))
  ratio.begin(20, 0)
  helpers.wait_until(lambda: taken == [1])


def test_bounds_are_those_of_reverbs_limiter():
  ratio = Ratio(_config())
  ratio.begin(20, 0)  # 40 ahead; 32 to 48 are allowed
  ratio.wait_for_inserts(4)
  ratio.add_inserts(4)
  assert _is_blocked(lambda: ratio.wait_for_inserts(1))
  assert ratio.take_samples(100) == 16
  taken = []
  assert _is_blocked(lambda: taken.append(ratio.take_samples(100)))
  ratio.add_inserts(1)
  helpers.wait_until(lambda: taken == [2])


def test_what_was_lost_with_a_server_blocks_nobody_for_long():
  ratio = Ratio(_config())
  ratio.begin(1000, 0)
  assert ratio.take_samples(100) == 16
  ratio = Ratio(_config())
  ratio.begin(1000, 10_000)
  ratio.wait_for_inserts(8)
  ratio.add_inserts(8)
  assert ratio.take_samples(100) == 16


@pytest.mark.parametrize('samples_per_insert, period', [(8.0, 1), (0.5, 4), (1.0, 3)])
def test_neither_side_waits_for_ever_and_the_ratio_holds(samples_per_insert, period):
  """The smallest buffer that a config may have, batches larger than it."""
  config = _config(
    samples_per_insert=samples_per_insert,
    samples_per_insert_tolerance=max(period, 1 / samples_per_insert) / 20,
  )
  ratio = Ratio(config)
  ratio.begin(20, 0)
  counts = {'inserted': 20, 'sampled': 0}

  def insert():
    while counts['inserted'] < 2000:
      ratio.wait_for_inserts(period)
      counts['inserted'] += period
      ratio.add_inserts(period)

  def sample():
    with contextlib.suppress(Closed):
      while True:
        counts['sampled'] += ratio.take_samples(64)

  threading.Thread(target=sample, daemon=True).start()
  insert()
  time.sleep(0.1)
  ahead = counts['inserted'] * samples_per_insert - counts['sampled']
  assert abs(ahead - 20 * samples_per_insert) <= config.error_buffer + 1
  ratio.close()


def test_close_ends_waits():
  ratio = Ratio(_config())
  stopped = threading.Event()

  def wait():
    with pytest.raises(Closed):
      ratio.take_samples(1)
    stopped.set()

  threading.Thread(target=wait, daemon=True).start()
  ratio.close()
  assert stopped.wait(10)
  with pytest.raises(Closed):
    ratio.wait_for_inserts(1)
