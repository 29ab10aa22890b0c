"""Servers in processes of their own, and networks between them and their clients."""

import contextlib
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

import reverb

from tests import helpers

_SERVER = """
import pickle, sys, time
import r2d2_acme
import reverb
make_tables = pickle.load(sys.stdin.buffer)
server = reverb.Server(make_tables(), int(sys.argv[1]))
print('started', flush=True)
time.sleep(1000)
"""


@contextlib.contextmanager
def process(
  port: int, make_tables: Callable[[], Sequence[reverb.Table]]
) -> Iterator[tuple[subprocess.Popen, Callable[[], None]]]:
  """Yields a process, and what starts its server: importing takes it seconds.

  Args:
    port: of the server.
    make_tables: makes the server's tables; it is pickled.
  """
  with subprocess.Popen(
    [sys.executable, '-c', _SERVER, str(port)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    cwd=helpers.ROOT,
  ) as popen:

    def start():
      assert popen.stdin is not None and popen.stdout is not None
      pickle.dump(make_tables, popen.stdin)
      popen.stdin.flush()
      assert popen.stdout.readline()

    try:
      yield popen, start
    finally:
      popen.kill()


class Relay:
  """Passes on what comes to a port, until the network is cut for a while.

  The connections that there are at the cut carry nothing from then on. Who sends
  something on one of them learns that it is closed; who only waits does not.

  Attributes:
    port: connect to this one.
  """

  def __init__(self, port: int):
    self._to = port
    self._cuts: list[threading.Event] = []  # one for each connection
    self._listener = socket.create_server(('localhost', 0))
    self.port = self._listener.getsockname()[1]
    self._start(self._accept)

  def cut(self):
    for cut in list(self._cuts):
      cut.set()

  def close(self):
    self._listener.close()

  def _start(self, work, *args):
    threading.Thread(target=work, args=args, daemon=True).start()

  def _accept(self):
    with contextlib.suppress(OSError):  # it is closed
      while True:
        ours, _ = self._listener.accept()
        theirs = socket.create_connection(('localhost', self._to))
        cut = threading.Event()
        self._cuts.append(cut)
        self._start(self._pass_on, ours, theirs, cut)
        self._start(self._pass_on, theirs, ours, cut)

  def _pass_on(self, source, target, cut):
    with contextlib.suppress(OSError):
      while data := source.recv(1 << 16):
        if cut.is_set():
          source.close()
          return
        target.sendall(data)
