"""Acme's checkpointer on the learner, and a check of what it left behind.

A checkpoint holds both networks, the optimizer and the program's counts, so that all
resume from the same moment.
"""

import glob
import os
import pickle
import tempfile
import time
from collections.abc import Mapping

import sonnet as snt
import tensorflow as tf
from acme import core
from acme.tf import savers
from tensorflow.python.training import checkpoint_management

from r2d2_acme.learner import R2D2Learner

_SUBDIRECTORY = 'learner'
_COUNTS_KEY = 'counts/.ATTRIBUTES/py_state'
_MAX_TO_KEEP = 3
_READ_ATTEMPTS = 3
_READ_PAUSE = 0.5  # seconds


class CheckpointError(ValueError):
  """A checkpoint cannot be resumed from; one line that names the cure."""


class _Counts(core.Saveable):
  """The program's counts, as last told; who launches the program restores them."""

  def __init__(self, learner: R2D2Learner, counts: Mapping[str, float]):
    self._learner = learner
    self.latest = counts

  def save(self) -> Mapping[str, float]:
    # The counts run up to a second behind the learner's own.
    return {**self.latest, 'learner_steps': self._learner.num_steps}

  def restore(self, state: Mapping[str, float]):
    pass


class Checkpointer:
  """Saves the learner under `<workdir>/checkpoints/learner`; restores it at once."""

  def __init__(
    self,
    workdir: str,
    learner: R2D2Learner,
    counts: Mapping[str, float],
    period: float,
  ):
    """`counts` are those that the program started with, `period` is in seconds.

    Raises:
      CheckpointError: the newest checkpoint is of a learner with other variables.
    """
    _check_variables(learner, workdir)
    self._learner = learner
    self._counts = _Counts(learner, counts)
    with learner.locked:
      self._checkpointer = savers.Checkpointer(
        {**learner.state, 'counts': self._counts},
        directory=workdir,
        subdirectory=_SUBDIRECTORY,
        time_delta_minutes=period / 60,
        add_uid=False,
        max_to_keep=_MAX_TO_KEEP,
      )

  def save(self, counts: Mapping[str, float] | None = None, *, force: bool = False):
    """Saves if `period` has passed since the last time, or if forced to.

    Args:
      counts: the program's; without them, those of the last call.
      force: whether to save in any case.
    """
    if counts is not None:
      self._counts.latest = counts
    with self._learner.locked:
      self._checkpointer.save(force)


def _check_variables(learner: R2D2Learner, workdir: str):
  """Acme's checkpointer leaves what it does not find as it was, without a word."""
  for prefix in find(workdir)[-1:]:
    status = tf.train.Checkpoint(**learner.state).read(prefix)
    try:
      status.assert_existing_objects_matched().expect_partial()
    except AssertionError as error:
      status.expect_partial()
      raise CheckpointError(
        f'checkpoint {prefix} is of a learner with other variables: it was written by '
        'another version of r2d2_acme; go on with that one, or start in another '
        '--workdir'
      ) from error


def directory(workdir: str) -> str:
  return os.path.join(workdir, 'checkpoints', _SUBDIRECTORY)


def find(workdir: str) -> list[str]:
  """The checkpoints of a workdir, newest last: prefixes such as `.../ckpt-3`."""
  prefixes = [
    path[: -len('.index')]
    for path in glob.glob(os.path.join(glob.escape(directory(workdir)), 'ckpt-*.index'))
  ]
  return sorted(prefixes, key=lambda prefix: int(prefix.rsplit('-', 1)[1]))


