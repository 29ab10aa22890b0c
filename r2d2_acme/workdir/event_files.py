"""TensorBoard's event files, which hold rows as scalars, and how to remove points.

Acme's own logger for TensorBoard cannot remove points: rows that a later sitting
abandons would stay in the curves.
"""

import contextlib
import errno
import os
import pathlib
import platform
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tensorflow as tf
from acme.utils import loggers
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.hparams import summary_v2 as hparams_summary
from tensorboard.plugins.scalar import summary_v2

_NAME = re.compile(r'events\.out\.tfevents\.(\d+)\.')  # the number is a time
_ABANDONED = 'abandoned.'  # replaces `events.out.tfevents.`: TensorBoard skips the file


class EventLogger(loggers.Logger):
  """Writes rows to a new event file in a folder, each without delay."""

  def __init__(self, folder: str, label: str, steps_key: str):
    """Prepares the logger. The first row makes the file, but not its folder.

    Args:
      folder: the node's folder.
      label: the first part of all tags.
      steps_key: the column that is the x-axis.
    """
    self._folder = folder
    self._label = label
    self._steps_key = steps_key
    self._path = ''
    self._file: tf.io.TFRecordWriter | None = None

  def write(self, values: Mapping[str, Any]):
    """Writes a row.

    Raises:
      OSError: it cannot be written, or only a part of it. The next row begins a new
        file, since readers go no further in one that has a part of a row.
    """
    is_new = self._file is None
    try:
      with _os_errors(self._folder):
        if self._file is None:
          self._path = _new_path(self._folder)
          self._file = _open(self._path)
        self._file.write(_row(self._label, self._steps_key, values).SerializeToString())
        self._file.flush()
    except OSError:
      with contextlib.suppress(OSError):
        self.close()
      if is_new:  # not one for each row that is lost
        with contextlib.suppress(OSError):
          os.remove(self._path)
      raise

  def close(self):
    """Closes the file.

    Raises:
      OSError: the rest of it cannot be written.
    """
    file, self._file = self._file, None
    if file is not None:
      with _os_errors(self._folder):
        file.close()


def go_back(
  folder: str, label: str, steps_key: str, last_row: Mapping[str, Any] | None
):
  """Removes from TensorBoard's curves what a node logged after a row.

  TensorBoard has two readers. Its Python reader drops the points after the step of a
  session start, so session starts are written. Its default reader ignores sessions and
  drops points when a tag returns with a smaller or equal step, so the last row is
  written again. If no row is left, all files are renamed.

  Args:
    folder: the node's folder, which need not exist.
    label, steps_key: as for `EventLogger`.
    last_row: the last row to keep; None to keep none.

  Raises:
    OSError: the folder cannot be written.
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
  with _os_errors(folder), _open(_new_path(folder)) as file:
    # TensorBoard ignores the first session start that it finds.
    for _ in range(2):
      file.write(event.SerializeToString())
    if last_row is not None:
      file.write(_row(label, steps_key, last_row).SerializeToString())


def write_gif(folder: str, tag: str, step: int, gif: bytes, size: tuple[int, ...]):
  """Writes an animated GIF, which TensorBoard shows among the images.

  Args:
    folder: gets a file of its own for it, and is made if it does not exist.
    tag: names the image in TensorBoard.
    step: the x-axis.
    gif: the bytes of the GIF.
    size: height and width in pixels.

  Raises:
    OSError: it cannot be written.
  """
  height, width = size
  image = summary_pb2.Summary.Image(
    height=height, width=width, colorspace=3, encoded_image_string=gif
  )
  _write(folder, step, [summary_pb2.Summary.Value(tag=tag, image=image)])


def write_hparams(folder: str, values: Mapping[str, Any]):
  """Writes hyperparameters, which TensorBoard shows beside the metrics below a folder.

  They replace those of an earlier sitting, of which TensorBoard would keep the first.

  Raises:
    OSError: they cannot be written.
  """
  for path in _event_files(folder):
    path.unlink()
  hparams = {
    name: value if isinstance(value, (bool, int, float)) else _as_text(str(value))
    for name, value in values.items()
  }
  # With the folder as their name, two runs of one config are two lines of a table.
  summary = hparams_summary.hparams_pb(
    hparams, trial_id=_as_text(os.path.abspath(folder))
  )
  _write(folder, 0, summary.value)


def _as_text(text: str) -> str:
  """Returns a text that UTF-8 can encode, as a path need not be."""
  return text.encode(errors='backslashreplace').decode()


def _write(folder: str, step: int, values: Iterable[summary_pb2.Summary.Value]):
  """Writes an event file with these values."""
  os.makedirs(folder, exist_ok=True)
  summary = summary_pb2.Summary(value=values)
  event = event_pb2.Event(wall_time=time.time(), step=step, summary=summary)
  with _os_errors(folder), _open(_new_path(folder)) as file:
    file.write(event.SerializeToString())


def _row(label: str, steps_key: str, values: Mapping[str, Any]) -> event_pb2.Event:
  """Returns the event of a row: a scalar for each of its columns but the steps."""
  summary = summary_pb2.Summary()
  for key, value in values.items():
    if key != steps_key:
      tag = f'{label}/{key.title().replace("_", "")}'  # as Acme's logger names it
      summary.value.extend(summary_v2.scalar_pb(tag, value).value)
  step = int(values[steps_key])
  return event_pb2.Event(wall_time=time.time(), step=step, summary=summary)


def _new_path(folder: str) -> str:
  """Returns the path of a new file that TensorBoard reads after the existing ones."""
  times = [int(_NAME.match(path.name)[1]) for path in _event_files(folder)]  # type: ignore[index]
  now = max(int(time.time()), max(times, default=0) + 1)
  name = f'events.out.tfevents.{now:010d}.{platform.node()}.{os.getpid()}'
  return os.path.join(folder, name)


def _open(path: str) -> tf.io.TFRecordWriter:
  # TensorFlow refuses strings that are not UTF-8, but takes bytes.
  file = tf.io.TFRecordWriter(os.fsencode(path))
  version = event_pb2.Event(wall_time=time.time(), file_version='brain.Event:2')
  file.write(version.SerializeToString())
  return file


@contextlib.contextmanager
def _os_errors(folder: str) -> Iterator[None]:
  """Raises TensorFlow's errors of files in a folder as `OSError`."""
  try:
    yield
  except tf.errors.OpError as error:
    text = error.message.rpartition('; ')[2]
    raise OSError(errno.EIO, text, folder) from error


def _event_files(folder: str) -> list[pathlib.Path]:
  if not os.path.isdir(folder):
    return []
  return [path for path in pathlib.Path(folder).iterdir() if _NAME.match(path.name)]
