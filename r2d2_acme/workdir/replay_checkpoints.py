"""Checkpoints of the replay, in `<workdir>/checkpoints/replay/replay-<number>/`.

They hold items, priorities and the rate limiter's counts. Reverb 0.7 writes them, and
deletes everything else in the folder that it writes into. It therefore gets the folder
`unfinished` (`unfinished-<k>` for shard k > 0), into which nothing else is written, and
each finished checkpoint is moved out of there. A manifest names it after that, with its
shard and with the sums of its files: Reverb itself takes a checkpoint that lacks a file
for an empty one.

Of each shard the newest `NUM_KEPT` are kept, and each manifest names them: one has
gigabytes, and the second is for the case that the newest is damaged.
"""

import collections
import contextlib
import functools
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import reverb
from reverb import reverb_types

from r2d2_acme.replay.tables import TABLE
from r2d2_acme.system import stopping
from r2d2_acme.workdir import checkpoint_files, json_files, manifests, paths
from r2d2_acme.workdir.checkpoint_files import CheckpointError

NUM_KEPT = 2

_NAME = re.compile(r'replay-(0|[1-9][0-9]*)(\.damaged)?')
_STOP_LIMIT = 8.0  # seconds for the checkpoint at the end of a program
_SERVER_INFO_TIMEOUT = 10  # seconds


class NoReplay(CheckpointError):
  """The replay cannot be saved because its server does not answer."""


def directory(workdir: str) -> str:
  """Returns the path of the folder with a workdir's checkpoints of the replay."""
  return os.path.join(manifests.directory(workdir), 'replay')


def find(workdir: str) -> list[str]:
  """Returns the paths of the checkpoints of the replay, newest last, marked ones, too.

  Raises:
    CheckpointError: the folder cannot be read.
  """
  folder = directory(workdir)
  names = map(_NAME.fullmatch, manifests.listed(folder))
  return [
    os.path.join(folder, f'replay-{number}')
    for number in sorted({int(match[1]) for match in names if match})
  ]


def start_server(
  workdir: str | None,
  tables: Sequence[reverb.Table],
  port: int | None = None,
  report: Callable[[str], None] = stopping.say,
  *,
  shard: int = 0,
) -> reverb.Server:
  """Starts a server with the newest sound checkpoint that a manifest names.

  Nobody else may use the workdir's checkpoints of this shard.

  Args:
    workdir: of the run; without one, the server keeps nothing.
    tables: what the server serves, the table of windows first. A table with a
      checkpoint takes its contents and the rate limiter's counts from there.
    port: of the server; None takes a free one.
    report: is called with a line for each checkpoint that cannot be restored.
    shard: index of the server.

  Raises:
    CheckpointError: the folder cannot be read or written.
  """
  if workdir is None:
    return reverb.Server(tables, port)
  unfinished = _unfinished(workdir, shard)
  with checkpoint_files.writing(unfinished):
    shutil.rmtree(unfinished, ignore_errors=True)
    os.makedirs(unfinished)
  known = [replay for replay in find_known(workdir) if replay.shard == shard]
  newest = _find_sound(workdir, known, _settings(tables[0].info), report)
  checkpointer = reverb.checkpointers.DefaultCheckpointer(
    unfinished, fallback_checkpoint_path=newest
  )
  return reverb.Server(tables, port, checkpointer)


def find_known(workdir: str) -> list[manifests.Replay]:
  """Returns the checkpoints that sound manifests name, newest first.

  Raises:
    CheckpointError: the system refused to read a manifest.
  """
  known = {
    replay.name: replay
    for manifest in manifests.read_sound(workdir).values()
    for replay in manifest.replays
  }
  return sorted(known.values(), key=lambda replay: -number(replay.name))


def number(path: str) -> int:
  """Returns the number in the name of a checkpoint."""
  return int(path.rpartition('-')[2])


def verify(workdir: str, replay: manifests.Replay, *, thorough: bool = True):
  """Checks a checkpoint of the replay.

  Raises:
    Damaged: it is not what was written, or is marked as such.
    CheckpointError: the system refused to read it.
  """
  path = os.path.join(directory(workdir), replay.name)
  what = f'checkpoint {paths.shown(path)}'
  if checkpoint_files.is_marked(path):
    raise checkpoint_files.Damaged(f'{what} was found damaged before')
  checkpoint_files.check_files(what, path, replay.files, thorough=thorough)


def choose(workdir: str, replays: Sequence[manifests.Replay]) -> list[manifests.Replay]:
  """Returns those to keep, the newest of each shard that are not marked as damaged.

  Args:
    workdir: of the run.
    replays: newest first, as is what is returned.
  """
  num_chosen: collections.Counter[int] = collections.Counter()
  chosen = []
  for replay in replays:
    path = os.path.join(directory(workdir), replay.name)
    if num_chosen[replay.shard] < NUM_KEPT and not checkpoint_files.is_marked(path):
      num_chosen[replay.shard] += 1
      chosen.append(replay)
  return chosen


def prune(workdir: str, kept: Sequence[manifests.Replay]):
  """Deletes all checkpoints but those to keep and those that are marked as damaged."""
  names = {replay.name for replay in kept}
  for path in find(workdir):
    if os.path.basename(path) not in names and not checkpoint_files.is_marked(path):
      shutil.rmtree(path, ignore_errors=True)


