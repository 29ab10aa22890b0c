"""`network.py`: who can reach a process with a private network, and what it keeps."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading

import portpicker
import pytest
import reverb

from r2d2_acme.system import network

_NOBODY = 65534
_USERS = ('root', 'nobody') if os.getuid() == 0 else ('self',)
# Becomes a user. What is imported as root need not be readable to nobody.
_BECOME = """
import ctypes, encodings.idna, json, os, signal, socket, struct, subprocess, sys
import tempfile, time
from r2d2_acme.system import network
libc = ctypes.CDLL(None)
"""
_BECOME_NOBODY = f"""
os.setgroups([])
os.setgid({_NOBODY})
os.setuid({_NOBODY})
libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, as after an exec
"""
_ISOLATE = """
before = os.getuid(), os.getgid()
reason = network.isolate()
assert not reason, reason
assert (os.getuid(), os.getgid()) == before
"""


def _become(user: str) -> str:
  return _BECOME + (_BECOME_NOBODY if user == 'nobody' else '')


def _is_permitted(user: str) -> bool:
  if shutil.which('unshare') is None:
    return False
  command = ['unshare', '--net', *(['--user'] if user != 'root' else []), 'true']
  if user == 'nobody':
    command = ['setpriv', f'--reuid={_NOBODY}', '--clear-groups', *command]
  return subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture(params=_USERS)
def user(request) -> str:
  if not _is_permitted(request.param):
    pytest.skip(f'namespaces are not permitted here as {request.param}')
  return request.param


@contextlib.contextmanager
def _started(user: str, code: str):
  """Starts a process with a private network that runs `code`."""
  with subprocess.Popen(
    [sys.executable, '-c', _become(user) + _ISOLATE + code],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    try:
      yield process
    finally:
      process.kill()


def _run(code: str) -> str:
  """Runs Python code; returns what it prints."""
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert done.stderr == ''
  return done.stdout


def _connects(host: str, port: int) -> bool:
  try:
    socket.create_connection((host, port), timeout=5).close()
  except ConnectionRefusedError:
    return False
  return True


_SERVE = """
server = socket.socket(socket.AF_INET6)
server.bind(('::', {port}))
server.listen()
def connects(host):
  with socket.create_connection((host, {port}), timeout=5):
    return True
print(json.dumps([connects(host) for host in ('127.0.0.1', 'localhost', '::1')]))
sys.stdout.flush()
sys.stdin.read()
"""


def test_only_the_inside_reaches_a_port(user):
  port = portpicker.pick_unused_port()
  with _started(user, _SERVE.format(port=port)) as process:
    assert json.loads(process.stdout.readline()) == [True] * 3
    hosts = ['127.0.0.1', '::1', *socket.gethostbyname_ex(socket.gethostname())[2]]
    assert not [host for host in hosts if _connects(host, port)]


def test_the_inside_has_the_loopback_device_only(user):
  with _started(user, 'print(json.dumps(socket.if_nameindex()))') as process:
    assert json.loads(process.stdout.readline()) == [[1, 'lo']]


_REVERB = """
table = reverb.Table.queue('queue', 10)
server = reverb.Server([table], port={port})
client = reverb.Client('localhost:{port}')
client.insert(1.5, {{'queue': 1.0}})
print(json.dumps(list(client.server_info(timeout=60))), flush=True)
sys.stdin.read()
"""


def test_outside_client_does_not_reach_a_reverb_server():
  user = _USERS[0]
  if not _is_permitted(user):
    pytest.skip('namespaces are not permitted here')
  port = portpicker.pick_unused_port()
  # Here the threads that NumPy starts would stay outside: the import comes later.
  code = f'import reverb{_REVERB.format(port=port)}'
  with _started(user, code) as process:
    while not (line := process.stdout.readline()).startswith('['):
      assert line, 'it has ended'
    assert json.loads(line) == ['queue']
    with pytest.raises(reverb.errors.DeadlineExceededError):
      reverb.Client(f'localhost:{port}').server_info(timeout=3)
    assert process.poll() is None


_SIGNALS = """
def end(number, frame):
  os.kill(os.getppid(), signal.SIGUSR2)
  os._exit(7)
signal.signal(signal.SIGTERM, end)
print('ready', flush=True)
while True:
  time.sleep(0.1)  # a signal just before a sleep is handled after it
"""


def test_signals_pass_both_ways_and_the_exit_code_arrives(user):
  if user == 'nobody':
    pytest.skip('it may not signal its parent, which is root')
  got = threading.Event()
  before = signal.signal(signal.SIGUSR2, lambda *unused: got.set())
  try:
    with _started(user, _SIGNALS) as process:
      process.stdout.readline()
      process.send_signal(signal.SIGTERM)
      assert process.wait(10) == 7
    assert got.is_set()
  finally:
    signal.signal(signal.SIGUSR2, before)


_FAMILY = """
parent = os.getpid()
libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
child = os.fork()
if not child:
  if network.isolate() or os.fork():
    os._exit(3)
  while os.getppid() != parent:
    time.sleep(0.01)
  os.kill(parent, signal.SIGUSR1)
  os._exit(5)
