"""The files that nodes print to: followed as they grow, and kept small."""

import codecs
import contextlib
import os
import re
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TextIO

from r2d2_acme.system import stopping

_POLL_PERIOD = 0.1  # seconds
_NUM_LAST_LINES = 20  # of a failed node's output
_MAX_SIZE = 10 << 20  # bytes of a file; each output has up to two
_MAX_LINE_LENGTH = 64 << 10  # characters

# Notices of the libraries underneath: they stay in the files.
_NOISE = re.compile(r'I\d{4} |\[reverb/cc/')


class Output:
  """A file that a process appends to, read as it grows.

  Attributes:
    path: of the file. Once it is large, what came before it is in `<path>.1`.
  """

  def __init__(self, path: str):
    """Makes an empty file at `path`; what an earlier start left there is removed."""
    self.path = path
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
      os.remove(f'{path}.1')
    self._file = open(path, 'w+b', buffering=0)
    self._decoder = codecs.getincrementaldecoder('utf-8')('replace')
    self._partial = ''

  def new_lines(self) -> Iterator[str]:
    """Yields the whole lines that were added since the last call.

    A line that does not end is cut at `_MAX_LINE_LENGTH`.
    """
    while data := self._file.read(_MAX_SIZE):
      yield from self._split(data)
    if self._file.tell() > _MAX_SIZE:
      yield from self._split(self._rotate())

  def last_lines(self) -> list[str]:
    """Returns the last few lines, without the notices of libraries."""
    lines: list[str] = []
    for path in (f'{self.path}.1', self.path):
      with contextlib.suppress(FileNotFoundError), open(path, errors='replace') as file:
        printed = (line.rstrip() for line in file if not _NOISE.match(line))
        lines += [line[-_MAX_LINE_LENGTH:] for line in printed]
    return lines[-_NUM_LAST_LINES:]

  def _split(self, data: bytes) -> list[str]:
    # Progress bars end their lines with \r.
    *lines, rest = re.split('[\r\n]', self._partial + self._decoder.decode(data))
    pieces = range(0, max(len(rest), 1), _MAX_LINE_LENGTH)
    *cut, self._partial = [rest[i : i + _MAX_LINE_LENGTH] for i in pieces]
    return lines + cut

  def _rotate(self) -> bytes:
    """Moves all that was read to `<path>.1`; returns what was added meanwhile."""
    more = b''
    with contextlib.suppress(OSError):  # on a full disk it is lost
      shutil.copyfile(self.path, f'{self.path}.1')
      more = self._file.read()
      with open(f'{self.path}.1', 'ab') as old:
        old.write(more[len(more) - (self._file.tell() - old.tell()) :])
    # What is added just now is lost: a file that others hold open cannot be swapped.
    self._file.truncate(0)
    self._file.seek(0)
    return more


def print_lines(lines: Sequence[str]):
  """Prints lines to wherever this process prints, even if that is gone."""
  out = stopping.Forgiving(sys.stdout)
  for line in lines:
    print(line, file=out)
  out.flush()


@contextlib.contextmanager
def following(
  outputs: Mapping[str, Output], show: Callable[[Sequence[str]], None] = print_lines
) -> Iterator[None]:
  """Shows, inside `with`, what is added to outputs, and at its end the rest.

  Args:
    outputs: by the node's name, which then labels the lines.
    show: called ten times a second in a thread, with the new lines, if there are any.
  """
  closing = threading.Event()

  def follow():
    at_end = False
    while not at_end:
      at_end = closing.wait(_POLL_PERIOD)  # then once more, for the rest
      lines: list[str] = []
      for name, output in outputs.items():
        with contextlib.suppress(OSError):  # of the disk; perhaps it can be read later
          lines.extend(_new(name, output))
      try:
        show(lines)
      except Exception:  # to draw is less than to tell
        traceback.print_exc()
        print_lines(lines)

  thread = threading.Thread(target=follow, daemon=True)
  thread.start()
  try:
    yield
  finally:
    closing.set()
    thread.join()


def _new(name: str, output: Output) -> Iterator[str]:
  for line in output.new_lines():
    if line and not _NOISE.match(line):
      # The rows of Acme's loggers have a label of their own.
      yield line if line.startswith('[') or not name else f'[{name}] {line}'


@contextlib.contextmanager
def captured(path: str) -> Iterator[tuple[Output, TextIO]]:
  """Sends, inside `with`, what this process prints on a terminal to a file.

  This covers what libraries print in C++, and children that inherit the terminal.

  Yields:
    The file, and a stream that still prints on the terminal, of stdout.
  """
  output = Output(path)
  encoding = getattr(sys.stdout, 'encoding', None)
  terminal = os.fdopen(os.dup(1), 'w', encoding=encoding, errors='backslashreplace')
  kept = {number: os.dup(number) for number in (1, 2) if os.isatty(number)}

  def flush():
    for stream in (sys.stdout, sys.stderr):
      stopping.Forgiving(stream).flush()

  flush()
  with open(path, 'ab') as file:
    for number in kept:
      os.dup2(file.fileno(), number)
  try:
    yield output, terminal
  finally:
    flush()
    for number, descriptor in kept.items():
      os.dup2(descriptor, number)
      os.close(descriptor)
    with contextlib.suppress(OSError):
      terminal.close()
