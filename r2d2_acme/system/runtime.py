"""The process: what it sets around TensorFlow's import, its threads, how it ends."""

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
  _ONEDNN: '1',  # off in TF 2.8; halves a learner step on a CPU
  'TF_CPP_MIN_LOG_LEVEL': '2',  # no start-up notices; errors still show
  'TF_FORCE_GPU_ALLOW_GROWTH': 'true',
  'GRPC_VERBOSITY': 'ERROR',
  'PYTHONUNBUFFERED': '1',  # of child processes: their lines arrive when printed
}
# Where libraries keep files of their own, and where that is by default.
_CACHES = {'MPLCONFIGDIR': '~/.config/matplotlib', 'KERAS_HOME': '~/.keras'}
# TensorFlow's own; launchpad, reverb and parts of acme load it, too.
_TENSORFLOW_LIBRARY = 'libtensorflow_framework.so.2'


def set_environment_variables():
  """Sets defaults; what the user has set stays. Call before importing TensorFlow.

  Where TensorFlow was loaded before, so that it runs without oneDNN although nobody
  said so, a line on stderr tells the cure. The other variables are read later, or
  silence notices only.
  """
  wants_onednn = os.environ.get(_ONEDNN, '1').lower() not in ('0', 'false')
  for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  # NumPy's threads would be as many as the cores that a container cannot use.
  os.environ.setdefault('OPENBLAS_NUM_THREADS', str(machine.num_cores()))
  # gRPC would send even local calls to a proxy, and wait for ever.
  direct = [os.environ.get('no_proxy', ''), 'localhost', '127.0.0.1', '[::1]']
  os.environ.setdefault('no_grpc_proxy', ','.join(filter(None, direct)))
  _set_caches()
  if wants_onednn and not _may_use_onednn():
    _warn_of_import_order()


def _may_use_onednn() -> bool:
  """Whether TensorFlow uses oneDNN, or is not loaded yet.

  It reads the environment variable when its library is loaded, and never again.
  """
  try:
    library = ctypes.CDLL(_TENSORFLOW_LIBRARY, os.RTLD_NOLOAD | os.RTLD_LAZY)
    uses_onednn = library._ZN10tensorflow12IsMKLEnabledEv  # tensorflow::IsMKLEnabled()
  except (OSError, AttributeError):  # not loaded, or of another version
    return True
  uses_onednn.restype = ctypes.c_bool
  return uses_onednn()


@functools.lru_cache(maxsize=None)  # noqa: UP033 (once for a process, on any Python)
def _warn_of_import_order():
  print(
    'warning: TensorFlow was loaded before r2d2_acme, so that oneDNN and bfloat16 are '
    'off and learning on a CPU takes twice as long: import r2d2_acme before acme, '
    f'launchpad, reverb, sonnet and tensorflow, or export {_ONEDNN}=1',
    file=sys.stderr,
    flush=True,
  )


def _set_caches():
  """Gives libraries a folder where the home directory is missing or not writable."""
  missing = {
    name: os.path.basename(path)
    for name, path in _CACHES.items()
    if name not in os.environ and not _can_write(path)
  }
  if missing:
    with contextlib.suppress(OSError):  # no temporary folder either: they will say so
      folder = _private_folder()
      for name, base in missing.items():
        os.environ[name] = os.path.join(folder, base)


def _can_write(path: str) -> bool:
  """Whether a folder under the home directory is writable, or could be made."""
  home, path = (os.path.expanduser(p) for p in ('~', path))
  if not os.path.isdir(home):
    return False
  while not os.path.lexists(path):
    path = os.path.dirname(path)
  return os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK)


def _private_folder() -> str:
  """Returns this user's temporary folder, the same one in each process.

  Others could have made one of that name, to put files of theirs into it; then it is
  the next name.
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
  """Returns whether products in bfloat16 pay here: the CPU and oneDNN do them.

  Beside a GPU they do not, since the GPU is the one that learns. One that
  `CUDA_VISIBLE_DEVICES` hides from this process does not count.
  """
  import tensorflow as tf  # after the environment variables

  with open(cpuinfo) as file:
    flags = next((line.split() for line in file if line.startswith('flags')), [])
  if 'avx512_bf16' not in flags or tf.config.list_physical_devices('GPU'):
    return False
  limit_threads(machine.num_cores())  # what follows would start as many as it sees
  ones = tf.ones([1, 1, 1, 1], tf.bfloat16)
  try:
    tf.function(lambda: tf.nn.conv2d(ones, ones, 1, 'VALID'))()
  except tf.errors.OpError:  # without oneDNN, see `_ENVIRONMENT`
    return False
  return True


def limit_threads(num_threads: int):
  """Sizes and starts this process's TensorFlow pools; only the first call counts.

  What the user has set through `tf.config.threading` stays.
  """
  import tensorflow as tf  # after the environment variables

  pools = tf.config.threading
  try:
    if not pools.get_intra_op_parallelism_threads():
      pools.set_intra_op_parallelism_threads(num_threads)
    if not pools.get_inter_op_parallelism_threads():
      pools.set_inter_op_parallelism_threads(num_threads)
  except RuntimeError:
    return  # already running: all nodes share one process (local_mt, tests)
  tf.config.list_logical_devices()  # starts them


def hide_gpu():
  """Keeps this process off the GPU. Call before TensorFlow's first operation."""
  import tensorflow as tf  # after the environment variables

  tf.config.set_visible_devices([], 'GPU')


def exit_with_error(message: str, code: int = 2) -> NoReturn:
  """Ends a program with one line on stderr; code 2 says that its input was bad."""
  print('error:', ' '.join(message.split()), file=sys.stderr, flush=True)
  sys.exit(code)


def exit_now(code: int) -> NoReturn:
  """Ends this process although threads of it still wait inside C++, and its children.

  Python's own way out would tear the libraries down under them, and abort; and it would
  wait for children, such as those of an environment that could not be closed.
  """
  processes.kill_descendants()
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(Exception):  # a signal may come in the middle of a print
      stream.flush()
  os._exit(code)
