"""Who writes in a workdir: one program at a time, for as long as any part of it lives.

Locks are POSIX record locks on bytes of `<workdir>/lock`: the system lets go of them
when their process ends, however it does, and tells which process holds one. A program
holds the first byte, and each of its nodes that writes holds one of its own. A program
that starts is refused while anyone holds any of them: what is left of a program that
was killed holds them until it has ended, too.

Hazards of such locks: a process loses all of its locks on a file when it closes any
descriptor of that file, so this module alone opens it, once, and never closes it. They
do not conflict within one process: there, nodes as threads (`local_mt`) hold theirs
beside the program's, and two agents of one notebook are not kept apart.
"""

import collections
import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Callable

_FILE = 'lock'
_PROGRAM_BYTE = 0
_BYTES = {'learner': 1, 'evaluator': 2}
_FIRST_ACTOR_BYTE = 3
_FLOCK = 'hhqqi'  # struct flock: type, whence, start, length (0: to the end), pid

_Inode = tuple[int, int]  # device and number of a lock file
_descriptors: dict[_Inode, int] = {}
_num_holds: collections.Counter[tuple[_Inode, int]] = collections.Counter()  # by byte


class WorkdirInUse(ValueError):
  """Another process writes in the workdir; one line that names it and the cure."""


def hold_program(workdir: str):
  """Keeps other programs out of `workdir` for as long as this process lives.

  Raises:
    WorkdirInUse: another program, or what is left of one, writes there.
    OSError: a lock cannot be had there.
  """
  inode = _open(workdir)
  _take(inode, _PROGRAM_BYTE, workdir)
  _num_holds[inode, _PROGRAM_BYTE] += 1
  # Only now: of two that start at once, none could overlook the other.
  pid = _holder(_descriptors[inode], _PROGRAM_BYTE + 1, 0)
  if pid is not None:
    _release(inode, _PROGRAM_BYTE)
    raise _in_use(inode, workdir, pid)
  _write_host(inode)


def hold(workdir: str, role: str, index: int = 0) -> Callable[[], None]:
  """Keeps other programs out while a node, a part of this one, writes in `workdir`.

  Args:
    workdir: exists or is made.
    role: 'learner', 'actor' or 'evaluator'.
    index: of the actor.

  Returns:
    What ends it; so does the end of this process.

  Raises:
    WorkdirInUse: another program, or what is left of one, writes there.
    OSError: a lock cannot be had there.
  """
  byte = _FIRST_ACTOR_BYTE + index if role == 'actor' else _BYTES[role]
  inode = _open(workdir)
  program = _holder(_descriptors[inode], _PROGRAM_BYTE, 1)
  if program not in (None, os.getppid()):  # our parent is this node's program
    raise _in_use(inode, workdir, program)
  _take(inode, byte, workdir)
  _num_holds[inode, byte] += 1
  _write_host(inode)
  return lambda: _release(inode, byte)


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


def _write_host(inode: _Inode):
  descriptor = _descriptors[inode]
  os.ftruncate(descriptor, 0)
  os.pwrite(descriptor, f'{socket.gethostname()}\n'.encode(), 0)


def _in_use(inode: _Inode, workdir: str, pid: int | None) -> WorkdirInUse:
  host = os.pread(_descriptors[inode], 256, 0).decode(errors='replace').strip()
  # 0, or below, where the holder is in another container or on another machine.
  who = f'process {pid}' if pid and pid > 0 else 'a process'
  if host and host != socket.gethostname():
    who += f' of the host {host}'
  return WorkdirInUse(
    f'another program runs in {workdir} ({who}): stop it, or wait until it has saved '
    'and ended, or give another --workdir'
  )
