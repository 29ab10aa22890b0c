"""Sides measured in turn: each in a process of its own, one at a time.

A side is a function that sets up and returns `measure`, which is called once a round.
"""

import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from r2d2_acme.system import runtime

_TIMEOUT = 600.0  # seconds for a set-up, or for one measurement
_CLOSE_TIMEOUT = 5.0  # seconds
# What takes three seconds to import. The server that does it has not our `sys.path`.
_PRELOADED = ['r2d2_acme.builder', 'r2d2_acme.environments', 'jax']
_NUM_LAST_LINES = 5  # of what a process said before it died


class SideFailed(RuntimeError):
  """A side's process raised, died or hung; the message names it."""


class Worker:
  """A process that measures when it is asked to, on some of the cores."""

  def __init__(
    self,
    name: str,
    function: Callable[..., Callable[[], Any]],
    *args: Any,
    cores: Sequence[int] | None = None,
    timeout: float = _TIMEOUT,
    preload: bool = True,
  ):
    """Starts `measure = function(*args)`; `ready` waits for it.

    Args:
      name: of the side, for errors.
      function: importable, since the process does not share our memory.
      *args: these must pickle.
      cores: that the process may use; by default ours. It is set up on as many others,
        so that several set-ups share all cores.
      timeout: seconds for the set-up, and for each measurement.
      preload: whether the process begins with the libraries imported, or with nothing.
    """
    self._name = name
    self._timeout = timeout
    self._output = tempfile.TemporaryFile()
    context: Any = multiprocessing.get_context('forkserver' if preload else 'spawn')
    multiprocessing.set_forkserver_preload(_PRELOADED)
    self._connection, theirs = context.Pipe()
    self._process = context.Process(
      target=_serve,
      args=(theirs, f'/proc/{os.getpid()}/fd/{self._output.fileno()}'),
      name=name,
    )
    self._process.start()
    theirs.close()
    cores = cores or all_cores()
    self._connection.send((function, args, cores, _as_many(cores)))
    self._is_ready = False

  def __enter__(self) -> 'Worker':
    return self

  def __exit__(self, *unused_exception):
    self._connection.close()  # the process sees it, and ends
    self._process.join(_CLOSE_TIMEOUT)
    if self._process.is_alive():
      self._process.kill()
      self._process.join()
    self._output.close()

  def ready(self):
    """Waits for the end of the set-up."""
    if not self._is_ready:
      self.result()
      self._is_ready = True

  def start(self):
    """Asks for one measurement; `result` waits for it."""
    self.ready()
    with contextlib.suppress(OSError):  # it died: `result` says so
      self._connection.send(True)

  def result(self) -> Any:
    """What `measure` returned.

    Raises:
      SideFailed: it raised, the process died, or nothing came in time.
    """
    try:
      if not self._connection.poll(self._timeout):
        raise SideFailed(f'{self._name}: no answer in {self._timeout:.0f} s')
      ok, value = self._connection.recv()
    except (EOFError, OSError):
      self._process.join(_CLOSE_TIMEOUT)
      self._output.seek(0)
      lines = self._output.read().decode(errors='replace').splitlines()
      said = '\n'.join(lines[-_NUM_LAST_LINES:])
      code = self._process.exitcode
      raise SideFailed(
        f'{self._name}: its process died, exit code {code}; it said last: {said}'
      ) from None
    if not ok:
      raise SideFailed(f'{self._name}: {value}')
    return value

  def measure(self) -> Any:
    self.start()
    return self.result()


@dataclasses.dataclass(frozen=True)
class Side:
  """One of those that are compared.

  Attributes:
    function: sets up, and returns `measure() -> float` (a server's: to a tuple).
    args: its arguments.
    processes: for each process, the cores it may use. Several measure at once and
      their results, rates, are added. By default one process on all cores.
    max_rounds: fewer, for what takes long.
    server: a side of one process, that is set up first. It measures a tuple, whose
      first element, its address, is the last argument.
  """

  function: Callable[..., Callable[[], Any]]
  args: tuple = ()
  processes: Sequence[Sequence[int] | None] = (None,)
  max_rounds: int | None = None
  server: 'Side | None' = None


def alternate(
  case: str, sides: Mapping[str, Side], rounds: int
) -> dict[str, list[float]]:
  """Measures side after side, `rounds` times; all others wait meanwhile.

  Raises:
    SideFailed: the first that failed.
  """
  samples: dict[str, list[float]] = {name: [] for name in sides}
  with contextlib.ExitStack() as stack:
    progress(f'{case}: setting up {", ".join(sides)}')
    servers = {
      name: _start(stack, f'{case}: {name}: server', side.server)
      for name, side in sides.items()
      if side.server is not None
    }
    workers = {
      name: _start(
        stack, f'{case}: {name}', side, *(s.measure()[0] for s in servers.get(name, ()))
      )
      for name, side in sides.items()
    }
    for worker in (worker for group in workers.values() for worker in group):
      worker.ready()
    for i in range(rounds):
      progress(f'{case}: round {i + 1} of {rounds}')
      for name, side in sides.items():
        if side.max_rounds is None or i < side.max_rounds:
          for worker in workers[name]:
            worker.start()
          samples[name].append(sum(worker.result() for worker in workers[name]))
  return samples


def _start(
  stack: contextlib.ExitStack, name: str, side: Side, *more_args: Any
) -> list[Worker]:
  """A side's processes, that live as long as `stack`."""
  return [
    stack.enter_context(
      Worker(name, side.function, *side.args, *more_args, cores=cores)
    )
    for cores in side.processes
  ]


def all_cores() -> list[int]:
  """Those that this process may use."""
  return sorted(os.sched_getaffinity(0))


_turns = itertools.cycle(all_cores())


def progress(message: str):
  """One line on stderr, with the time."""
  print(f'[{time.strftime("%H:%M:%S")}] {message}', file=sys.stderr, flush=True)


def _serve(connection, output: str):
  """A worker's process: sets up, then measures when asked, until nobody is there."""
  file = os.open(output, os.O_WRONLY | os.O_APPEND)
  os.dup2(file, 1)  # notices of the libraries
  os.dup2(file, 2)
  try:
    function, args, cores, setup_cores = connection.recv()
    pin(setup_cores)  # before TensorFlow and oneDNN count them
    measure = function(*args)
    pin(cores)
    connection.send((True, None))
    while _is_asked(connection):
      connection.send((True, measure()))
  except BaseException:  # the other side raises it
    with contextlib.suppress(OSError):
      connection.send((False, traceback.format_exc().rstrip()))
  runtime.exit_now(0)


def _is_asked(connection) -> bool:
  """Waits for it; False once nobody is there."""
  try:
    return connection.recv()
  except (EOFError, ConnectionError):
    return False


def _as_many(cores: Sequence[int]) -> list[int]:
  """Of our cores, those whose turn it is."""
  return list(itertools.islice(_turns, len(cores)))


def pin(cores: Sequence[int]):
  """Keeps all threads of this process, and those that they start, on these cores."""
  pinned: set[str] = set()
  while threads := set(os.listdir('/proc/self/task')) - pinned:
    for thread in threads:
      with contextlib.suppress(ProcessLookupError):  # it ended
        os.sched_setaffinity(int(thread), cores)
    pinned |= threads
