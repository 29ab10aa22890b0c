"""Set-up of a process around TensorFlow's import, its threads and its end."""

from __future__ import annotations  # loads on any Python, as `doctor` does

import contextlib
import ctypes
import functools
import itertools
import os
import stat
import sys
import tempfile
from typing import NoReturn

from r2d2_acme.system import machine, processes

_ONEDNN = 'TF_ENABLE_ONEDNN_OPTS'
_ENVIRONMENT = {
  _ONEDNN: '1',  # off by default in TF 2.8; halves the time of a learner step on a CPU
  'TF_CPP_MIN_LOG_LEVEL': '2',  # no start-up notices; errors still show
  'TF_FORCE_GPU_ALLOW_GROWTH': 'true',
  # Bytes, the most that there may be: all that the driver compiles for Hopper fits.
  'CUDA_CACHE_MAXSIZE': str(4 << 30),
  'GRPC_VERBOSITY': 'ERROR',
  'PYTHONUNBUFFERED': '1',  # lines of child processes arrive as they are printed
}
# Variables that name a library's own folder, and that folder's default.
_CACHES = {
  'MPLCONFIGDIR': '~/.config/matplotlib',
  'KERAS_HOME': '~/.keras',
  'CUDA_CACHE_PATH': '~/.nv/ComputeCache',
}
# TensorFlow's core library; launchpad, reverb and parts of acme load it, too.
_TENSORFLOW_LIBRARY = 'libtensorflow_framework.so.2'


def set_environment_variables():
  """Sets defaults for variables that the user has not set. Call it before TensorFlow.

  If TensorFlow was imported earlier, it runs without oneDNN although nobody asked for
  that, and a line on stderr names the cure. All other variables are read later or
  only silence notices.
  """
  wants_onednn = os.environ.get(_ONEDNN, '1').lower() not in ('0', 'false')
  for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  # NumPy would start a thread for each core, also for those closed to this container.
  os.environ.setdefault('OPENBLAS_NUM_THREADS', str(machine.num_cores()))
  # The C library would make eight arenas for each core. Each keeps what its threads
  # once needed together, and those of the learner serve megabytes at a time.
  os.environ.setdefault('MALLOC_ARENA_MAX', str(machine.num_cores()))
  # gRPC would send even local calls to a proxy and wait for ever.
  direct = [os.environ.get('no_proxy', ''), 'localhost', '127.0.0.1', '[::1]']
  os.environ.setdefault('no_grpc_proxy', ','.join(filter(None, direct)))
  _set_caches()
  if wants_onednn and not _may_use_onednn():
    _warn_of_import_order()


def _may_use_onednn() -> bool:
  """Returns whether TensorFlow uses oneDNN or is not loaded yet.

  TensorFlow reads the environment variable only once, when its library is loaded.
  """
  try:
    library = ctypes.CDLL(_TENSORFLOW_LIBRARY, os.RTLD_NOLOAD | os.RTLD_LAZY)
    uses_onednn = library._ZN10tensorflow12IsMKLEnabledEv  # tensorflow::IsMKLEnabled()
  except (OSError, AttributeError):  # it is not loaded, or has another version
    return True
  uses_onednn.restype = ctypes.c_bool
  return uses_onednn()


@functools.lru_cache(maxsize=None)  # noqa: UP033 (once per process, on any Python)
def _warn_of_import_order():
  print(
    'warning: TensorFlow was imported before r2d2_acme; oneDNN and bfloat16 are off, '
    'and learning on a CPU takes twice as long: import r2d2_acme before acme, '
    f'launchpad, reverb, sonnet and tensorflow, or export {_ONEDNN}=1',
    file=sys.stderr,
    flush=True,
  )


def _set_caches():
  """Gives libraries another folder if the home directory is missing or read-only."""
  missing = {
    name: os.path.basename(path)
    for name, path in _CACHES.items()
    if name not in os.environ and not _can_write(path)
  }
  if missing:
    # Without a temporary folder, too, the libraries report the problem themselves.
    with contextlib.suppress(OSError):
      folder = _private_folder()
      for name, base in missing.items():
        os.environ[name] = os.path.join(folder, base)


def _can_write(path: str) -> bool:
  """Returns whether a folder in the home directory is writable or can be made."""
  home, path = (os.path.expanduser(p) for p in ('~', path))
  if not os.path.isdir(home):
    return False
  while not os.path.lexists(path):
    path = os.path.dirname(path)
  return os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK)


def _private_folder() -> str:
  """Makes this user's temporary folder, the same one in each process; returns its path.

  Another user may have made a folder of that name in order to put files into it. Then
  the next name is tried.
  """
  for number in itertools.count():
    name = f'r2d2_acme-{os.getuid()}-{number}'
    path = os.path.join(tempfile.gettempdir(), name)
    with contextlib.suppress(FileExistsError):
      os.mkdir(path, mode=0o700)
    status = os.lstat(path)
    is_private = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077
    if is_private and status.st_uid == os.getuid():
      return path
  raise AssertionError


@functools.lru_cache(maxsize=None)  # noqa: UP033
def multiplies_bfloat16(cpuinfo: str = '/proc/cpuinfo') -> bool:
  """Returns whether bfloat16 is faster here, that is on a CPU that multiplies it.

  It is not if there is a GPU, since then the GPU learns. A GPU that
  `CUDA_VISIBLE_DEVICES` hides from this process does not count.

  Args:
    cpuinfo: the file that lists the CPU's features.
  """
  import tensorflow as tf  # after the environment variables

  with open(cpuinfo) as file:
    flags = next((line.split() for line in file if line.startswith('flags')), [])
  if 'avx512_bf16' not in flags or tf.config.list_physical_devices('GPU'):
    return False
  limit_threads(machine.num_cores())  # else the next call starts one per visible core
  ones = tf.ones([1, 1, 1, 1], tf.bfloat16)
  try:
    tf.function(lambda: tf.nn.conv2d(ones, ones, 1, 'VALID'))()
  except tf.errors.OpError:  # without oneDNN, see `_ENVIRONMENT`
    return False
  return True


def limit_threads(num_threads: int):
  """Starts TensorFlow's thread pools with this size; only the first call has an effect.

  Sizes that the user has set through `tf.config.threading` stay.
  """
  import tensorflow as tf  # after the environment variables

  pools = tf.config.threading
  try:
    if not pools.get_intra_op_parallelism_threads():
      pools.set_intra_op_parallelism_threads(num_threads)
    if not pools.get_inter_op_parallelism_threads():
      pools.set_inter_op_parallelism_threads(num_threads)
  except RuntimeError:
    return  # they run already: all nodes share one process (local_mt, tests)
  tf.config.list_logical_devices()  # starts the pools


def hide_gpu():
  """Keeps this process off the GPU. Call it before TensorFlow's first operation."""
  import tensorflow as tf  # after the environment variables

  tf.config.set_visible_devices([], 'GPU')


def exit_with_error(message: str, code: int = 2) -> NoReturn:
  """Ends the program with one line on stderr.

  Args:
    message: the error. Its whitespace, such as newlines, becomes single spaces.
    code: the exit code; 2 stands for bad input.
  """
  print('error:', ' '.join(message.split()), file=sys.stderr, flush=True)
  sys.exit(code)


def exit_now(code: int) -> NoReturn:
  """Ends this process and its children at once, even if threads still wait in C++.

  A usual exit of Python would unload libraries that these threads use, and abort. It
  would also wait for children, such as those of an environment that failed to close.
  """
  processes.kill_descendants()
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(Exception):  # a signal may have interrupted a print
      stream.flush()
  os._exit(code)