codes = dict(os.wait() for _ in range(2))
is_signalled = signal.SIGUSR1 in signal.sigpending()
print(json.dumps([codes.pop(child), *codes.values(), is_signalled]))
"""


def test_orphans_are_adopted_across_the_border_and_can_signal_their_parent(user):
  """The launcher stays outside, and adopts what its nodes leave behind."""
  done = _run(_become(user) + _FAMILY)
  assert json.loads(done) == [3 << 8, 5 << 8, True]


_KEEPS = """
with tempfile.NamedTemporaryFile('w+') as file:
  file.write('x'), file.flush()
  os.chmod(file.name, 0)
  try:
    open(file.name).close()
    overrules = True
  except PermissionError:
    overrules = False
child = subprocess.Popen(['sleep', '1000'], env={'MARK': 'yes'})
while open(f'/proc/{child.pid}/comm').read() != 'sleep\\n': time.sleep(0.01)
print(json.dumps({
  'pid': os.getpid(),
  'overrules': overrules,
  'environ': open(f'/proc/{child.pid}/environ').read(),
  'processes': len([x for x in os.listdir('/proc') if x.isdigit()]) > 1,
  'devices': sorted(os.listdir('/dev')),
  'null': os.write(os.open('/dev/null', os.O_RDWR), b'x'),
  'child': child.pid,
}), flush=True)
sys.stdin.read()
child.kill()
"""


def test_files_devices_and_processes_stay_as_they_are(user):
  with _started(user, _KEEPS) as process:
    kept = json.loads(process.stdout.readline())
    assert kept['pid'] == process.pid
    assert kept['overrules'] == (user == 'root')
    assert kept['processes']
    assert kept['devices'] == sorted(os.listdir('/dev'))
    assert kept['null'] == 1
    # Both the inside and the outside find a family's processes by this.
    assert kept['environ'] == 'MARK=yes\0'
    marked = pathlib.Path(f'/proc/{kept["child"]}/environ')
    assert marked.read_text() == 'MARK=yes\0'
    process.stdin.close()
    assert process.wait(10) == 0


# A filter of system calls, as container engines have: seccomp(2), x86-64.
_FORBID = """
code = b''.join(struct.pack('HBBI', *instruction) for instruction in (
  (0x20, 0, 0, 0),  # load the number of the call
  (0x15, 0, 1, {call}),  # if it is this one
  (0x06, 0, 0, {action}),
  (0x06, 0, 0, 0x7fff0000),  # else allow it
))
class Program(ctypes.Structure):
  _fields_ = [('length', ctypes.c_ushort), ('code', ctypes.c_char_p)]
assert not libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
assert not libc.prctl(22, 2, ctypes.byref(Program(4, code)))  # PR_SET_SECCOMP
before = os.readlink('/proc/self/ns/net'), os.readlink('/proc/self/ns/user')
print(network.isolate())
assert before == (os.readlink('/proc/self/ns/net'), os.readlink('/proc/self/ns/user'))
socket.create_connection(('127.0.0.1', {port})).close()  # as before
"""
_UNSHARE, _IOCTL, _CAPSET = 272, 16, 126
_EPERM, _ENOSYS, _KILL = 0x50001, 0x50026, 0x80000000


@pytest.mark.parametrize(
  ('call', 'action', 'reason'),
  [
    (_UNSHARE, _EPERM, 'unshare: Operation not permitted'),
    (_UNSHARE, _ENOSYS, 'unshare: Function not implemented'),
    (_UNSHARE, _KILL, 'unshare ended a child, status 159'),  # by SIGSYS, with a core
    (_IOCTL, _EPERM, 'loopback device: Operation not permitted'),
    (_CAPSET, _EPERM, 'capset: Operation not permitted'),
  ],
)
def test_what_is_not_permitted_changes_nothing_and_is_named(user, call, action, reason):
  """Also not half of it: a process without any network would be worse."""
  if call == _CAPSET and user == 'root':
    pytest.skip('root keeps its rights')
  with socket.create_server(('127.0.0.1', 0)) as server:
    port = server.getsockname()[1]
    code = _FORBID.format(call=call, action=action, port=port)
    said = _run(_become(user) + code)
  assert said.replace('status 31', 'status 159') == f'{reason}\n'


def test_process_with_threads_is_refused():
  """They would stay outside."""
  stop = threading.Event()
  thread = threading.Thread(target=stop.wait)
  thread.start()
  try:
    with pytest.raises(RuntimeError, match='before the imports'):
      network.isolate()
  finally:
    stop.set()
    thread.join()


def test_exposure_is_one_line_with_its_reason_and_cure():
  line = network.describe_exposure('unshare: Operation not permitted')
  assert '\n' not in line
  for words in ('unshare: Operation not permitted', 'every network interface', 'cure'):
    assert words in line


@pytest.mark.parametrize('family', [socket.AF_INET, socket.AF_INET6])
def test_port_in_use_is_one_line_and_others_are_free(family):
  with socket.socket(family) as other:
    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does
    other.bind(('', 0))
    other.listen()
    port = other.getsockname()[1]
    with pytest.raises(network.PortInUse, match=f'^port {port} .* in use') as raised:
      network.check_port(port)
    assert '\n' not in str(raised.value)
    # A connection that the server has closed keeps nobody from its port.
    address = ('localhost' if family == socket.AF_INET else '::1', port)
    with socket.create_connection(address) as client:
      server_side, _ = other.accept()
      server_side.close()
      other.close()
      network.check_port(port)
      assert not client.recv(1)
  network.check_port(port)


def test_port_of_a_reverb_server_is_in_use_until_it_stops():
  port = portpicker.pick_unused_port()
  server = reverb.Server([reverb.Table.queue('queue', 1)], port)
  with pytest.raises(network.PortInUse):
    network.check_port(port)
  server.stop()
  network.check_port(port)
