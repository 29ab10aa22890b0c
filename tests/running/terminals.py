"""A terminal for tests: a pseudo-terminal that keeps what a program draws on it."""

import codecs
import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
from collections.abc import Mapping, Sequence

# What a program sends: an escape sequence, a control character, or a character.
_TOKEN = re.compile(r'\x1b\[(\??[\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n])', re.S)


class Terminal:
  """A terminal of some size, as xterm: it cuts what no longer fits, and scrolls.

  Attributes:
    side: the descriptor that a program takes for its terminal.
    is_cursor_visible: whether it is.
    column: of the cursor.
  """

  def __init__(self, columns: int = 80, lines: int = 24):
    self.is_cursor_visible = True
    self.column = 0
    self._rows = ['']
    self._row = 0
    self._rest = ''
    # A read may end in the middle of a character.
    self._decoder = codecs.getincrementaldecoder('utf-8')('replace')
    self._lock = threading.Lock()
    self._master, self.side = pty.openpty()
    self.resize(columns, lines)
    threading.Thread(target=self._read, daemon=True).start()

  def resize(self, columns: int, lines: int):
    with self._lock:
      self._size = columns, lines
    size = struct.pack('HHHH', lines, columns, 0, 0)
    fcntl.ioctl(self.side, termios.TIOCSWINSZ, size)

  def start(
    self, command: Sequence, env: Mapping[str, str] | None = None
  ) -> subprocess.Popen:
    """Starts a program in a session of its own, of which this is the terminal."""
    return subprocess.Popen(
      command,
      stdin=self.side,
      stdout=self.side,
      stderr=self.side,
      env={**os.environ, 'TERM': 'xterm-256color', **(env or {})},
      start_new_session=True,
      preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )

  @property
  def rows(self) -> list[str]:
    """All rows, those that have scrolled away too, without empty ones at the end."""
    with self._lock:
      rows = [row.rstrip() for row in self._rows]
    while rows and not rows[-1]:
      rows.pop()
    return rows

  @property
  def visible(self) -> list[str]:
    """The rows that have not scrolled away."""
    with self._lock:
      return [row.rstrip() for row in self._rows[self._top :]]

  @property
  def _top(self) -> int:
    return max(0, len(self._rows) - self._size[1])

  def _read(self):
    with contextlib.suppress(OSError):  # the last one has closed it
      while data := os.read(self._master, 1 << 16):
        with self._lock:
          self._draw(self._decoder.decode(data))

  def _draw(self, data: str):
    self._rest += data
    position = 0
    while match := _TOKEN.match(self._rest, position):
      position = match.end()
      argument, command, control, character = match.groups()
      if command:
        self._obey(argument, command)
      elif control == '\r':
        self.column = 0
      elif control == '\n':
        self._feed()
      else:
        self._put(character)
    self._rest = self._rest[position:]

  def _obey(self, argument: str, command: str):
    if command == 'A':
      self._row = max(self._top, self._row - int(argument or 1))
    elif command == 'K':
      assert argument == '2'
      self._rows[self._row] = ''
    elif command == 'J':
      assert argument == '2'
      self._rows[self._top :] = [''] * len(self._rows[self._top :])
    elif command == 'H':
      self._row, self.column = self._top, 0
    elif argument == '?25':
      self.is_cursor_visible = command == 'h'
    else:
      assert command == 'm', f'{argument}{command}'  # colours

  def _feed(self):
    self._row += 1
    if self._row == len(self._rows):
      self._rows.append('')

  def _put(self, character: str):
    if self.column >= self._size[0]:
      self.column = 0
      self._feed()
    row = self._rows[self._row].ljust(self.column)
    self._rows[self._row] = row[: self.column] + character + row[self.column + 1 :]
    self.column += 1