class Saver:
  """Saves the replay of all shards from time to time, from any thread."""

  def __init__(
    self,
    workdir: str,
    clients: Sequence[reverb.Client],
    period: float,
    on_saved: Callable[[manifests.Replay], None],
  ):
    """Saves nothing yet.

    Args:
      workdir: of the run.
      clients: of servers of `start_server`, in the order of the shards.
      period: seconds between two checkpoints of a shard.
      on_saved: is called with each checkpoint, from any thread; writes a manifest.
    """
    self._workdir = workdir
    self._clients = clients
    self._period = period
    self._on_saved = on_saved
    self._saving = threading.Lock()
    # One at a time: those that no manifest names yet may be deleted.
    self._noting = threading.Lock()
    self._next_time = time.monotonic() + period
    self._seconds = 0.0  # that the last one took

  def save(self):
    """Saves the replay now; waits for as long as the servers need.

    If one shard cannot be saved, the others are.

    Raises:
      NoReplay: a server does not answer.
      CheckpointError: a checkpoint cannot be written.
    """
    with self._saving:
      started = time.monotonic()
      try:
        _run_together(
          *(
            functools.partial(self._save_shard, shard, client)
            for shard, client in enumerate(self._clients)
          )
        )
      finally:
        self._next_time = time.monotonic() + self._period
        self._seconds = time.monotonic() - started

  def save_if_due(self):
    """As `save`, if the period is over."""
    if time.monotonic() >= self._next_time:
      self.save()

  def save_at_the_end(self):
    """As `save`, if that took a few seconds the last time, and for as long at most.

    Raises:
      CheckpointError: the checkpoint cannot be written.
    """
    if self._seconds < _STOP_LIMIT:
      _run_together(self.save, limit=_STOP_LIMIT)

  def _save_shard(self, shard: int, client: reverb.Client):
    with _writing(self._workdir, shard):
      settings = _settings(client.server_info(_SERVER_INFO_TIMEOUT)[TABLE])
      written = client.checkpoint()
    with self._noting:
      self._on_saved(_finish(self._workdir, shard, written, settings))


def _run_together(*works: Callable[[], None], limit: float | None = None):
  """Runs works in threads until all are done, for at most so many seconds.

  Raises:
    Whatever one of them raises.
  """
  failures: list[BaseException] = []

  def target(work: Callable[[], None]):
    try:
      work()
    except BaseException as error:  # handed on
      failures.append(error)

  threads = [
    threading.Thread(target=target, args=(work,), daemon=True) for work in works
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(limit)
  if failures:
    raise failures[0]


def _find_sound(
  workdir: str,
  known: Sequence[manifests.Replay],
  settings: dict[str, float],
  report: Callable[[str], None],
) -> str | None:
  """Returns the path of the checkpoint to restore; None if there is none."""
  for replay in known:
    path = os.path.join(directory(workdir), replay.name)
    try:
      verify(workdir, replay)
      if replay.settings == settings:
        return path
      report(
        f'checkpoint {paths.shown(path)} is skipped: its table has other settings '
        f'({_differences(replay.settings, settings)})'
      )
    except checkpoint_files.Damaged as error:
      checkpoint_files.mark(path)
      report(f'{error}: it is skipped and left as it is')
  if known:
    report('no checkpoint of the replay can be restored: it starts empty')
  return None


def _finish(
  workdir: str, shard: int, written: str, settings: dict[str, float]
) -> manifests.Replay:
  """Names a checkpoint that was written; returns what a manifest says of it."""
  folder = directory(workdir)
  newest = max(map(number, find(workdir)), default=0)
  path = os.path.join(folder, f'replay-{newest + 1}')
  with _writing(workdir, shard, path):
    os.replace(written, path)
    names = sorted(os.listdir(path))
    sums = checkpoint_files.sum_files(os.path.join(path, name) for name in names)
    json_files.sync_folder(path)
    json_files.sync_folder(folder)
  return manifests.Replay(os.path.basename(path), sums, settings, shard)


@contextlib.contextmanager
def _writing(workdir: str, shard: int, *paths_left: str) -> Iterator[None]:
  """Says in one line why a checkpoint cannot be written, and leaves nothing of it."""
  folder = directory(workdir)
  with checkpoint_files.writing(folder):
    try:
      yield
    except (reverb.errors.ReverbError, RuntimeError, IndexError, OSError) as error:
      # An IndexError is Reverb's for a full disk.
      for path in paths_left:
        shutil.rmtree(path, ignore_errors=True)
      _clear(_unfinished(workdir, shard))
      reason = checkpoint_files.system_reason(error)
      if reason is not None:
        raise CheckpointError(
          f'cannot save in {paths.shown(folder)}: {reason}'
        ) from error
      raise NoReplay(
        f'cannot save replay/{shard}: {" ".join(str(error).split())}'
      ) from error


def _unfinished(workdir: str, shard: int) -> str:
  """Returns the path of the folder that a shard's server writes into."""
  name = f'unfinished-{shard}' if shard else 'unfinished'
  return os.path.join(directory(workdir), name)


def _clear(folder: str):
  """Removes all that is in the folder that Reverb writes into."""
  with contextlib.suppress(OSError):
    for name in os.listdir(folder):
      shutil.rmtree(os.path.join(folder, name), ignore_errors=True)


def _settings(info: reverb_types.TableInfo) -> dict[str, float]:
  """Returns what a restored table takes from its checkpoint and not from the config."""
  limiter = info.rate_limiter_info
  return {
    'max_size': info.max_size,
    'min_size': limiter.min_size_to_sample,
    'samples_per_insert': limiter.samples_per_insert,
    'min_diff': limiter.min_diff,
    'max_diff': limiter.max_diff,
    'priority_exponent': info.sampler_options.prioritized.priority_exponent,
  }


def _differences(before, after) -> str:
  return ', '.join(
    f'{name}={before.get(name)}, not {value}'
    for name, value in after.items()
    if before.get(name) != value
  )
