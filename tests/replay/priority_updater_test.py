"""Tests of `PriorityUpdater` on real Reverb tables."""

import gc
import re
import time

import numpy as np
import pytest
import reverb

from r2d2_acme.replay import priority_updater
from r2d2_acme.replay.priority_updater import PriorityUpdater
from tests import helpers
from tests.replay.stores import add_windows, make_tables, read_infos

_UPDATE = (np.array([1], np.uint64), np.float32([1]))  # of a window that is gone


class TestPriorityUpdater:
  def test_update_changes_the_tables_priorities(self, serve):
    config = helpers.make_config(priority_exponent=0.0)
    client = serve(make_tables(config))
    add_windows(config, client, [1.0, 2.0, 3.0])
    keys = {i: info.key for i, info in read_infos(client).items()}
    updater = PriorityUpdater(client)
    updater.update(
      np.array([keys[0], keys[2]], np.uint64), np.array([10, 30], np.float32)
    )
    updater.wait()
    priorities = {i: info.priority for i, info in read_infos(client).items()}
    assert priorities == {0: 10.0, 1: 2.0, 2: 30.0}

  def test_the_later_of_two_updates_counts(self, serve):
    config = helpers.make_config(priority_exponent=0.0)
    client = serve(make_tables(config))
    add_windows(config, client, [1.0])
    key = read_infos(client)[0].key
    updater = PriorityUpdater(client)
    for priority in range(2, 50):
      # Also within one update: a batch may hold a window twice.
      updater.update(np.array([key, key], np.uint64), np.float32([7, priority]))
    updater.wait()
    assert read_infos(client)[0].priority == 49

  def test_windows_that_left_the_table_are_harmless(self, serve):
    config = helpers.make_config(priority_exponent=0.0)
    client = serve(make_tables(config))
    add_windows(config, client, [1.0])
    key = read_infos(client)[0].key
    updater = PriorityUpdater(client)
    updater.update(np.array([123, key], np.uint64), np.float32([5, 6]))
    updater.wait()
    assert read_infos(client)[0].priority == 6

  @pytest.mark.parametrize('bad', [np.nan, np.inf])
  def test_a_priority_that_is_none_changes_nothing(self, serve, bad):
    """One diverged window must not end, or poison, prioritization."""
    config = helpers.make_config(priority_exponent=0.0)
    client = serve(make_tables(config))
    add_windows(config, client, [1.0, 2.0])
    keys = {i: info.key for i, info in read_infos(client).items()}
    updater = PriorityUpdater(client)
    updater.update(np.array([keys[0], keys[1]], np.uint64), np.float32([bad, 4]))
    updater.wait()
    assert {i: info.priority for i, info in read_infos(client).items()} == {0: 1, 1: 4}
    updater.update(np.array([keys[0]], np.uint64), np.float32([3]))
    updater.wait()
    assert read_infos(client)[0].priority == 3

  def test_update_does_not_wait_for_a_server_that_is_away(self, away):
    updater, come_back = away
    started = time.time()
    for _ in range(100):
      updater.update(*_UPDATE)
    assert time.time() - started < 5
    client = come_back()
    updater.wait()
    key = read_infos(client)[0].key
    updater.update(np.array([key], np.uint64), np.float32([7]))
    updater.wait()
    assert read_infos(client)[0].priority == 7

  def test_lost_updates_are_one_warning(self, serve, caplog, monkeypatch):
    client = serve(make_tables(helpers.make_config()))
    updater = PriorityUpdater(client)

    def lose(*unused, **unused_keywords):
      raise RuntimeError('Socket closed')

    with monkeypatch.context() as patch:
      patch.setattr(client, 'mutate_priorities', lose)
      for _ in range(3):
        updater.update(*_UPDATE)
        updater.wait()
    assert warnings(caplog) == []  # it may be the program's end
    for _ in range(3):
      updater.update(*_UPDATE)
      updater.wait()
    (warning,) = warnings(caplog)
    assert warning == (
      'Replay was not available (Socket closed): '
      '3 updates of priorities are lost, 0 wait'
    )

  def test_a_server_that_stays_away_is_a_warning_a_minute(
    self, away, caplog, monkeypatch
  ):
    monkeypatch.setattr(priority_updater, '_AWAY_PERIOD', 1.0)
    updater, _ = away
    started = time.time()
    while time.time() - started < 2.6:
      updater.update(*_UPDATE)
      time.sleep(0.01)
    first, second = warnings(caplog)
    for seconds, warning in ((1, first), (2, second)):
      assert re.match(
        rf'Replay has not answered for {seconds} s.*: [01] updates .* lost, \d+ wait',
        warning,
      )

  def test_table_that_is_missing_is_raised(self, serve, monkeypatch):
    monkeypatch.setattr(priority_updater, 'TABLE', 'another')
    updater = PriorityUpdater(serve([reverb.Table.queue('windows', max_size=1)]))
    updater.update(*_UPDATE)
    with pytest.raises(RuntimeError, match='cannot be written back') as error:
      updater.wait()
    assert 'another was not found' in str(error.value.__cause__)

  @pytest.mark.parametrize(
    'keys, priorities',
    [
      (np.array([-1]), np.float32([1])),  # Reverb takes no such key
      (np.array([1, 2], np.uint64), np.float32([1])),
      (None, np.float32([1])),
    ],
  )
  def test_any_other_failure_is_raised(self, serve, keys, priorities):
    client = serve(make_tables(helpers.make_config()))
    updater = PriorityUpdater(client)
    updater.update(keys, priorities)
    for _ in range(2):
      with pytest.raises(RuntimeError, match='cannot be written back') as error:
        updater.wait()
      assert isinstance(error.value.__cause__, (TypeError, ValueError, IndexError))
      with pytest.raises(RuntimeError, match='cannot be written back'):
        updater.update(*_UPDATE)


@pytest.fixture
def away():
  """An updater whose server is away, and what brings that back with a new client."""
  config = helpers.make_config(priority_exponent=0.0)
  servers = []

  def start(port=None):
    servers.append(reverb.Server(make_tables(config), port=port))
    client = reverb.Client(f'localhost:{servers[-1].port}')
    add_windows(config, client, [1.0])
    return client

  client = start()
  updater = PriorityUpdater(client)
  updater.update(*_UPDATE)
  updater.wait()
  gc.collect()  # see `helpers.start_server`
  servers[0].stop()
  yield updater, lambda: start(servers[0].port)
  gc.collect()
  servers[-1].stop()


def warnings(caplog) -> list[str]:
  return [r.getMessage() for r in caplog.records if r.levelname == 'WARNING']
