"""Runs a Launchpad program on this machine and says how it ended.

Launchpad turns the program into commands, or into functions for threads. Here they are
started, watched and stopped, and the output of processes is followed to the terminal.
"""

import codecs
import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import launchpad as lp
from absl import flags
from launchpad.launch import worker_manager
from launchpad.launch.local_multi_processing import commands as commands_lib
from launchpad.nodes.python.local_multi_processing import PythonProcess

from r2d2_acme.system import machine, processes, runtime, stopping

LAUNCH_TYPES = ('local_mp', 'local_mt')

_POLL_PERIOD = 0.1  # seconds
_STOP_LIMIT = 18  # seconds for a node to stop: one long learner step, and a save
_NUM_LAST_LINES = 20  # of a failed node's output
_SAVES = 'learner/0'  # the node whose failure at the end matters, too
_MAX_OUTPUT_SIZE = 10 << 20  # bytes of a file of output; each node has up to two
_MAX_LINE_LENGTH = 64 << 10  # characters
_THREADS_TIMEOUT = 2.0  # seconds for threads of nodes that have ended
_UNASKED = 'ended although nobody asked it to'

# Of a node that was asked to stop, the latter two before it could handle that.
_STOPPED_CODES = (0, -signal.SIGTERM, 128 + signal.SIGTERM)

# Launchpad looks for it when a node is given arguments.
flags.DEFINE_multi_string('lp_dummy_config', [], 'Internal to Launchpad.')

# Notices of the libraries underneath: they stay in the files.
_NOISE = re.compile(r'I\d{4} |\[reverb/cc/')


def launch(program: lp.Program, launch_type: str, output_dir: str) -> int:
  """Runs `program` until it stops; returns the exit code for this process.

  The first Ctrl-C, SIGTERM or SIGHUP asks the nodes to stop, and the learner to save;
  the second quits at once. In `local_mt` threads may be left in C++ calls that do not
  end; `runtime.exit_now` ends a process in spite of them.

  Args:
    program: what to run.
    launch_type: one of `LAUNCH_TYPES`.
    output_dir: in `local_mp`, a file for each node's output.

  Returns:
    0 after a step limit or a request to stop; 1 if a node failed, or ended although
    nobody asked it to, or did not stop in time, or the learner could not save at the
    end, with the cause printed last; 130 if asked to quit at once.

  Raises:
    RuntimeError: this is not the main thread, to which signals come.
    ValueError: there is no such launch type.
  """
  if launch_type not in LAUNCH_TYPES:
    raise ValueError(
      f'{launch_type!r} is no launch type of this module: give one of '
      f'{", ".join(LAUNCH_TYPES)}'
    )
  if threading.current_thread() is not threading.main_thread():
    raise RuntimeError(
      'launch() takes signals, which reach the main thread only: call it from there, '
      'or run launch/atari_distributed.py in a process of its own'
    )
  if not flags.FLAGS.is_parsed():  # as Launchpad does: scripts and notebooks do not
    flags.FLAGS(sys.argv, known_only=True)
  run = {'local_mp': _run_processes, 'local_mt': _run_threads}[launch_type]
  with stopping.Requests() as requests:
    code, message = run(program, output_dir, requests)
  if message:
    stopping.Forgiving(sys.stdout).flush()  # before the message, even in a file
    print(message, file=stopping.Forgiving(sys.stderr), flush=True)
  return code


class _Node(Protocol):
  """A part of the program that runs.

  Attributes:
    name: such as 'actor/0'.
  """

  name: str

  def poll(self) -> int | None:
    """Returns its exit code, or None while it runs."""

  def ask(self):
    """Asks it to stop."""

  def kill(self):
    """Ends it, if it runs and that can be done, and what it leaves behind."""

  def describe_failure(self) -> str:
    """Returns what it said last, and how it ended."""


def _watch(nodes: Sequence[_Node], requests: stopping.Requests) -> tuple[int, str]:
  """Waits for the end of all nodes; stops them on request, or when one has ended.

  Nodes run until they are asked to stop: one that ends before has failed, whatever its
  exit code.

  Returns:
    The exit code, as `launch` has it, and what to say at the very end.
  """
  flag = flags.FLAGS['lp_termination_notice_secs']
  limit = _STOP_LIMIT if flag.using_default_value else int(flag.value or 0)
  running = list(nodes)
  failed: _Node | None = None  # the first one: others may end for want of it
  deadline: float | None = None
  while running and not requests.quit:
    ended = [node for node in running if node.poll() is not None]
    running = [node for node in running if node not in ended]
    for node in ended:
      node.kill()
    # Read after the nodes' codes: a signal may be sent to all processes at once.
    if deadline is None and not requests.stop:
      # Of several, the one that says why.
      failed = max(ended, key=lambda node: bool(node.poll()), default=None)
    if deadline is None and (requests.stop or failed):
      # Below 0 there is none, as in Launchpad.
      deadline = time.monotonic() + (limit if limit >= 0 else float('inf'))
      for node in running:
        node.ask()
    if deadline is not None and time.monotonic() >= deadline:
      break
    if running:
      time.sleep(_POLL_PERIOD)
  for node in running:
    node.kill()
  messages = []
  if running and not requests.quit:
    names = ', '.join(node.name for node in running)
    messages.append(
      f'These nodes did not stop within {limit} s and were killed: {names}'
    )
  elif failed is None and not requests.quit:
    failed = next((node for node in nodes if _could_not_save(node)), None)
  if failed is not None:
    messages.append(failed.describe_failure())
  code = stopping.QUIT_CODE if requests.quit else int(bool(messages))
  return code, '\n'.join(messages)


