"""Files that cannot be written, for example on a full disk, do not end the program."""

import contextlib
import time
from collections.abc import Iterator

from r2d2_acme.system import stopping
from r2d2_acme.workdir.paths import shown

_PERIOD = 60.0  # seconds between two lines


class WriteErrors:
  """Reports errors of writing, at most one line a minute, and lets the program go on.

  Attributes:
    last: the line that describes the newest error; '' if the newest write succeeded.
  """

  def __init__(self, consequence: str):
    """Starts without an error.

    Args:
      consequence: what an error means to the user, as the end of a line.
    """
    self.last = ''
    self._consequence = consequence
    self._next_time = 0.0

  @contextlib.contextmanager
  def reported(self) -> Iterator[None]:
    """Prints an `OSError` that is raised inside `with`, and goes on after it."""
    try:
      yield
      self.last = ''
    except OSError as error:
      self.last = (
        f'error: cannot write {shown(str(error.filename or "a file"))}: '
        f'{error.strerror or error}; {self._consequence}'
      )
      if time.monotonic() >= self._next_time:
        self._next_time = time.monotonic() + _PERIOD
        stopping.say(self.last)