def verify(workdir: str) -> dict[str, float]:
  """Reads every byte of the checkpoint that a start in `workdir` resumes from.

  Returns:
    The counts it holds; empty if there is no checkpoint.

  Raises:
    CheckpointError: the newest checkpoint is corrupt.
  """
  prefixes = find(workdir)
  if not prefixes:
    return {}
  newest = prefixes[-1]
  try:
    reader = tf.train.load_checkpoint(newest)
    for name in reader.get_variable_to_shape_map():
      reader.get_tensor(name)  # checks the sums
    counts = pickle.loads(reader.get_tensor(_COUNTS_KEY))
  except Exception as error:  # each kind of damage has its own type
    cure = (
      f'resume from the previous one with --checkpoint={prefixes[-2]}'
      if len(prefixes) > 1
      else 'there is no earlier one: start in another --workdir'
    )
    raise CheckpointError(
      f'checkpoint {newest} is corrupt and was left as it is; {cure}'
    ) from error
  # TensorFlow's own note of them: behind after `go_back`, and perhaps after a crash.
  checkpoint_management.update_checkpoint_state_internal(
    directory(workdir),
    newest,
    prefixes,
    save_relative_paths=True,
    all_model_checkpoint_timestamps=[os.path.getmtime(f'{p}.index') for p in prefixes],
  )
  return counts


def read_counts(prefix: str) -> dict[str, float]:
  """The program's counts in a checkpoint of `find`.

  Raises:
    CheckpointError: it is corrupt.
  """
  try:
    return pickle.loads(tf.train.load_checkpoint(prefix).get_tensor(_COUNTS_KEY))
  except Exception as error:  # each kind of damage has its own type
    raise CheckpointError(f'checkpoint {prefix} is corrupt') from error


def restore_network(
  network: snt.Module, workdir: str, name: str | None = None
) -> tuple[str, dict[str, float]]:
  """Gives the variables of `network` a checkpoint's values of the online network.

  Writes nothing: the program may be running in `workdir`, and saving.

  Args:
    network: with its variables made.
    workdir: of the run.
    name: such as `ckpt-3`, or all of its path; None for the newest.

  Returns:
    The checkpoint, as `find` has it, and the counts it holds.

  Raises:
    CheckpointError: there is none, none of that name, or it is corrupt.
  """
  for attempt in range(_READ_ATTEMPTS):
    prefix = choose(workdir, name)
    try:
      counts = read_counts(prefix)
      status = tf.train.Checkpoint(network=network).read(prefix)
      status.assert_existing_objects_matched().expect_partial()
      return prefix, counts
    except Exception as error:  # each kind of damage has its own type
      failure = error
    # It may be one that is just being written, or was deleted as the oldest.
    if attempt + 1 < _READ_ATTEMPTS:
      time.sleep(_READ_PAUSE)
  raise CheckpointError(
    f'checkpoint {prefix} is corrupt; name another with --checkpoint, there are: '
    f'{_list(find(workdir))}'
  ) from failure


def choose(workdir: str, name: str | None) -> str:
  """The checkpoint of that name, such as `ckpt-3` or all of its path, or the newest.

  Raises:
    CheckpointError: there is none.
  """
  prefixes = find(workdir)
  for prefix in reversed(prefixes):
    if name is None or name == os.path.basename(prefix):
      return prefix
    if os.path.abspath(name) == os.path.abspath(prefix):
      return prefix
  if name is None:
    raise CheckpointError(f'there is no checkpoint in {workdir} yet')
  raise CheckpointError(
    f'no checkpoint {name} in {workdir}; there are: {_list(prefixes)}'
  )


def _list(prefixes: list[str]) -> str:
  return ', '.join(prefixes) or 'none'


def go_back(workdir: str, name: str):
  """Makes what `choose` finds the newest: later ones move to a `set_aside_*`.

  Raises:
    CheckpointError: there is no such checkpoint.
  """
  prefix, prefixes = choose(workdir, name), find(workdir)
  # A new folder each time: numbers are given again.
  aside = tempfile.mkdtemp(prefix='set_aside_', dir=directory(workdir))
  for later in prefixes[prefixes.index(prefix) + 1 :]:
    for path in glob.glob(f'{glob.escape(later)}.*'):
      os.replace(path, os.path.join(aside, os.path.basename(path)))
