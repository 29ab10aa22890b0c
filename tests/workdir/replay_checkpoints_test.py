"""Checkpoints of the replay, on real Reverb servers."""

import contextlib
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import reverb

from r2d2_acme.workdir import (
  checkpoint_files,
  manifests,
  replay_checkpoints,
)
from tests import helpers

pytestmark = pytest.mark.timeout(60)

_TABLE = 'windows'


def _table(samples_per_insert: float = 2.0) -> reverb.Table:
  return reverb.Table(
    _TABLE,
    reverb.selectors.Prioritized(0.9),
    reverb.selectors.Fifo(),
    max_size=100,
    rate_limiter=reverb.rate_limiters.SampleToInsertRatio(
      samples_per_insert, 5, 2000.0
    ),
  )


@contextlib.contextmanager
def _served(workdir, *, table: reverb.Table | None = None, report=None):
  """Serves the newest sound checkpoint of a workdir; yields a client and a saver."""
  lines: list[str] = []
  tables = [table or _table()]
  server = replay_checkpoints.start_server(
    str(workdir), tables, report=report or lines.append
  )
  client = reverb.Client(f'localhost:{server.port}')

  def note(replay: manifests.Replay):
    known = replay_checkpoints.find_known(str(workdir))
    kept = [replay, *known][: replay_checkpoints.NUM_KEPT]
    manifests.write(str(workdir), manifests.Manifest('ckpt-1', {}, {}, None, kept))
    replay_checkpoints.prune(str(workdir), kept)

  try:
    yield client, replay_checkpoints.Saver(str(workdir), [client], 1e9, note)
  finally:
    server.stop()


def _insert(client: reverb.Client, number: int):
  rng = np.random.default_rng(0)
  for i in range(number):
    client.insert(rng.integers(0, 255, 1000, np.uint8), {_TABLE: float(i + 1)})


def _contents(client: reverb.Client):
  """Returns priorities by key, and the limiter's counts."""
  limiter = helpers.table_info(client).rate_limiter_info
  counts = limiter.insert_stats.completed, limiter.sample_stats.completed
  size = helpers.table_info(client).current_size
  found: dict[int, float] = {}
  while len(found) < size:  # the limiter lets 1,000 samples run ahead
    for sample in client.sample(_TABLE, 10, emit_timesteps=False):
      found[sample.info.key] = sample.info.priority
  return found, counts


def _size(client: reverb.Client) -> int:
  return helpers.table_info(client).current_size


@pytest.fixture
def workdir(tmp_path) -> pathlib.Path:
  """A workdir with two checkpoints of the replay, of 10 and of 20 windows."""
  with _served(tmp_path) as (client, saver):
    for _ in range(2):
      _insert(client, 10)
      saver.save()
  return tmp_path


def _folders(workdir: pathlib.Path) -> list[str]:
  return sorted(path.name for path in (workdir / 'checkpoints/replay').iterdir())


def test_items_priorities_and_the_limiters_counts_come_back(tmp_path):
  with _served(tmp_path) as (client, saver):
    _insert(client, 12)
    list(client.sample(_TABLE, 5, emit_timesteps=False))
    saver.save()
    before, counts = _contents(client)
  assert sorted(before.values()) == list(range(1, 13))
  assert counts == (12, 5)
  with _served(tmp_path) as (client, _):
    assert _contents(client) == (before, counts)
    # The limiter goes on from these counts: neither side waits for ever.
    _insert(client, 30)
    assert len(list(client.sample(_TABLE, 20, emit_timesteps=False))) == 20


def test_newest_two_are_kept(workdir):
  with _served(workdir) as (client, saver):
    assert _size(client) == 20
    _insert(client, 1)
    saver.save()
  assert _folders(workdir) == ['replay-2', 'replay-3', 'unfinished']