def _could_not_save(node: _Node) -> bool:
  return node.name == _SAVES and node.poll() not in _STOPPED_CODES


def _wire(
  program: lp.Program,
  launch_type: lp.LaunchType,
  stop: Callable[[], None],
  configs: Mapping[str, Any],
) -> dict[str, list[Any]]:
  """Does what Launchpad's own launchers do before they start anything.

  Args:
    program: its nodes get contexts, each other's handles, and ports.
    launch_type: says what is returned.
    stop: what `lp.stop` calls in a node.
    configs: Launchpad's launch configs, by group.

  Returns:
    By group, the nodes' commands (`local_mp`) or functions (`local_mt`).
  """
  for group, nodes in program.groups.items():
    for node in nodes:
      node.launch_context.initialize(launch_type, configs.get(group), stop)
  for group, nodes in program.groups.items():
    for node in nodes:
      for handle in node.input_handles:
        handle.connect(node, group)
  for node in program.get_all_nodes():
    node.bind_addresses()
  return {
    group: nodes[0].to_executables(nodes, group, nodes[0].launch_context)
    for group, nodes in program.groups.items()
  }


# Nodes in threads of this process.


def _run_threads(
  program: lp.Program, unused_output_dir: str, requests: stopping.Requests
) -> tuple[int, str]:
  processes.guard_children()
  runtime.limit_threads(machine.num_cores())  # all nodes share this process's pools
  threads = set(threading.enumerate())
  with requests.kept():
    manager = worker_manager.WorkerManager(kill_main_thread=False)
  manager._termination_notice_secs = -1  # no alarms
  functions = _wire(
    program, lp.LaunchType.LOCAL_MULTI_THREADING, requests.ask, configs={}
  )
  for group, group_functions in functions.items():
    for function in group_functions:
      manager.thread_worker(group, function)
  code, message = _watch(
    [
      _Thread(f'{group}/{i}', worker, manager)
      for group, workers in manager._active_workers.items()
      for i, worker in enumerate(workers)
    ],
    requests,
  )
  if not requests.quit:
    _release_threads(program, set(threading.enumerate()) - threads)
  return code, message


class _Thread:
  """A node in a thread."""

  def __init__(
    self,
    name: str,
    worker: worker_manager.ThreadWorker,
    manager: worker_manager.WorkerManager,
  ):
    self.name = name
    self._worker = worker
    self._manager = manager

  def poll(self) -> int | None:
    if self._worker.thread.is_alive():
      return None
    return int(self._worker.future.exception() is not None)

  def ask(self):
    self._manager._stop()  # all of them

  def kill(self):
    """Does nothing: a thread ends by itself, or with the process."""

  def describe_failure(self) -> str:
    error = self._worker.future.exception()
    if error is None:
      return f'{self.name} {_UNASKED}'
    return ''.join(traceback.format_exception(error)) + f'{self.name} failed: {error}'


def _release_threads(program: lp.Program, threads: set[threading.Thread]):
  """Ends what still waits in C++ for a replay that nobody fills or reads any more."""
  for node in program.get_all_nodes():
    if isinstance(node, lp.ReverbNode) and hasattr(node, '_server'):
      node._server.stop()
  deadline = time.monotonic() + _THREADS_TIMEOUT
  for thread in threads:
    thread.join(max(0.0, deadline - time.monotonic()))


# Nodes in processes.


def _run_processes(
  program: lp.Program, output_dir: str, requests: stopping.Requests
) -> tuple[int, str]:
  hidden = {'CUDA_VISIBLE_DEVICES': '-1'}  # the GPU is the learner's
  configs = {
    group: PythonProcess(
      args={'lp_termination_notice_secs': -1},  # no alarms in nodes: see `_watch`
      env={} if group == 'learner' else hidden,
    )
    for group in program.groups
  }
  stop = functools.partial(_ask_launcher, os.getpid())
  commands = [
    command
    for group in _wire(
      program, lp.LaunchType.LOCAL_MULTI_PROCESSING, stop, configs
    ).values()
    for command in group
  ]
  try:
    outputs = {
      command.title: _Output(os.path.join(output_dir, command.title))
      for command in commands
    }
    with (
      processes.Family(_STOP_LIMIT) as family,
      _following(outputs),
    ):
      nodes: list[_Process] = []
      for command in commands:
        if not requests.stop:
          nodes.append(_Process(command, family, outputs[command.title]))
      return _watch(nodes, requests)
  finally:
    _remove_pickles(commands)


