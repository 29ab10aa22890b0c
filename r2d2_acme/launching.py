"""Runs a Launchpad program on this machine and says how it ended.

Launchpad's `output_to_files` is its one local mode that notices a dead node; here its
files are followed to the terminal, so that nothing else is needed to watch a run.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from typing import NoReturn, TextIO

import launchpad as lp
from absl import flags
from launchpad.launch.run_locally import launch_local_output_to_files
from launchpad.nodes.python.local_multi_processing import PythonProcess

from r2d2_acme import machine, runtime

LAUNCH_TYPES = ('local_mp', 'local_mt')

_POLL_PERIOD = 0.2  # seconds
_STOP_LIMIT = 18  # seconds for a node to stop: one long learner step, and a save
_NUM_LAST_LINES = 20  # of a failed node's output
_SAVES = 'learner/0'  # the node whose failure at the end matters, too

# Launchpad looks for it when a node is given arguments.
flags.DEFINE_multi_string('lp_dummy_config', [], 'Internal to Launchpad.')

# Notices of the libraries underneath: they stay in the files.
_NOISE = re.compile(
  r'I\d{4} |\[reverb/cc/|(\x1b\[\d+m)?(Waiting for workers|User-requested|Press CTRL)'
)


def launch(program: lp.Program, launch_type: str, output_dir: str) -> int:
  """Runs `program` until it stops; returns the exit code for this process.

  Args:
    program: what to run.
    launch_type: one of `LAUNCH_TYPES`.
    output_dir: in `local_mp`, a file for each node's output.

  Returns:
    0 after a step limit, Ctrl-C or SIGTERM; 1 if a node failed, or the learner could
    not save at the end, with the cause printed last.
  """
  if launch_type == 'local_mp':
    return _launch_processes(program, output_dir)
  _launch_threads(program, launch_type)


def _launch_threads(program: lp.Program, launch_type: str) -> NoReturn:
  """Does not return: threads that wait for a stopped node would hinder the exit."""
  runtime.limit_threads(machine.num_cores())  # all nodes share this process's pools
  code = 0
  try:
    lp.launch(program, launch_type=launch_type).wait()
  except BaseException as error:  # any node's
    traceback.print_exception(error)
    code = 1
  runtime.exit_now(code)


def _launch_processes(program: lp.Program, output_dir: str) -> int:
  os.makedirs(output_dir, exist_ok=True)
  # Launchpad reads its environment variable when it is imported: too early.
  launch_local_output_to_files._LOGGING_DIR = output_dir
  flags.FLAGS.set_default('lp_termination_notice_secs', _STOP_LIMIT)
  hidden = {'CUDA_VISIBLE_DEVICES': '-1'}  # the GPU is the learner's
  resources = {
    group: PythonProcess(
      args={'lp_termination_notice_secs': _STOP_LIMIT},
      env={} if group == 'learner' else hidden,
    )
    for group in program.groups
  }
  terminal = sys.stdout
  with contextlib.redirect_stdout(io.StringIO()):  # Launchpad's own notices
    manager = lp.launch(
      program,
      launch_type='local_mp',
      terminal='output_to_files',
      local_resources=resources,
    )
    # It would kill this process too, with those that do not stop in time.
    manager._kill_main_thread = False
    # The manager forgets who has ended. Each has a title of its own, its file's name.
    processes = {
      title: process for title, (process,) in manager._active_workers.items()
    }
    paths = {name: os.path.join(output_dir, name) for name in processes}
    with _following(paths, terminal):
      failed = _wait(manager, processes)
  killed = [n for n, process in processes.items() if process.returncode == -9]
  saver = processes.get(_SAVES)
  if failed is None and not killed and saver is not None and saver.returncode:
    failed = _SAVES
  if failed is not None:
    message = _describe_failure(failed, processes[failed].returncode, paths[failed])
  elif killed:
    message = f'killed, for not stopping in time: {", ".join(killed)}'
  else:
    return 0
  print(message, file=sys.stderr, flush=True)
  return 1


def _wait(manager, processes: Mapping[str, subprocess.Popen]) -> str | None:
  """Waits for the program's end; returns the name of who failed first, if any."""
  try:
    manager.wait()
  except RuntimeError:
    # The others, now asked to stop, may fail for want of it, and are seen later.
    failed = next(name for name, process in processes.items() if process.returncode)
    manager.wait(raise_error=False)
    return failed
  return None


def _describe_failure(name: str, code: int, path: str) -> str:
  with open(path, errors='replace') as file:
    lines = [line.rstrip() for line in file if not _NOISE.match(line)]
  how = f'was killed by signal {-code}' if code < 0 else f'failed with exit code {code}'
  return '\n'.join([*lines[-_NUM_LAST_LINES:], f'{name} {how}; all it said: {path}'])


@contextlib.contextmanager
def _following(paths: Mapping[str, str], out: TextIO):
  """Prints to `out`, line by line, what is added to the files of these names."""
  closing = threading.Event()
  thread = threading.Thread(target=_follow, args=(paths, out, closing), daemon=True)
  thread.start()
  try:
    yield
  finally:
    closing.set()
    thread.join()


def _follow(paths: Mapping[str, str], out: TextIO, closing: threading.Event):
  with contextlib.ExitStack() as stack:
    files = {
      name: stack.enter_context(open(path, errors='replace'))
      for name, path in paths.items()
    }
    partial = dict.fromkeys(files, '')
    at_end = False
    while not at_end:
      at_end = closing.wait(_POLL_PERIOD)  # then once more, for the rest
      for name, file in files.items():
        *lines, partial[name] = (partial[name] + file.read()).split('\n')
        for line in lines:
          if line and not _NOISE.match(line):
            # Acme's loggers label their own lines.
            print(line if line.startswith('[') else f'[{name}] {line}', file=out)
      out.flush()