def _flip(path: pathlib.Path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 0x10
  path.write_bytes(data)


def _truncate(path: pathlib.Path):
  os.truncate(path, path.stat().st_size // 2)


def _empty(path: pathlib.Path):
  path.write_bytes(b'')


_DAMAGES = [
  *((file, d) for file in ('chunks', 'tables') for d in (_flip, _truncate, _empty)),
  *((file, pathlib.Path.unlink) for file in ('chunks', 'tables', 'DONE')),
]


@pytest.mark.parametrize(('file', 'damage'), _DAMAGES)
def test_damaged_one_is_named_and_skipped_and_stays(workdir, file, damage):
  newest = workdir / 'checkpoints/replay/replay-2'
  damage(newest / (file if file == 'DONE' else f'{file}.tfrecord'))
  before = {path.name: path.read_bytes() for path in newest.iterdir()}
  lines: list[str] = []
  with _served(workdir, report=lines.append) as (client, saver):
    assert _size(client) == 10
    (line,) = lines
    assert f'{newest} is damaged' in line
    assert line.endswith('it is skipped and left as it is')
    for _ in range(3):
      saver.save()
  assert {path.name: path.read_bytes() for path in newest.iterdir()} == before
  assert _folders(workdir) == [
    *('replay-2', 'replay-2.damaged', 'replay-4', 'replay-5', 'unfinished')
  ]


def test_replay_starts_empty_and_says_so_if_none_is_sound(workdir):
  for number in (1, 2):
    _flip(workdir / f'checkpoints/replay/replay-{number}/chunks.tfrecord')
  lines: list[str] = []
  with _served(workdir, report=lines.append) as (client, _):
    assert _size(client) == 0
  assert len(lines) == 3
  assert lines[-1] == 'no checkpoint of the replay can be restored: it starts empty'


@pytest.mark.parametrize('damage', [_flip, _truncate, _empty, pathlib.Path.unlink])
def test_damaged_manifest_is_named_and_the_one_before_it_counts(workdir, damage):
  path = workdir / 'checkpoints/manifest-2.json'
  damage(path)
  assert len(manifests.read_sound(str(workdir))) == 1
  with pytest.raises(checkpoint_files.Damaged, match=r'manifest-2.json is (dam|miss)'):
    manifests.read(str(path))
  with _served(workdir) as (client, saver):
    assert _size(client) == 10
    _insert(client, 3)
    saver.save()
  with _served(workdir) as (client, _):
    assert _size(client) == 13


def test_every_flipped_bit_of_a_manifest_is_seen(workdir):
  path = workdir / 'checkpoints/manifest-2.json'
  data, sound = path.read_bytes(), manifests.read(str(path))
  for position in range(0, len(data), 7):
    flipped = bytearray(data)
    flipped[position] ^= 1
    path.write_bytes(flipped)
    try:
      assert manifests.read(str(path)) == sound  # such as a space between two values
    except checkpoint_files.Damaged:
      pass


def test_half_written_manifest_is_none(workdir):
  data = (workdir / 'checkpoints/manifest-2.json').read_bytes()
  (workdir / 'checkpoints/manifest-3.json.new').write_bytes(data[:100])
  assert len(manifests.find(str(workdir))) == 2


def test_table_of_other_settings_is_not_restored(workdir):
  lines: list[str] = []
  with _served(workdir, table=_table(4.0), report=lines.append) as (client, _):
    assert _size(client) == 0
  assert 'replay-2 is skipped: its table has other settings' in lines[0]
  assert 'samples_per_insert=2.0, not 4.0' in lines[0]


@contextlib.contextmanager
def _full_disk():
  """Limits the size of files to 2,000 bytes."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, before)


def test_failed_save_is_one_line_and_leaves_what_there_was(workdir, capfd):
  with _served(workdir) as (client, saver):
    _insert(client, 5)
    capfd.readouterr()
    with _full_disk():
      assert not checkpoint_files.attempt(saver.save, 60.0)
    (line,) = [x for x in capfd.readouterr().err.splitlines() if 'error: ' in x]
    assert line.startswith(f'error: cannot save in {workdir}/checkpoints/replay: ')
    assert line.endswith('; training goes on, the next attempt is in 60 s')
    assert _folders(workdir) == ['replay-1', 'replay-2', 'unfinished']
    assert not os.listdir(workdir / 'checkpoints/replay/unfinished')
    saver.save()
  with _served(workdir) as (client, _):
    assert _size(client) == 25


_SERVER = """
import sys, time
from r2d2_acme.workdir import replay_checkpoints
from tests.workdir import replay_checkpoints_test as here
server = replay_checkpoints.start_server(sys.argv[1], [here._table()])
print(server.port, flush=True)
time.sleep(100)
"""


@contextlib.contextmanager
def _server_process(workdir: pathlib.Path):
  with subprocess.Popen(
    [sys.executable, '-c', _SERVER, str(workdir)],
    stdout=subprocess.PIPE,
    text=True,
    cwd=helpers.ROOT,
  ) as process:
    try:
      assert process.stdout is not None
      yield process, reverb.Client(f'localhost:{int(process.stdout.readline())}')
    finally:
      process.kill()


def test_server_that_stands_still_or_dies_in_a_save_leaves_the_one_before(workdir):
  with _server_process(workdir) as (process, client):
    assert _size(client) == 20
    saver = replay_checkpoints.Saver(str(workdir), [client], 1e9, lambda replay: None)
    process.send_signal(signal.SIGSTOP)
    failures: list[Exception] = []

    def save():
      try:
        saver.save()
      except checkpoint_files.CheckpointError as error:
        failures.append(error)

    thread = threading.Thread(target=save, daemon=True)
    thread.start()
    time.sleep(1)
    process.kill()
    thread.join(60)
    with pytest.raises(replay_checkpoints.NoReplay):
      saver.save()
  assert [type(failure) for failure in failures] == [replay_checkpoints.NoReplay]
  # What a killed server leaves of a checkpoint.
  half = workdir / 'checkpoints/replay/unfinished/2026-11-26T08:13:41.8+00:00'
  shutil.copytree(workdir / 'checkpoints/replay/replay-2', half)
  (half / 'DONE').unlink()
  with _served(workdir) as (client, _):
    assert _size(client) == 20
  assert not half.exists()


def test_each_shard_gets_back_its_own_windows(tmp_path):
  workdir = str(tmp_path)
  kept: list[manifests.Replay] = []
  lock = threading.Lock()

  def note(replay: manifests.Replay):
    with lock:
      kept[:] = replay_checkpoints.choose(workdir, [replay, *kept])
      manifests.write(workdir, manifests.Manifest('ckpt-1', {}, {}, None, kept))
      replay_checkpoints.prune(workdir, kept)

  def serve():
    servers = [
      replay_checkpoints.start_server(workdir, [_table()], shard=shard)
      for shard in range(2)
    ]
    return servers, [reverb.Client(f'localhost:{x.port}') for x in servers]

  servers, clients = serve()
  saver = replay_checkpoints.Saver(workdir, clients, 1e9, note)
  for _ in range(3):
    _insert(clients[0], 10)
    _insert(clients[1], 7)
    saver.save()
  before = [_contents(client)[0] for client in clients]
  names = [path.name for path in tmp_path.glob('checkpoints/replay/replay-*')]
  assert len(names) == 2 * replay_checkpoints.NUM_KEPT
  servers[1].stop()
  _insert(clients[0], 1)
  with pytest.raises(replay_checkpoints.NoReplay, match='cannot save replay/1'):
    saver.save()
  servers[0].stop()
  servers, clients = serve()
  assert _size(clients[0]) == 31  # was saved although the other one was away
  assert _contents(clients[1])[0] == before[1]
  for server in servers:
    server.stop()


def test_without_a_workdir_nothing_is_kept(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  server = replay_checkpoints.start_server(None, [_table()])
  server.stop()
  assert not os.listdir(tmp_path)
