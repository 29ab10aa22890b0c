"""TensorBoard's event files: rows as scalars, and how it is told to forget some.

Acme's own logger for TensorBoard writes scalars only. What a sitting has abandoned
stays in its curves.
"""

import os
import pathlib
import platform
import re
import time
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from acme.utils import loggers
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.scalar import summary_v2

_NAME = re.compile(r'events\.out\.tfevents\.(\d+)\.')  # TensorBoard's, with its time
_ABANDONED = 'abandoned.'  # instead of `events.out.tfevents.`, so that nothing reads it


class EventLogger(loggers.Logger):
  """Writes each row to an event file of its own in a folder, at once."""

  def __init__(self, folder: str, label: str, steps_key: str):
    """The file is made with the first row.

    Args:
      folder: of the node.
      label: the first part of all tags.
      steps_key: the column that is the x-axis.
    """
    self._folder = folder
    self._label = label
    self._steps_key = steps_key
    self._file: tf.io.TFRecordWriter | None = None

  def write(self, values: Mapping[str, Any]):
    if self._file is None:
      self._file = _open(self._folder)
    self._file.write(_row(self._label, self._steps_key, values).SerializeToString())
    self._file.flush()

  def close(self):
    if self._file is not None:
      self._file.close()
      self._file = None


def go_back(
  folder: str, label: str, steps_key: str, last_row: Mapping[str, Any] | None
):
  """Makes TensorBoard forget what a node had logged after a row.

  TensorBoard's Python reader drops points from the step of a session's start on. Its
  default reader does not know sessions: it drops points when the same tag comes again
  with a smaller or equal step. So the last row is written again. Where no row is left,
  all files are renamed.

  Args:
    folder: of the node; it need not be there.
    label, steps_key: as for `EventLogger`.
    last_row: what remains; None for nothing.
  """
  paths = _event_files(folder)
  if last_row is None:
    for path in paths:
      path.rename(path.with_name(_NAME.sub(rf'{_ABANDONED}\1.', path.name)))
  if not paths:
    return
  step = 0 if last_row is None else int(last_row[steps_key])
  start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
  event = event_pb2.Event(wall_time=time.time(), step=step, session_log=start)
  with _open(folder) as file:
    # The first start that TensorBoard finds tells it nothing: it drops points from the
    # second one on.
    for _ in range(2):
      file.write(event.SerializeToString())
    if last_row is not None:
      file.write(_row(label, steps_key, last_row).SerializeToString())


def _row(label: str, steps_key: str, values: Mapping[str, Any]) -> event_pb2.Event:
  """The event of a row: a scalar for each of its columns but the steps."""
  summary = summary_pb2.Summary()
  for key, value in values.items():
    if key != steps_key:
      tag = f'{label}/{key.title().replace("_", "")}'  # as Acme writes it
      summary.value.extend(summary_v2.scalar_pb(tag, value).value)
  step = int(values[steps_key])
  return event_pb2.Event(wall_time=time.time(), step=step, summary=summary)


def _open(folder: str) -> tf.io.TFRecordWriter:
  """Opens a file that TensorBoard reads after those that are there."""
  os.makedirs(folder, exist_ok=True)
  times = [int(_NAME.match(path.name)[1]) for path in _event_files(folder)]  # type: ignore[index]
  now = max(int(time.time()), max(times, default=0) + 1)
  name = f'events.out.tfevents.{now:010d}.{platform.node()}.{os.getpid()}'
  # As bytes: TensorFlow refuses strings that are not UTF-8.
  file = tf.io.TFRecordWriter(os.fsencode(os.path.join(folder, name)))
  version = event_pb2.Event(wall_time=time.time(), file_version='brain.Event:2')
  file.write(version.SerializeToString())
  return file


def _event_files(folder: str) -> list[pathlib.Path]:
  if not os.path.isdir(folder):
    return []
  return [path for path in pathlib.Path(folder).iterdir() if _NAME.match(path.name)]
