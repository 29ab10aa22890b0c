"""Locks that let only one program at a time write in a workdir.

They are POSIX record locks on bytes of `<workdir>/lock`. The system releases them when
their process ends, by whatever cause, and tells which process holds one. A program
locks the first byte, and each of its nodes that writes locks a byte of its own. A new
program is refused while any byte is locked. Thus it is also refused while nodes of a
killed program are still running.

A program writes its name, which is its host and pid, into the file, and its nodes find
that name in an environment variable. So a node knows its own program, wherever it runs.
Where nodes run on several machines, the file system of the workdir must have locks that
reach over machines, as NFS has. A node that is started anew because its machine was
lost waits until the lock of its earlier process is gone.

Such locks have two hazards. A process loses all of its locks on a file when it closes
any descriptor of that file, so only this module opens the file, once, and it never
closes it. And locks do not conflict within one process: nodes that are threads
(`local_mt`) hold theirs beside the program's, but two agents in one notebook are not
kept apart.
"""

import collections
import contextlib
import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable

# An environment variable: the name of the program that a node belongs to.
PROGRAM = 'R2D2_PROGRAM'

_FILE = 'lock'
_PROGRAM_BYTE = 0
# Of the first of each role. The replay's are beyond those of all actors.
_BYTES = {'learner': 1, 'evaluator': 2, 'actor': 3, 'replay': 1 << 40}
_PATIENCE = 120.0  # seconds for a node's earlier process; NFS keeps locks for 90 s
_RETRY_PERIOD = 0.2  # seconds
_MAX_NAME_SIZE = 512  # bytes
_FLOCK = 'hhqqi'  # struct flock: type, whence, start, length (0: to the end), pid

_Inode = tuple[int, int]  # device and number of a lock file
_descriptors: dict[_Inode, int] = {}
_num_holds: collections.Counter[tuple[_Inode, int]] = collections.Counter()  # by byte


class WorkdirInUse(ValueError):
  """Another process writes in the workdir; the message names it and the cure."""


def hold_program(workdir: str):
  """Keeps other programs out of `workdir` for as long as this process lives.

  Raises:
    WorkdirInUse: another program, or a node of a killed one, writes there.
    OSError: the lock file cannot be made or locked.
  """
  inode = _open(workdir)
  _take(inode, _PROGRAM_BYTE, workdir)
  _num_holds[inode, _PROGRAM_BYTE] += 1
  # Only now: of two that start at once, none could overlook the other.
  pid = _holder(_descriptors[inode], _PROGRAM_BYTE + 1, 0)
  if pid is not None:
    _release(inode, _PROGRAM_BYTE)
    raise _in_use(inode, workdir, pid)
  os.environ[PROGRAM] = f'{socket.gethostname()}:{os.getpid()}'
  # In one piece: nodes of this program may read it at any moment.
  name = f'{os.environ[PROGRAM]}\n'.ljust(_MAX_NAME_SIZE)
  os.pwrite(_descriptors[inode], name.encode(), 0)
  os.fsync(_descriptors[inode])  # for other machines


def release_program(workdir: str):
  """Undoes one call of `hold_program`."""
  _release(_open(workdir), _PROGRAM_BYTE)


def hold(workdir: str, role: str, index: int = 0) -> Callable[[], None]:
  """Keeps other programs out of `workdir` while a node of this one writes there.

  Args:
    workdir: is made if it does not exist.
    role: 'learner', 'replay', 'actor' or 'evaluator'.
    index: of the node among those of its role.

  Returns:
    A function that releases the lock. The end of this process releases it, too.

  Raises:
    WorkdirInUse: another program, or a node of a killed one, writes there.
    OSError: the lock file cannot be made or locked.
  """
  byte = _BYTES[role] + index
  inode = _open(workdir)
  program = _holder(_descriptors[inode], _PROGRAM_BYTE, 1)
  if program is not None and not is_ours(workdir):
    raise _in_use(inode, workdir, program)
  deadline = time.monotonic() + (0.0 if program is None else _PATIENCE)
  while True:
    try:
      _take(inode, byte, workdir)
      break
    except WorkdirInUse:
      if time.monotonic() >= deadline:
        raise
      time.sleep(_RETRY_PERIOD)
  _num_holds[inode, byte] += 1
  return lambda: _release(inode, byte)


def is_ours(workdir: str) -> bool:
  """Returns whether the lock in `workdir` is that of the program of this process."""
  if not os.path.exists(os.path.join(workdir, _FILE)):
    return False
  name = _read_name(_open(workdir))
  return bool(name) and name == os.environ.get(PROGRAM)


def is_held(workdir: str) -> bool:
  """Returns whether a program runs in `workdir`; what is left of one does not count.

  Nothing is written or locked: whoever may read the workdir can ask.

  Raises:
    OSError: the lock file cannot be read.
  """
  path = os.path.join(workdir, _FILE)
  try:
    status = os.stat(path)
  except FileNotFoundError:
    return False
  inode = status.st_dev, status.st_ino
  if _num_holds[inode, _PROGRAM_BYTE]:
    return True
  if inode in _descriptors:
    return _holder(_descriptors[inode], _PROGRAM_BYTE, 1) is not None
  descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
  try:
    return _holder(descriptor, _PROGRAM_BYTE, 1) is not None
  finally:
    os.close(descriptor)


def _open(workdir: str) -> _Inode:
  os.makedirs(workdir, exist_ok=True)
  path = os.path.join(workdir, _FILE)
  with contextlib.suppress(FileNotFoundError):
    status = os.stat(path)
    if (status.st_dev, status.st_ino) in _descriptors:
      return status.st_dev, status.st_ino
  descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
  status = os.fstat(descriptor)
  _descriptors[status.st_dev, status.st_ino] = descriptor
  return status.st_dev, status.st_ino


def _take(inode: _Inode, byte: int, workdir: str):
  try:
    fcntl.lockf(_descriptors[inode], fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
  except (BlockingIOError, PermissionError) as error:
    raise _in_use(inode, workdir, _holder(_descriptors[inode], byte, 1)) from error


def _release(inode: _Inode, byte: int):
  _num_holds[inode, byte] -= 1
  if not _num_holds[inode, byte]:
    fcntl.lockf(_descriptors[inode], fcntl.LOCK_UN, 1, byte)


def _holder(descriptor: int, start: int, length: int) -> int | None:
  """Returns the process, other than this, that holds one of these bytes, if any."""
  wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
  found = fcntl.fcntl(descriptor, fcntl.F_GETLK, wanted)
  kind, *_, pid = struct.unpack(_FLOCK, found)
  return None if kind == fcntl.F_UNLCK else pid


def _read_name(inode: _Inode) -> str:
  """Returns the name of the program that held the lock last, or holds it."""
  name = os.pread(_descriptors[inode], _MAX_NAME_SIZE, 0)
  return name.decode(errors='replace').strip()


def _in_use(inode: _Inode, workdir: str, pid: int | None) -> WorkdirInUse:
  host = _read_name(inode).rpartition(':')[0]
  # The pid is not positive if the holder is in another container or on another machine.
  who = f'process {pid}' if pid and pid > 0 else 'a process'
  if host and host != socket.gethostname():
    who += f' of the host {host}'
  return WorkdirInUse(
    f'another program runs in {workdir} ({who}): stop it, wait until it has saved and '
    'ended, or give another --workdir'
  )
