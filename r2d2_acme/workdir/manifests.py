"""Manifests: which checkpoints of the learner and of the replay belong together.

`<workdir>/checkpoints/manifest-<number>.json` is written after the checkpoints that it
names, in one step. It holds the sums of their files, by which damage is found, and its
own. A checkpoint of the learner without a manifest, such as one of an older version,
counts as one without a replay.
"""

import os
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from r2d2_acme.workdir import checkpoint_files, json_files, paths
from r2d2_acme.workdir.checkpoint_files import CheckpointError

_NAME = re.compile(r'manifest-(0|[1-9][0-9]*)\.json')
_LEARNER = re.compile(r'ckpt-(0|[1-9][0-9]*)')
_REPLAY = re.compile(r'replay-(0|[1-9][0-9]*)')


class Replay(NamedTuple):
  """A checkpoint of the replay.

  Attributes:
    name: such as `replay-3`.
    files: sums of its files.
    settings: of its table, see `replay_checkpoints`.
    shard: index of the server whose windows it has.
  """

  name: str
  files: checkpoint_files.Sums
  settings: Mapping[str, float]
  shard: int = 0


class Manifest(NamedTuple):
  """The content of a manifest.

  Attributes:
    learner: name of the learner's checkpoint, such as `ckpt-3`.
    files: sums of its files.
    counts: the program's counts in it.
    mean_return: of the evaluator's last episodes at that time; None before the first.
    replays: the newest checkpoints of the replay's shards at that time, the newest
      first. The older ones of a shard are for the case that its newest is damaged.
  """

  learner: str
  files: checkpoint_files.Sums
  counts: Mapping[str, float]
  mean_return: float | None
  replays: Sequence[Replay]


def directory(workdir: str) -> str:
  """Returns the path of the folder with a workdir's manifests."""
  return os.path.join(paths.resolve(workdir), 'checkpoints')


def find(workdir: str) -> list[str]:
  """Returns the paths of a workdir's manifests, newest last.

  Raises:
    CheckpointError: the folder cannot be read.
  """
  folder = directory(workdir)
  numbers = [int(match[1]) for match in map(_NAME.fullmatch, listed(folder)) if match]
  return [_path(folder, number) for number in sorted(numbers)]


def listed(folder: str) -> list[str]:
  """Returns the names in a folder; none if it does not exist.

  Raises:
    CheckpointError: the folder cannot be read.
  """
  try:
    return os.listdir(folder)
  except FileNotFoundError:
    return []
  except OSError as error:
    raise CheckpointError(
      f'cannot read {paths.shown(folder)}: {error.strerror}'
    ) from error


def read(path: str) -> Manifest:
  """Reads a manifest.

  Raises:
    Damaged: its content is not what was written.
    CheckpointError: the system refused to read it.
  """
  try:
    with open(path, 'rb') as file:
      stored = json_files.parse(file.read())
    if stored['crc32'] != _sum(stored['content']):
      raise ValueError('its content has changed')
    return _parse(stored['content'])
  except FileNotFoundError as error:
    raise checkpoint_files.Damaged(f'{paths.shown(path)} is missing') from error
  except OSError as error:
    raise CheckpointError(
      f'cannot read {paths.shown(path)}: {error.strerror}'
    ) from error
  except json_files.NOT_OURS as error:
    raise checkpoint_files.Damaged(
      f'manifest {paths.shown(path)} is damaged'
    ) from error


def read_sound(workdir: str) -> dict[str, Manifest]:
  """Returns the manifests of a workdir that are sound by path, newest last.

  Raises:
    CheckpointError: the system refused to read one.
  """
  sound = {}
  for path in find(workdir):
    try:
      sound[path] = read(path)
    except checkpoint_files.Damaged:
      pass
  return sound


def write(workdir: str, manifest: Manifest) -> str:
  """Writes the next manifest; returns its path.

  Raises:
    CheckpointError: the folder cannot be read.
    OSError: it cannot be written.
  """
  folder = directory(workdir)
  newest = _NAME.fullmatch(os.path.basename((find(workdir) or ['manifest-0.json'])[-1]))
  assert newest is not None
  content: dict[str, Any] = manifest._asdict()
  content['replays'] = [replay._asdict() for replay in manifest.replays]
  path = _path(folder, int(newest[1]) + 1)
  json_files.write(path, {'crc32': _sum(content), 'content': content})
  return path


def _path(folder: str, number: int) -> str:
  return os.path.join(folder, f'manifest-{number}.json')


def _sum(content: Any) -> int:
  return zlib.crc32(json_files.dump(content))


def _parse(content: Mapping[str, Any]) -> Manifest:
  """Raises one of `NOT_OURS` if the content is none of a manifest."""
  replays = [
    Replay(**{**replay, 'files': _parse_sums(replay['files'])})
    for replay in content['replays']
  ]
  manifest = Manifest(
    **{**content, 'files': _parse_sums(content['files']), 'replays': replays}
  )
  is_named = _LEARNER.fullmatch(manifest.learner) and all(
    _REPLAY.fullmatch(replay.name) for replay in replays
  )
  if not is_named:
    raise ValueError('its checkpoints have other names')
  if not all(map(json_files.is_number, manifest.counts.values())):
    raise ValueError('the counts are not numbers')
  return manifest


def _parse_sums(files: Mapping[str, Any]) -> checkpoint_files.Sums:
  sums = {name: (int(size), int(crc)) for name, (size, crc) in files.items()}
  if any('/' in name for name in sums):
    raise ValueError('a file is in another folder')
  return sums
