"""Runs a tracker beside a program, in a child of the process that the user started.

The child is no node: it follows the workdir, so that a private network of the nodes
does not matter. A tracker that hangs or fails neither stops nor slows the training.
"""

import contextlib
import importlib.metadata
import signal
import sys
import time
from collections.abc import Callable, Iterator

from r2d2_acme.system import processes, stopping
from r2d2_acme.tracking import KINDS, news
from r2d2_acme.workdir.write_errors import WriteErrors

_PATIENCE = 20.0  # seconds for what is still to be sent at the end
_POLL_PERIOD = 0.1  # seconds
_ASKING = {signal.SIGTERM}  # asks the child to end; `sending` unblocks it
_CODE = (
  'import sys; del sys.path[0]; from r2d2_acme.tracking import sending; sending.main()'
)


def check(kind: str):
  """Checks that a tracker is installed.

  Raises:
    ValueError: it is not, or there is no such tracker; one line that names the cure.
  """
  if kind not in KINDS:
    raise ValueError(f'{kind!r} is no tracker: give one of {", ".join(KINDS)}')
  name = KINDS[kind][0].partition('==')[0]
  try:
    importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError as error:
    raise ValueError(
      f'{name} is not installed; cure: {sys.executable} -m pip install '
      f'{" ".join(KINDS[kind])}'
    ) from error


@contextlib.contextmanager
def tracked(
  kind: str | None, workdir: str | None, is_quit: Callable[[], bool] = lambda: False
) -> Iterator[None]:
  """Sends, inside `with`, what a run adds to its workdir; at the end the rest.

  Args:
    kind: of `KINDS`; None for no tracker.
    workdir: of a run that has begun there, but whose nodes have not started.
    is_quit: returns whether the user does not want to wait for the rest.
  """
  if kind is None or workdir is None:
    yield
    return
  with WriteErrors('a tracker may get some rows twice').reported():
    news.Seen.read(workdir, kind).clipped(workdir).write(workdir, kind)
  with processes.Family(_PATIENCE) as family:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ASKING)  # the child inherits it
    child = family.start('tracker', [sys.executable, '-c', _CODE, kind, workdir])
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
      yield
    finally:
      deadline = time.monotonic() + _PATIENCE
      if child.poll() is None:
        processes.ask(child.pid)
      while child.poll() is None and time.monotonic() < deadline and not is_quit():
        time.sleep(_POLL_PERIOD)
      if child.poll() is None:
        stopping.say(
          f'{kind} has not got all that the run wrote: the next start with '
          f'--track={kind} sends the rest'
        )
