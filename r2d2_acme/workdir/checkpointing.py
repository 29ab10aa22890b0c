"""Checkpoints of the learner: finds, checks and restores them; `saving` writes them.

A checkpoint holds both networks, the optimizer, the program's counts and the
evaluator's last returns, so that all of them resume from the same moment. Its files are
`<workdir>/checkpoints/learner/ckpt-<number>.*`. Beside them, `best.json` names the
checkpoint with the best evaluator returns.
"""

import contextlib
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import sonnet as snt
import tensorflow as tf

from r2d2_acme.system import stopping
from r2d2_acme.workdir import (
  checkpoint_files,
  json_files,
  manifests,
  paths,
  replay_checkpoints,
)
from r2d2_acme.workdir.checkpoint_files import CheckpointError, Damaged

BEST = 'best'  # the name that stands for the best checkpoint
NEWEST = 'newest'

_BEST_FILE = 'best.json'
_INDEX = re.compile(r'ckpt-(0|[1-9][0-9]*)\.index')
_FILE = re.compile(r'ckpt-(0|[1-9][0-9]*)\.(index|data-\d+-of-\d+)')
_READ_ATTEMPTS = 3
_READ_PAUSE = 0.5  # seconds
_OTHER_VERSION = (
  'it was written by another version of r2d2_acme; continue with that one, or start in '
  'another --workdir'
)
_OTHER_CONFIG = (
  'it was written with another config or environment, or by another version of '
  'r2d2_acme; continue with those, or start in another --workdir'
)


class Best(NamedTuple):
  """The content of `best.json`.

  Attributes:
    checkpoint: the name of the best checkpoint, such as `ckpt-3`.
    mean_return: the mean return of the evaluator's last episodes when it was saved.
    episodes: the number of these episodes.
    learner_steps: of the checkpoint.
  """

  checkpoint: str
  mean_return: float
  episodes: int
  learner_steps: int


class Moment(NamedTuple):
  """The content of a checkpoint besides the learner's variables.

  Attributes:
    counts: the program's counts, with `learner_steps` and `wall_time` in seconds.
    returns: the returns of the evaluator's last episodes, oldest first.
  """

  counts: dict[str, float]
  returns: list[float]

  @property
  def learner_steps(self) -> float:
    return self.counts.get('learner_steps', 0)

  def has_progress(self, before: 'Moment') -> bool:
    """Returns whether anything but the wall time has changed since `before`."""
    this, other = ({**m.counts, 'wall_time': 0} for m in (self, before))
    return this != other or self.returns != before.returns


def directory(workdir: str) -> str:
  """Returns the path of the folder with a workdir's checkpoints."""
  return os.path.join(manifests.directory(workdir), 'learner')


def find(workdir: str) -> list[str]:
  """Returns the checkpoints of a workdir, newest last: prefixes such as `.../ckpt-3`.

  Raises:
    CheckpointError: the folder cannot be read.
  """
  folder = directory(workdir)
  matches = filter(None, map(_INDEX.fullmatch, manifests.listed(folder)))
  numbers = sorted(int(match[1]) for match in matches)
  return [os.path.join(folder, f'ckpt-{number}') for number in numbers]


def find_all(workdir: str) -> list[str]:
  """Returns the checkpoints of which anything is left, newest last.

  Unlike those of `find`, they may lack files.

  Raises:
    CheckpointError: a folder cannot be read.
  """
  folder = directory(workdir)
  matches = map(_FILE.fullmatch, manifests.listed(folder))
  names = {f'ckpt-{match[1]}' for match in matches if match}
  names |= {manifest.learner for manifest in manifests.read_sound(workdir).values()}
  return [os.path.join(folder, name) for name in sorted(names, key=number)]


def verify(
  workdir: str, report: Callable[[str], None] = stopping.say
) -> dict[str, float]:
  """Reads every byte of the checkpoint that a start in `workdir` resumes from.

  Args:
    workdir: of the run.
    report: is called with a line for each damaged file; those are left as they are.

  Returns:
    The counts of the newest sound checkpoint; empty if there is none at all.

  Raises:
    CheckpointError: there are checkpoints but none is sound, or the newest sound one
      cannot be read or is of another version.
  """
  read_best(workdir)
  for path in manifests.find(workdir):
    try:
      manifests.read(path)
    except Damaged as error:
      report(f'{error}: it is skipped and left as it is')
  newest = find_sound(workdir, report)
  return read_counts(newest) if newest else {}


