"""Checkpoints of the replay, in `<workdir>/checkpoints/replay/replay-<number>/`.

They hold items, priorities and the rate limiter's counts. Reverb 0.7 writes them, and
deletes everything else in the folder that it writes into. It therefore gets the folder
`unfinished`, into which nothing else is written, and each finished checkpoint is moved
out of there. A manifest names it after that, with the sums of its files: Reverb itself
takes a checkpoint that lacks a file for an empty one.

The newest `NUM_KEPT` are kept, and each manifest names them: one has gigabytes, and the
second is for the case that the newest is damaged.
"""

import contextlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Sequence

import reverb
from reverb import reverb_types

from r2d2_acme.system import stopping
from r2d2_acme.workdir import checkpoint_files, json_files, manifests, paths
from r2d2_acme.workdir.checkpoint_files import CheckpointError

NUM_KEPT = 2

_UNFINISHED = 'unfinished'  # the folder that Reverb writes into
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
) -> reverb.Server:
  """Starts a server with the newest sound checkpoint that a manifest names.

  Nobody else may use the workdir's checkpoints of the replay.

  Args:
    workdir: of the run; without one, the server keeps nothing.
    tables: what the server serves. A table with a checkpoint takes its contents and
      the rate limiter's counts from there.
    port: of the server; None takes a free one.
    report: is called with a line for each checkpoint that cannot be restored.

  Raises:
    CheckpointError: the folder cannot be read or written.
  """
  if workdir is None:
    return reverb.Server(tables, port)
  unfinished = os.path.join(directory(workdir), _UNFINISHED)
  with checkpoint_files.writing(unfinished):
    shutil.rmtree(unfinished, ignore_errors=True)
    os.makedirs(unfinished)
  newest = _find_sound(workdir, _settings(tables[0].info), report)
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


def prune(workdir: str, kept: Sequence[manifests.Replay]):
  """Deletes all checkpoints but those to keep and those that are marked as damaged."""
  names = {replay.name for replay in kept}
  for path in find(workdir):
    if os.path.basename(path) not in names and not checkpoint_files.is_marked(path):
      shutil.rmtree(path, ignore_errors=True)


class Saver:
  """Saves the replay of a server from time to time, from any thread."""

  def __init__(
    self,
    workdir: str,
    client: reverb.Client,
    period: float,
    on_saved: Callable[[manifests.Replay], None],
  ):
    """Saves nothing yet.

    Args:
      workdir: of the run.
      client: of a server of `start_server`.
      period: seconds between two checkpoints.
      on_saved: is called with each checkpoint; writes a manifest.
    """
    self._workdir = workdir
    self._client = client
    self._period = period
    self._on_saved = on_saved
    self._saving = threading.Lock()
    self._next_time = time.monotonic() + period
    self._seconds = 0.0  # that the last one took

  def save(self):
    """Saves the replay now; waits for as long as the server needs.

    Raises:
      NoReplay: the server does not answer.
      CheckpointError: the checkpoint cannot be written.
    """
    with self._saving:
      started = time.monotonic()
      try:
        self._on_saved(_write(self._workdir, self._client))
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
    if self._seconds >= _STOP_LIMIT:
      return
    failures = []

    def work():
      try:
        self.save()
      except CheckpointError as error:
        failures.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_STOP_LIMIT)
    for failure in failures:
      raise failure


def _find_sound(
  workdir: str, settings: dict[str, float], report: Callable[[str], None]
) -> str | None:
  """Returns the path of the checkpoint to restore; None if there is none."""
  known = find_known(workdir)
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


def _write(workdir: str, client: reverb.Client) -> manifests.Replay:
  """Writes a checkpoint and returns what a manifest says of it."""
  folder = directory(workdir)
  with checkpoint_files.writing(folder):
    path = os.path.join(
      folder, f'replay-{max(map(number, find(workdir)), default=0) + 1}'
    )
    try:
      (info,) = client.server_info(_SERVER_INFO_TIMEOUT).values()
      os.replace(client.checkpoint(), path)
      names = sorted(os.listdir(path))
      sums = checkpoint_files.sum_files(os.path.join(path, name) for name in names)
      json_files.sync_folder(path)
      json_files.sync_folder(folder)
    except (reverb.errors.ReverbError, RuntimeError, IndexError, OSError) as error:
      # An IndexError is Reverb's for a full disk.
      shutil.rmtree(path, ignore_errors=True)
      _clear(os.path.join(folder, _UNFINISHED))
      reason = checkpoint_files.system_reason(error)
      if reason is not None:
        raise CheckpointError(
          f'cannot save in {paths.shown(folder)}: {reason}'
        ) from error
      raise NoReplay(
        f'cannot save the replay: {" ".join(str(error).split())}'
      ) from error
  return manifests.Replay(os.path.basename(path), sums, _settings(info))


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
