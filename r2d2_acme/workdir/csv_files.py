"""CSV files of rows, to which whole rows are appended, and which may be huge."""

import contextlib
import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from acme.utils import loggers

_BLOCK = 1 << 20  # bytes


class CsvLogger(loggers.Logger):
  """Appends rows to a CSV file, each without delay.

  The file is opened for each row. So a row never goes to a file that was moved or
  deleted, and one that could not be written is not kept in a buffer.
  """

  def __init__(self, path: str, columns: Sequence[str]):
    """Prepares the logger. The first row makes the file, but not its folder."""
    self._path = path
    self._columns = sorted(columns)

  def write(self, values: Mapping[str, Any]):
    """Appends a row.

    Raises:
      OSError: it cannot be written, or only a part of it. The next row
        removes the part.
    """
    row = _format([values[column] for column in self._columns])
    with _opened(self._path) as descriptor:
      data = row if _mend(descriptor) else _format(self._columns) + row
      while data:  # a disk that is almost full takes a part
        data = data[os.write(descriptor, data) :]

  def close(self):
    """Does nothing: no file is open."""


def mend(path: str | os.PathLike):
  """Removes a last line that has no end; a process was killed when it wrote it.

  Raises:
    OSError: the file cannot be written.
  """
  if os.path.exists(path):
    with _opened(path) as descriptor:
      _mend(descriptor)


def read_lines(path: str | os.PathLike) -> Iterator[bytes]:
  """Yields the lines of a file that have an end, with it; none if there is no file."""
  with contextlib.suppress(FileNotFoundError), open(path, 'rb') as file:
    yield from (line for line in file if line.endswith(b'\n'))


def read_lines_backwards(path: str | os.PathLike) -> Iterator[bytes]:
  """Yields what `read_lines` does, the last line first; reads no more than it needs."""
  with contextlib.suppress(FileNotFoundError), open(path, 'rb') as file:
    position = _end_of_lines(file.fileno()) - 1
    rest = b''
    while position > 0:
      start = max(0, position - _BLOCK)
      data = os.pread(file.fileno(), position - start, start)
      rest, *lines = (data + rest).split(b'\n')
      position = start
      yield from (line + b'\n' for line in reversed(lines))
    if position == 0:
      yield rest + b'\n'


def _mend(descriptor: int) -> int:
  """Removes a last line without its end; returns the file's size."""
  size = os.fstat(descriptor).st_size
  if size and os.pread(descriptor, 1, size - 1) != b'\n':
    size = _end_of_lines(descriptor)
    os.ftruncate(descriptor, size)
  return size


def _end_of_lines(descriptor: int) -> int:
  """Returns where the last line ends that has an end."""
  position = os.fstat(descriptor).st_size
  while position:
    start = max(0, position - _BLOCK)
    newline = os.pread(descriptor, position - start, start).rfind(b'\n')
    if newline >= 0:
      return start + newline + 1
    position = start
  return 0


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[int]:
  """Opens a file for appending; errors name it."""
  try:
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
      yield descriptor
    finally:
      os.close(descriptor)
  except OSError as error:
    raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def _format(values: Sequence[Any]) -> bytes:
  text = io.StringIO(newline='')
  csv.writer(text).writerow(values)
  return text.getvalue().encode()