def find_sound(
  workdir: str, report: Callable[[str], None] = lambda line: None
) -> str | None:
  """Returns the newest sound checkpoint; None if there is no checkpoint at all.

  Checkpoints that are found damaged are marked, see `checkpoint_files`.

  Args:
    workdir: of the run.
    report: is called with a line for each damaged checkpoint that is newer.

  Raises:
    CheckpointError: there are checkpoints but none is sound, or the system refused to
      read one, or one is of another version.
  """
  sums = _read_sums(workdir)
  damaged: list[Damaged] = []
  for prefix in reversed(find_all(workdir)):
    try:
      check(prefix, sums.get(os.path.basename(prefix), {}))
    except Damaged as error:
      checkpoint_files.mark(prefix)
      damaged.append(error)
      continue
    for skipped in damaged:
      report(f'{skipped}: it is skipped and left as it is')
    return prefix
  if not damaged:
    return None
  raise CheckpointError(
    f'{damaged[0]}, and there is no sound one in {paths.shown(directory(workdir))}: '
    'start in another --workdir, or bring back a copy of its files'
  ) from damaged[0]


def check(prefix: str, sums: checkpoint_files.Sums, *, thorough: bool = True):
  """Checks a checkpoint.

  Args:
    prefix: of the checkpoint.
    sums: of its files, from a manifest; empty without one.
    thorough: whether every byte is read. Otherwise only the files' sizes are compared.

  Raises:
    Damaged: it is not what was written, or is marked as such.
    CheckpointError: the system refused to read it, or it is of another version.
  """
  what = f'checkpoint {paths.shown(prefix)}'
  if checkpoint_files.is_marked(prefix):
    raise Damaged(f'{what} was found damaged before')
  if not os.path.lexists(f'{prefix}.index'):
    raise Damaged(f'{what} is damaged: {os.path.basename(prefix)}.index is missing')
  checkpoint_files.check_files(what, os.path.dirname(prefix), sums, thorough=thorough)
  if thorough:
    with reading(prefix) as path:
      reader = tf.train.load_checkpoint(path)
      for name in reader.get_variable_to_shape_map():
        reader.get_tensor(name)  # verifies the checksum
      read_moment(prefix, path)


def _read_sums(workdir: str) -> dict[str, checkpoint_files.Sums]:
  """Returns the sums of the checkpoints' files by name, where a manifest has them."""
  sound = manifests.read_sound(workdir).values()
  return {manifest.learner: manifest.files for manifest in sound}


def read_counts(prefix: str) -> dict[str, float]:
  """Returns the program's counts in a checkpoint.

  Args:
    prefix: of the checkpoint, as `find` returns it.

  Raises:
    CheckpointError: it is damaged, cannot be read, or is of another version.
  """
  with reading(prefix) as path:
    return read_moment(prefix, path).counts


def restore_network(
  network: snt.Module, workdir: str, name: str | None = None
) -> tuple[str, Moment]:
  """Sets the variables of `network` to those of a checkpoint's online network.

  It writes nothing. The program may be running in `workdir` and saving checkpoints.

  Args:
    network: a network whose variables exist.
    workdir: of the run.
    name: of the checkpoint, see `choose`.

  Returns:
    The checkpoint's prefix and what else it holds.

  Raises:
    CheckpointError: there is no such checkpoint, it is damaged, cannot be read, or is
      of another version.
  """
  for attempt in range(_READ_ATTEMPTS):
    if attempt:
      time.sleep(_READ_PAUSE)
    prefix = choose(workdir, name)
    try:
      with reading(prefix) as path:
        moment = read_moment(prefix, path)
        checkpoint = tf.train.Checkpoint(network=network)
        read_variables(checkpoint, prefix, path).expect_partial()
        return prefix, moment
    except Damaged as error:
      failure = error  # or the program has just deleted it as the oldest
  raise CheckpointError(
    f'{failure}; name another with --checkpoint, there are: {_list(find(workdir))}'
  ) from failure


