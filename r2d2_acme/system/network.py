"""A private network for a process and its children, with only the loopback device.

Courier and Reverb listen on every network interface without authentication. In a
network namespace of their own nobody else can reach them. Files, signals, processes and
devices stay as they are.
"""

from __future__ import annotations  # loads on any Python, as `doctor` does

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_REQUEST = '16sh22x'  # struct ifreq: the device's name and its flags
_CAPABILITIES_VERSION_3 = 0x20080522


class PortInUse(Exception):
  """Another program listens where a server should; the message is one line."""


def isolate() -> str:
  """Moves this process, and all that it starts from now on, to a private network.

  Root needs only a network namespace. Other users also need a user namespace, in which
  the process keeps its user, its group and no more rights than it had.

  Returns:
    '' if the process now has a private network. Otherwise nothing has changed, and this
    is the reason.

  Raises:
    RuntimeError: the process has other threads, which would stay outside. Libraries
      such as NumPy start some at their import.
    OSError: the process has lost the network although a trial had succeeded.
  """
  if len(os.listdir('/proc/self/task')) > 1:
    raise RuntimeError(
      'isolate() needs a process without other threads: call it before the imports of '
      'NumPy and TensorFlow'
    )
  # A user namespace cannot be left again, so a child tries out whether all steps work.
  reason = _try_in_child()
  if not reason:
    _isolate()
  return reason


def describe_exposure(reason: str) -> str:
  """Returns one line that says who can reach the nodes, and what to do about it.

  Args:
    reason: why the nodes have no private network, such as what `isolate` returns.
  """
  return (
    f'warning: no private network ({reason}): replay and learner listen on every '
    'network interface, and whoever reaches their ports can run code as you; cure: '
    'permit user namespaces or run as root, or close the ports with a firewall or a '
    'container without published ports (docs/operating.md, Ports)'
  )


def check_port(port: int):
  """Checks that a server can listen on a port of this machine.

  Raises:
    PortInUse: it cannot; one line.
  """
  for family in (socket.AF_INET6, socket.AF_INET):
    try:
      with socket.socket(family) as probe:
        # A connection of a server that has ended does not matter.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(('', port))
    except OSError as error:  # others: the machine lacks this family, for example
      if error.errno == errno.EADDRINUSE:
        raise PortInUse(
          f'port {port} of this machine is in use by another program: start again, '
          'and the nodes get other ports'
        ) from error


def _try_in_child() -> str:
  """Returns why a child could not be isolated; '' if it could."""
  reader, writer = os.pipe()
  child = os.fork()
  if not child:
    try:
      os.close(reader)
      _isolate()
      os._exit(0)
    except BaseException as error:
      os.write(writer, str(error).encode(errors='replace'))
    finally:
      os._exit(1)
  os.close(writer)
  with open(reader, errors='replace') as file:
    reason = file.read()
  _, status = os.waitpid(child, 0)
  # A filter of system calls may kill the child.
  return reason or ('' if status == 0 else f'unshare ended a child, status {status}')


def _isolate():
  """Enters the namespaces and starts their loopback device.

  Raises:
    OSError: one of these steps is not permitted or not possible.
  """
  user, group = os.geteuid(), os.getegid()
  if user == 0:
    _call('unshare', _CLONE_NEWNET)
    _start_loopback()
    return
  _call('unshare', _CLONE_NEWUSER | _CLONE_NEWNET)
  with _named('user namespace'):
    for name, text in (
      ('setgroups', 'deny'),
      ('uid_map', f'{user} {user} 1'),
      ('gid_map', f'{group} {group} 1'),
    ):
      with open(f'/proc/self/{name}', 'w') as file:
        file.write(text)
  _start_loopback()
  # A process has all capabilities in a user namespace that it makes. With them its
  # children could overrule the permissions of its files, and could not be watched.
  header = struct.pack('Ii', _CAPABILITIES_VERSION_3, 0)
  _call('capset', ctypes.c_char_p(header), ctypes.c_char_p(bytes(24)))


def _start_loopback():
  with (
    _named('loopback device'),
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket,
  ):
    request = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack(_REQUEST, b'lo', 0))
    name, flags = struct.unpack(_REQUEST, request)
    request = struct.pack(_REQUEST, name, flags | _IFF_UP)
    fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)


def _call(name: str, *arguments):
  """Calls a function of the C library.

  Raises:
    OSError: it failed.
  """
  with _named(name):
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
      number = ctypes.get_errno()
      raise OSError(number, os.strerror(number))


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
  """Raises errors from inside `with` again, with a short message that says where."""
  try:
    yield
  except OSError as error:
    raise OSError(f'{what}: {error.strerror}') from error
