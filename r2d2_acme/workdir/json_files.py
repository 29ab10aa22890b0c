"""JSON files: written whole or not at all, and read with suspicion."""

import contextlib
import json
import math
import os
from typing import Any

# The errors that reading JSON with other content than expected may raise.
NOT_OURS = (
  *(ValueError, TypeError, KeyError, AttributeError),
  *(OverflowError, RecursionError),
)


def write(path: str, content: Any, *, durable: bool = True):
  """Replaces a file by JSON; readers see the old or the new one, whole.

  Args:
    path: of the file.
    content: to write.
    durable: whether the file is on the disk afterwards. Otherwise a crash of the
      machine may leave an empty file.

  Raises:
    OSError: it cannot be written; names `path`. The old one is then still there.
  """
  try:
    with open(f'{path}.new', 'w') as file:
      json.dump(content, file, indent=2)
      if durable:
        file.flush()
        os.fsync(file.fileno())
    os.replace(f'{path}.new', path)
    if durable:
      sync_folder(os.path.dirname(path))
  except OSError as error:
    with contextlib.suppress(OSError):
      os.remove(f'{path}.new')
    raise OSError(error.errno, error.strerror, path) from error


def sync_folder(folder: str):
  """Makes sure that the names of a folder's files are on disk.

  Raises:
    OSError: the disk did not take them.
  """
  descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def dump(content: Any) -> bytes:
  """Returns JSON that is the same for the same content."""
  return json.dumps(content, sort_keys=True, separators=(',', ':')).encode()


def parse(text: bytes | str) -> Any:
  """Parses JSON like `json.loads`, but refuses NaN and infinity."""

  def refuse(constant: str):
    raise ValueError(f'{constant} is not a number')

  return json.loads(text, parse_constant=refuse)


def is_number(value: Any) -> bool:
  """Returns whether a value from JSON is a finite number."""
  return type(value) in (int, float) and math.isfinite(value)
