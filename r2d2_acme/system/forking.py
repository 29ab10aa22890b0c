"""A process from which nodes are forked, so that they start with everything imported.

To import TensorFlow and Reverb takes seconds and some 300 MB. A fork takes a hundredth
of a second and shares these pages. That is safe here, as the server has only imported:
it runs one thread, and no library has started anything.

The server makes each node a child of the process that asks, not of its own: it forks
twice, and the orphan goes to its nearest ancestor that adopts, see `processes.Family`.
So nodes outlive the server, and their exit codes are there to be waited for.

The server's standard input is the socket that requests come from.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence

from r2d2_acme.system import cuda, network, processes

_ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)
_TIMEOUT = 180.0  # seconds for the server to import everything, on a busy machine
# The current directory is not searched, or a file there could hide a library.
_PYTHON = (sys.executable, '-c')
_CALL = 'import sys; del sys.path[0]; import {module}; {module}.{name}(*sys.argv[1:])'
_PREPARED: list[ForkServer] = []  # by `prepare`


class ForkServerFailed(RuntimeError):
  """The server cannot fork; the message is one line."""


class ForkServer:
  """Starts processes from one that has imported modules already. Use it with `with`."""

  def __init__(self, modules: Sequence[str], *, private: bool):
    """Starts to import, and does not wait.

    Args:
      modules: to import.
      private: whether the processes shall have a network of their own, with nothing but
        a loopback interface, if that is permitted.
    """
    self._arguments = [json.dumps(private), *modules]
    self._exposed: str | None = None  # see `wait`
    self._start()

  def __enter__(self) -> ForkServer:
    return self

  def __exit__(self, *unused_exception):
    self._stop()

  def wait(self) -> str:
    """Waits until all is imported.

    Returns:
      Why the processes have no network of their own; empty if they have, or need none.

    Raises:
      ForkServerFailed: the server has ended, or takes too long.
    """
    if self._exposed is None:
      self._exposed = self._receive()
    return self._exposed

  def fork(
    self,
    name: str,
    family: processes.Family,
    function: str,
    arguments: Sequence[str],
    *,
    env: Mapping[str, str],
    output: str,
    fresh: bool = False,
  ) -> processes.Child:
    """Starts a child of this process, in a session of its own.

    Args:
      name: of the child, unlike that of any other.
      family: that it belongs to.
      function: what to call, such as 'r2d2_acme.running.entry:main'.
      arguments: of the function.
      env: environment variables beside those of this process.
      output: the file that it appends its output to.
      fresh: whether the child shall begin as a new Python, which imports all itself.

    Raises:
      ForkServerFailed: it cannot be started.
    """
    request = {
      'mark': family.mark(name),
      'function': function,
      'arguments': list(arguments),
      'env': {**os.environ, **env},
      'directory': os.readlink('/proc/self/cwd'),
      'output': os.path.abspath(output),
      'fresh': fresh,
    }
    try:
      pid = self._ask(request)
    except ForkServerFailed:  # it was killed, perhaps: a new one may do
      self._stop()
      self._start()
      pid = self._ask(request)
    return processes.Child(pid)

  def _ask(self, request: Mapping) -> int:
    self.wait()
    try:
      self._socket.sendall(f'{json.dumps(request)}\n'.encode())
    except OSError as error:
      raise ForkServerFailed(f'the fork server has ended: {error}') from error
    return int(self._receive())

  def _receive(self) -> str:
    """Returns the server's next message."""
    try:
      message = self._answers.readline().rstrip('\n')
    except OSError as error:
      raise ForkServerFailed(f'the fork server does not answer: {error}') from error
    kind, _, text = message.partition(':')
    if kind != 'ok':
      raise ForkServerFailed(text or 'the fork server has ended')
    return text

  def _start(self):
    processes.adopt_orphans()
    self._exposed = None
    self._socket, theirs = socket.socketpair()
    self._socket.settimeout(_TIMEOUT)
    self._answers = self._socket.makefile()
    with theirs:
      self._popen = subprocess.Popen(
        [*_command(__name__, 'serve'), *self._arguments],
        stdin=theirs,
        env={
          **os.environ,
          **processes.MARK_TO_FILL,
          **cuda.HIDDEN,  # it does not outlive a fork
          # One thread: NumPy's BLAS would start others when it is imported.
          'OPENBLAS_NUM_THREADS': '1',
        },
        start_new_session=True,
      )

  def _stop(self):
    self._answers.close()
    self._socket.close()
    self._popen.kill()
    self._popen.wait()