def _ask_launcher(pid: int):
  """Is `lp.stop` in a node, which may have outlived its launcher."""
  if os.getppid() == pid:
    os.kill(pid, signal.SIGUSR1)


def _remove_pickles(commands: Sequence[commands_lib.Command]):
  """Removes what Launchpad would remove when Python ends by itself."""
  for command in commands:
    arguments = command.command_as_list
    path = arguments[arguments.index('--data_file') + 1]
    shutil.rmtree(os.path.dirname(path), ignore_errors=True)


class _Process:
  """A node in a process."""

  def __init__(
    self, command: commands_lib.Command, family: processes.Family, output: '_Output'
  ):
    self.name = command.title
    self._family = family
    self._output = output
    with open(output.path, 'ab') as file:  # so that the file may be cut
      self._popen = family.start(
        self.name,
        command.command_as_list,
        env=command.env_overrides,
        stdout=file,
        stderr=subprocess.STDOUT,
      )

  def poll(self) -> int | None:
    return self._popen.poll()

  def ask(self):
    if self.poll() is None:
      processes.ask(self._popen.pid)

  def kill(self):
    self._family.kill(self.name)
    self._popen.wait()

  def describe_failure(self) -> str:
    code = self._popen.returncode
    if code < 0:
      how = f'was killed by signal {-code}'
    elif code > 0:
      how = f'failed with exit code {code}'
    else:
      how = _UNASKED
    last = f'{self.name} {how}; full output: {self._output.path}'
    return '\n'.join([*self._output.last_lines(), last])


class _Output:
  """What a node says: a file that is read as it grows, and kept small.

  Attributes:
    path: of the file, which the node appends to. What came before it, once there is
      much, is in `<path>.1`.
  """

  def __init__(self, path: str):
    self.path = path
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
      os.remove(f'{path}.1')  # of an earlier start
    self._file = open(path, 'w+b', buffering=0)
    self._decoder = codecs.getincrementaldecoder('utf-8')('replace')
    self._partial = ''

  def new_lines(self) -> Iterator[str]:
    """Yields the whole lines that were added since the last call.

    What has no end is cut at `_MAX_LINE_LENGTH`.
    """
    while data := self._file.read(_MAX_OUTPUT_SIZE):
      yield from self._split(data)
    if self._file.tell() > _MAX_OUTPUT_SIZE:
      yield from self._split(self._rotate())

  def last_lines(self) -> list[str]:
    """Returns the last few lines that are not mere notices of the libraries."""
    lines: list[str] = []
    for path in (f'{self.path}.1', self.path):
      with contextlib.suppress(FileNotFoundError), open(path, errors='replace') as file:
        said = (line.rstrip() for line in file if not _NOISE.match(line))
        lines += [line[-_MAX_LINE_LENGTH:] for line in said]
    return lines[-_NUM_LAST_LINES:]

  def _split(self, data: bytes) -> list[str]:
    # Progress bars end their lines with \r.
    *lines, rest = re.split('[\r\n]', self._partial + self._decoder.decode(data))
    pieces = range(0, max(len(rest), 1), _MAX_LINE_LENGTH)
    *cut, self._partial = [rest[i : i + _MAX_LINE_LENGTH] for i in pieces]
    return lines + cut

  def _rotate(self) -> bytes:
    """Moves all that was read to `<path>.1`; returns what came meanwhile."""
    more = b''
    with contextlib.suppress(OSError):  # on a full disk it is lost
      shutil.copyfile(self.path, f'{self.path}.1')
      more = self._file.read()
      with open(f'{self.path}.1', 'ab') as old:
        old.write(more[len(more) - (self._file.tell() - old.tell()) :])
    # What comes just now is lost: a file that is open elsewhere cannot be swapped.
    self._file.truncate(0)
    self._file.seek(0)
    return more


@contextlib.contextmanager
def _following(outputs: Mapping[str, _Output]):
  """Prints, line by line, what nodes of these names say."""
  closing = threading.Event()
  thread = threading.Thread(target=_follow, args=(outputs, closing), daemon=True)
  thread.start()
  try:
    yield
  finally:
    closing.set()
    thread.join()


def _follow(outputs: Mapping[str, _Output], closing: threading.Event):
  out = stopping.Forgiving(sys.stdout)
  at_end = False
  while not at_end:
    at_end = closing.wait(_POLL_PERIOD)  # then once more, for the rest
    for name, output in outputs.items():
      for line in output.new_lines():
        if line and not _NOISE.match(line):
          # Acme's loggers label their own lines.
          print(line if line.startswith('[') else f'[{name}] {line}', file=out)
    out.flush()
