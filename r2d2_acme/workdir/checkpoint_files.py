"""Files of checkpoints: how they are written, checked, and found to be damaged.

The sums of checkpoints' files are CRC-32, which reads 1 GB/s: a sum tells damage by
accident, not by intent. A checkpoint that was found damaged gets an empty file
`<name>.damaged` beside it. Such a checkpoint is never used, deleted or overwritten;
without that file it is tried again.
"""

import contextlib
import errno
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import tensorflow as tf

from r2d2_acme.system import stopping
from r2d2_acme.workdir import paths

_BLOCK = 1 << 20  # bytes
_MARK = '.damaged'
# Errors of the system for which an intact file cannot be read or written.
_SYSTEM_ERRORS = (
  *(errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR),
  *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE),
  *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
)

Sums = Mapping[str, tuple[int, int]]  # size in bytes and CRC-32, by file name


class CheckpointError(ValueError):
  """A checkpoint cannot be read, restored or saved; one line that names the cure."""


class Damaged(CheckpointError):
  """The bytes of a checkpoint are not those that were written."""


def attempt(save: Callable[[], object], period: float) -> bool:
  """Saves, or says in a loud line why that failed; returns whether it succeeded.

  Args:
    save: may raise a `CheckpointError`.
    period: seconds until the next attempt.
  """
  try:
    save()
    return True
  except CheckpointError as error:
    stopping.say(
      f'error: {error}; training goes on, the next attempt is in {period:.0f} s'
    )
    return False


def sum_files(files: Iterable[str]) -> dict[str, tuple[int, int]]:
  """Returns the sums of files by name, and makes sure that the files are on disk.

  Raises:
    OSError: a file cannot be read, or the disk did not take it.
  """
  return {os.path.basename(file): _sum(file, sync=True) for file in files}


def check_files(what: str, folder: str, sums: Sums, *, thorough: bool = True):
  """Checks that files are those whose sums were taken.

  Args:
    what: the subject of the error, such as 'checkpoint .../ckpt-3'.
    folder: where the files are.
    sums: of the files.
    thorough: whether every byte is read. Otherwise only sizes are compared.

  Raises:
    Damaged: a file is missing or other than it was.
    CheckpointError: the system refused to read a file.
  """
  for name, (size, crc) in sums.items():
    path = os.path.join(folder, name)
    try:
      now = _sum(path) if thorough else (os.stat(path).st_size, crc)
    except FileNotFoundError as error:
      raise Damaged(f'{what} is damaged: {name} is missing') from error
    except OSError as error:
      raise CheckpointError(f'{what} cannot be read: {error.strerror}') from error
    if now[0] != size:
      raise Damaged(f'{what} is damaged: {name} has {now[0]} bytes, not {size}')
    if now[1] != crc:
      raise Damaged(f'{what} is damaged: the bytes of {name} have changed')


def _sum(path: str, sync: bool = False) -> tuple[int, int]:
  size = crc = 0
  with open(path, 'rb', buffering=0) as file:
    if sync:
      os.fsync(file.fileno())
    while block := file.read(_BLOCK):
      size += len(block)
      crc = zlib.crc32(block, crc)
  return size, crc


def mark(path: str):
  """Notes that the checkpoint with this path, without a suffix, is damaged."""
  with contextlib.suppress(OSError), open(path + _MARK, 'w'):
    pass


def is_marked(path: str) -> bool:
  """Returns whether a checkpoint was found damaged before."""
  return os.path.exists(path + _MARK)


def find_mark(path: str) -> list[str]:
  """Returns the file that marks a checkpoint, if there is one."""
  return [path + _MARK] if is_marked(path) else []


@contextlib.contextmanager
def writing(folder: str) -> Iterator[None]:
  """Turns errors of writing into a folder into a `CheckpointError`.

  Raises:
    CheckpointError: the system refused to write.
  """
  try:
    yield
  except (OSError, tf.errors.OpError) as error:
    reason = system_reason(error) or str(error)
    raise CheckpointError(f'cannot save in {paths.shown(folder)}: {reason}') from error


def system_reason(error: Exception) -> str | None:
  """Returns the system's reason for an error; None if the system is not its cause."""
  if isinstance(error, OSError):
    return None if error.errno == errno.ENOENT else error.strerror
  if isinstance(error, MemoryError):
    return os.strerror(errno.ENOMEM)
  # Errors of TensorFlow and Reverb quote the system's message.
  reasons = map(os.strerror, _SYSTEM_ERRORS)
  return next((reason for reason in reasons if reason in str(error)), None)