def prepare(modules: Sequence[str], *, private: bool):
  """Starts a server early, beside what this process imports itself.

  `take` hands it out. A server that nobody takes ends with this process.
  """
  if not _PREPARED:
    _PREPARED.append(ForkServer(modules, private=private))


def take(modules: Sequence[str], *, private: bool) -> ForkServer:
  """Returns the server that was started early, if it fits, or else a new one."""
  if _PREPARED:
    server = _PREPARED.pop()
    if server._arguments == [json.dumps(private), *modules]:
      return server
    server._stop()
  return ForkServer(modules, private=private)


def serve(private: str, *modules: str):
  """Imports, then forks at each request, until the other side is gone.

  Args:
    private: as in `ForkServer`, as JSON.
    *modules: to import.
  """
  # The program decides when children end. What asks them is blocked and not ignored: a
  # child that is asked before it can heed that must not miss it.
  signal.pthread_sigmask(signal.SIG_BLOCK, _ASKING)
  signal.signal(signal.SIGHUP, signal.SIG_IGN)
  requests = socket.socket(fileno=os.dup(0))
  with open(os.devnull) as nothing:
    os.dup2(nothing.fileno(), 0)
  with contextlib.suppress(ConnectionError), requests.makefile() as lines:
    _answer(requests, _prepare(private, modules))
    for line in lines:
      try:
        answer = f'ok:{_fork(json.loads(line), requests)}'
      except OSError as error:  # the machine has no memory or no processes left
        answer = f'error:cannot fork: {error.strerror}'
      _answer(requests, answer)


def _prepare(private: str, modules: Sequence[str]) -> str:
  """Makes the private network and imports the modules; returns the first answer."""
  exposed = network.isolate() if json.loads(private) else ''
  for module in modules:
    try:
      importlib.import_module(module)
    except Exception as error:
      return f'error:cannot import {module}: {type(error).__name__}: {error}'
  return f'ok:{exposed}'


def _answer(requests: socket.socket, text: str):
  """Answers with one line."""
  requests.sendall(f'{" ".join(text.split())}\n'.encode())


def _fork(request: Mapping, requests: socket.socket) -> int:
  """Starts a process that is no child of this one; returns its pid."""
  read, write = os.pipe()
  try:
    between = os.fork()
  except OSError:
    os.close(read)
    os.close(write)
    raise
  if between == 0:
    try:
      between = os.getpid()
      pid = os.fork()
      if pid:
        os.write(write, str(pid).encode())
      else:
        for descriptor in (requests.fileno(), read, write):
          os.close(descriptor)
        while os.getppid() == between:  # until it is a child of the one that asks
          time.sleep(0.001)
        _run(request)
    finally:  # whatever fails, it must not go on as a second server
      os._exit(0)
  os.close(write)
  with os.fdopen(read) as file:
    answer = file.read()
  os.waitpid(between, 0)  # from now on the process is a child of the one that asks
  if not answer:
    raise OSError(None, 'no process left')
  return int(answer)


def _run(request: Mapping):
  """Becomes the process that was asked for."""
  code = 1
  try:
    os.setsid()
    for number in _ASKING:
      signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ASKING)
    output = os.open(request['output'], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    processes.fill_mark(request['mark'])
    os.environ.clear()
    os.environ.update(request['env'], **request['mark'])
    with contextlib.suppress(FileNotFoundError):  # somebody has removed it
      os.chdir(request['directory'])
    module, name = request['function'].split(':')
    if request['fresh']:
      os.execv(sys.executable, [*_command(module, name), *request['arguments']])
    _seed()
    getattr(importlib.import_module(module), name)(*request['arguments'])
    code = 0
  except BaseException:  # the process must not return into the server
    traceback.print_exc()
  finally:
    os._exit(code)


def _command(module: str, name: str) -> list[str]:
  """Returns a command that calls a function with the arguments that follow."""
  return [*_PYTHON, _CALL.format(module=module, name=name)]


def _seed():
  """Draws new seeds for the global generators, which are alike in all forks."""
  random.seed()
  if 'numpy' in sys.modules:
    sys.modules['numpy'].random.seed()
