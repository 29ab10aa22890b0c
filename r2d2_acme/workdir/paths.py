"""Workdirs' paths: any that the file system allows, for whatever library opens them."""

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator

_MAX_BYTES = 4096 - 256  # Linux's limit of a path, less what is below a workdir
_DESCRIPTORS = '/proc/self/fd'


class BadWorkdir(ValueError):
  """A path cannot be a workdir's; one line that names the cure."""


def resolve(path: str | os.PathLike) -> str:
  """Returns the absolute path that every part of the program then uses.

  A leading `~` or `~user` is the home folder, as in a shell.

  Raises:
    BadWorkdir: there is no such home folder, or the path is empty or too long.
  """
  given = os.fsdecode(path)
  expanded = os.path.expanduser(given)
  if expanded.startswith('~'):
    raise BadWorkdir(
      f'there is no home folder for {shown(given)}: give the whole path, or '
      f'./{shown(given)} if a folder is called so'
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
  """As `resolve`, as the `type` of an argparse argument."""
  try:
    return resolve(path)
  except BadWorkdir as error:
    raise argparse.ArgumentTypeError(str(error)) from error


def shown(path: str) -> str:
  """Returns `path` in one line that any terminal can print."""
  return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in path)


def check_writable(workdir: str, folders: Iterable[str], files: Iterable[str]):
  """Tries to write in folders and files of a workdir, and leaves them as they are.

  Args:
    workdir: of the run.
    folders: below it. A file is made and deleted in each that exists.
    files: below it. Each that exists is opened as if more came at its end.

  Raises:
    OSError: one cannot be written; its `filename` says which.
  """

  def write_in(folder: str):
    with tempfile.TemporaryFile(dir=folder):
      pass

  def append_to(file: str):
    # Of a pipe without a reader the system says so, instead of waiting for one.
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

  Many libraries take the characters of a path for a pattern, or need UTF-8. Files are
  to be opened before the end of the context, and may stay open after it. Where there
  is no /proc, it is the path that was given.

  Raises:
    OSError: there is no such folder.
  """
  descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY)
  try:
    path = f'{_DESCRIPTORS}/{descriptor}'
    yield path if os.path.isdir(path) else directory
  finally:
    os.close(descriptor)
