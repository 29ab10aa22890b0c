"""Paths of workdirs, made such that every library can open what the system allows."""

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator

_MAX_BYTES = 4096 - 256  # Linux's limit, less the longest path inside a workdir
_DESCRIPTORS = '/proc/self/fd'


class BadWorkdir(ValueError):
  """A path cannot be that of a workdir; the message is one line with the cure."""


def resolve(path: str | os.PathLike) -> str:
  """Returns the absolute path of a workdir, which every part of the program uses.

  A leading `~` or `~user` stands for the home folder, as in a shell.

  Raises:
    BadWorkdir: there is no such home folder, or the path is empty or too long.
  """
  given = os.fsdecode(path)
  expanded = os.path.expanduser(given)
  if expanded.startswith('~'):
    raise BadWorkdir(
      f'there is no home folder for {shown(given)}: give the whole path, or '
      f'./{shown(given)} if that is the name of a folder'
    )
  if not expanded or '\0' in expanded:
    raise BadWorkdir(f'{given!r} cannot be the path of a folder: give another')
  try:
    # A `..` after a link leads to the parent of where the link points to.
    follow_links = '..' in expanded.split('/')
    absolute = (os.path.realpath if follow_links else os.path.abspath)(expanded)
  except FileNotFoundError as error:
    raise BadWorkdir(
      f'the current folder was deleted: go to another, or give the whole path of '
      f'{shown(given)}'
    ) from error
  if len(os.fsencode(absolute)) > _MAX_BYTES:
    raise BadWorkdir(
      f'{shown(absolute[:40])}… is longer than {_MAX_BYTES} bytes: give a shorter path'
    )
  return absolute


def argument(path: str) -> str:
  """Is `resolve` for the `type` of an argparse argument."""
  try:
    return resolve(path)
  except BadWorkdir as error:
    raise argparse.ArgumentTypeError(str(error)) from error


def shown(path: str) -> str:
  """Returns `path` with unprintable characters escaped, so that it fits in a line."""
  return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in path)


def check_writable(workdir: str, folders: Iterable[str], files: Iterable[str]):
  """Checks that a workdir and parts of it can be written, and changes nothing.

  Args:
    workdir: of the run.
    folders: relative paths of folders. In each that exists a file is made and deleted.
    files: relative paths of files. Each that exists is opened for appending.

  Raises:
    OSError: one cannot be written. Its `filename` says which.
  """

  def write_in(folder: str):
    with tempfile.TemporaryFile(dir=folder):
      pass

  def append_to(file: str):
    # O_NONBLOCK: a pipe without a reader is an error. Otherwise the call would wait.
    os.close(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK))

  tries = [(write_in, '.'), *((write_in, folder) for folder in folders)]
  for write, name in [*tries, *((append_to, file) for file in files)]:
    path = os.path.normpath(os.path.join(workdir, name))
    if os.path.lexists(path):
      try:
        write(path)
      except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


@contextlib.contextmanager
def opened(directory: str) -> Iterator[str]:
  """Opens a folder and yields a path to it that has no special character.

  Many libraries read paths as patterns, or need UTF-8. Open the folder's files inside
  the context; they may stay open after it. On a system without /proc, the path is
  `directory` itself.

  Raises:
    OSError: there is no such folder.
  """
  descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY)
  try:
    path = f'{_DESCRIPTORS}/{descriptor}'
    yield path if os.path.isdir(path) else directory
  finally:
    os.close(descriptor)