def choose(workdir: str, name: str | None) -> str:
  """Finds a checkpoint by its name or path.

  Args:
    workdir: of the run.
    name: a name such as `ckpt-3`, or its path, or `best`; `newest` or None is the
      newest.

  Returns:
    The checkpoint's prefix, as in `find`.

  Raises:
    CheckpointError: there is no such checkpoint, or `best.json` is damaged.
  """
  prefixes = find(workdir)
  where = paths.shown(workdir)
  if name in (None, NEWEST, BEST) and not prefixes:
    raise CheckpointError(f'there is no checkpoint in {where} yet')
  if name is None or name == NEWEST:
    return prefixes[-1]
  if name == BEST:
    best = read_best(workdir)
    if best is None:
      raise CheckpointError(
        f'there is no best checkpoint in {where} yet: its evaluator played too few '
        'episodes; name another, or leave the checkpoint out for the newest; '
        f'there are: {_list(prefixes)}'
      )
    name = best.checkpoint
  path = os.path.realpath(os.path.expanduser(name))
  for prefix in prefixes:
    if name == os.path.basename(prefix) or path == os.path.realpath(prefix):
      return prefix
  raise CheckpointError(
    f'no checkpoint {paths.shown(name)} in {where}; there are: {_list(prefixes)}'
  )


def go_back(workdir: str, name: str):
  """Makes a checkpoint the newest by moving the later ones to a folder `set_aside_*`.

  The manifests of the later ones move, too, and so do checkpoints of the replay that
  only these name, and `best.json` if it names one of the later ones.

  Args:
    workdir: of the run.
    name: of the checkpoint, see `choose`.

  Raises:
    CheckpointError: there is no such checkpoint, or it is damaged.
    OSError: the folder cannot be written.
  """
  prefix, prefixes = choose(workdir, name), find_all(workdir)
  try:
    check(prefix, _read_sums(workdir).get(os.path.basename(prefix), {}))
  except Damaged as error:
    others = [other for other in find(workdir) if other != prefix]
    raise CheckpointError(
      f'{error}; name another with --checkpoint, there are: {_list(others)}'
    ) from error
  later = prefixes[prefixes.index(prefix) + 1 :]
  best = read_best(workdir)
  folder = directory(workdir)
  moved = [*reversed(_find_later_manifests(workdir, prefix))]
  if best and os.path.join(folder, best.checkpoint) in later:
    moved.append(os.path.join(folder, _BEST_FILE))
  for other in reversed(later):
    moved += [*files(other), *checkpoint_files.find_mark(other)]
  moved += _find_later_replays(workdir, moved)
  if not moved:
    return
  # A new folder each time, because later checkpoints get the same numbers again.
  aside = tempfile.mkdtemp(prefix='set_aside_', dir=folder)
  for file in moved:
    os.replace(file, os.path.join(aside, os.path.basename(file)))


def _find_later_manifests(workdir: str, prefix: str) -> list[str]:
  """Returns the manifests that were written after those of a checkpoint."""
  found, sound = manifests.find(workdir), manifests.read_sound(workdir)
  earlier = [path for path, x in sound.items() if number(x.learner) <= number(prefix)]
  return found[found.index(earlier[-1]) + 1 :] if earlier else found


def _find_later_replays(workdir: str, later_manifests: Sequence[str]) -> list[str]:
  """Returns checkpoints of the replay that only these manifests name, and marks."""
  sound = manifests.read_sound(workdir)
  named, kept = (
    {replay.name for path in paths_ for replay in sound[path].replays}
    for paths_ in (sound, sound.keys() - set(later_manifests))
  )
  return [
    file
    for path in replay_checkpoints.find(workdir)
    if os.path.basename(path) in named - kept
    for file in (path, *checkpoint_files.find_mark(path))
    if os.path.lexists(file)
  ]


def number(prefix: str) -> int:
  """Returns the number in the name of a checkpoint."""
  return int(prefix.rpartition('-')[2])


def _list(prefixes: list[str]) -> str:
  return ', '.join(os.path.basename(prefix) for prefix in prefixes) or 'none'


