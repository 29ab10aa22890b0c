"""The process: what it sets around TensorFlow's import, its threads, how it ends."""

import functools
import os
import sys
from typing import NoReturn

from r2d2_acme import machine

_ENVIRONMENT = {
  'TF_ENABLE_ONEDNN_OPTS': '1',  # off in TF 2.8; halves a learner step on a CPU
  'TF_CPP_MIN_LOG_LEVEL': '2',  # no start-up notices; errors still show
  'TF_FORCE_GPU_ALLOW_GROWTH': 'true',
  'GRPC_VERBOSITY': 'ERROR',
  'PYTHONUNBUFFERED': '1',  # of child processes: their lines arrive when printed
}


def set_environment_variables():
  """Sets defaults; what the user has set stays. Call before importing TensorFlow."""
  for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  # NumPy's threads would be as many as the cores that a container cannot use.
  os.environ.setdefault('OPENBLAS_NUM_THREADS', str(machine.num_cores()))
  # gRPC would send even local calls to a proxy, and wait for ever.
  direct = [os.environ.get('no_proxy', ''), 'localhost', '127.0.0.1', '[::1]']
  os.environ.setdefault('no_grpc_proxy', ','.join(filter(None, direct)))


@functools.cache
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


def exit_with_error(message: str) -> NoReturn:
  """Ends a program that was given bad input: one line on stderr, code 2."""
  print('error:', ' '.join(message.split()), file=sys.stderr, flush=True)
  sys.exit(2)


def exit_now(code: int) -> NoReturn:
  """Ends this process although threads of it still wait inside C++.

  Python's own way out would tear the libraries down under them, and abort.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