def files(prefix: str) -> list[str]:
  """Returns the files of a checkpoint, the index first; none if its folder is gone.

  Raises:
    CheckpointError: the folder cannot be read.
  """
  folder, name = os.path.split(prefix)
  pattern = re.compile(rf'{re.escape(name)}\.(index|data-\d+-of-\d+)')
  names = [file for file in manifests.listed(folder) if pattern.fullmatch(file)]
  names.sort(key=lambda file: (not file.endswith('.index'), file))
  return [os.path.join(folder, file) for file in names]


def delete(prefix: str):
  """Deletes a checkpoint, the index first."""
  for file in files(prefix):
    os.unlink(file)


@contextlib.contextmanager
def reading(prefix: str) -> Iterator[str]:
  """Yields a path of the checkpoint that TensorFlow cannot mistake for a pattern.

  Raises:
    CheckpointError: reading it inside the context failed. Either the checkpoint is
      damaged, or the system refused to read it.
  """
  folder, name = os.path.split(prefix)
  what = f'checkpoint {paths.shown(prefix)}'
  try:
    for file in files(prefix):
      with open(file, 'rb'):
        pass  # raises an error with the reason, which TensorFlow's error lacks
    with paths.opened(folder) as path:
      yield os.path.join(path, name)
  except CheckpointError:
    raise
  except Exception as error:  # its type depends on the damage
    reason = checkpoint_files.system_reason(error)
    if reason is not None:
      raise CheckpointError(f'{what} cannot be read: {reason}') from error
    raise Damaged(f'{what} is damaged') from error


def read_variables(checkpoint: tf.train.Checkpoint, prefix: str, path: str):
  """Reads all variables of `checkpoint`; returns TensorFlow's status of the restore.

  Raises:
    CheckpointError: the file lacks a variable or has it in another shape.
  """
  try:
    status = checkpoint.read(path)
    return status.assert_existing_objects_matched()
  except (AssertionError, ValueError) as error:
    raise CheckpointError(
      f'checkpoint {paths.shown(prefix)} is of a learner with other variables: '
      f'{_OTHER_CONFIG}'
    ) from error


def read_moment(prefix: str, path: str) -> Moment:
  """Reads the JSON in a checkpoint; never unpickles anything, which could run code.

  Raises:
    CheckpointError: it is of a version that pickled its counts.
  """
  reader = tf.train.load_checkpoint(path)
  try:
    counts, returns = (
      json_files.parse(reader.get_tensor(f'{name}/.ATTRIBUTES/VARIABLE_VALUE'))
      for name in Moment._fields
    )
    numbers = [*counts.values(), *returns]
    if not all(map(json_files.is_number, numbers)):
      raise ValueError('not finite numbers')
    return Moment(counts, list(returns))
  except (*json_files.NOT_OURS, tf.errors.NotFoundError) as error:
    raise CheckpointError(
      f'the counts of checkpoint {paths.shown(prefix)} are not numbers in JSON: '
      f'{_OTHER_VERSION}'
    ) from error


def read_best(workdir: str) -> Best | None:
  """Returns the content of `best.json`; None if there is no such file or checkpoint.

  Raises:
    CheckpointError: the file is damaged.
  """
  path = os.path.join(directory(workdir), _BEST_FILE)
  try:
    with open(path, 'rb') as file:
      best = Best(**json_files.parse(file.read()))
    _INDEX.fullmatch(f'{best.checkpoint}.index')[0]  # type: ignore[index]
    if not math.isfinite(best.mean_return):
      raise ValueError('not a finite number')
  except (FileNotFoundError, NotADirectoryError):
    return None
  except OSError as error:
    raise CheckpointError(
      f'cannot read {paths.shown(path)}: {error.strerror}'
    ) from error
  except json_files.NOT_OURS as error:
    raise CheckpointError(
      f'{paths.shown(path)} is damaged: delete it to go on without a best checkpoint'
    ) from error
  there = map(os.path.basename, find(workdir))
  return best if best.checkpoint in there else None


def write_best(workdir: str, best: Best):
  """Replaces the content of `best.json`.

  Raises:
    OSError: it cannot be written.
  """
  path = os.path.join(directory(workdir), _BEST_FILE)
  json_files.write(path, best._asdict())
