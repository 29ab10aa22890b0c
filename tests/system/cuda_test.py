"""CUDA's libraries from the wheels: TensorFlow finds them once they are loaded."""

import os
import re
import subprocess
import sys

import pytest

from r2d2_acme.system import cuda, machine

# What TensorFlow does once there is a GPU: it opens its libraries and says what lacks.
_OPEN = """
import ctypes, os
import tensorflow as tf
path = os.path.join(tf.sysconfig.get_lib(), 'libtensorflow_framework.so.2')
library = ctypes.CDLL(path)
# stream_executor::internal::DsoLoader::TryDlopenCUDALibraries()
open_all = library._ZN15stream_executor8internal9DsoLoader22TryDlopenCUDALibrariesEv
open_all.restype = None
status = ctypes.c_void_p()  # null stands for success
open_all(ctypes.byref(status))
print(status.value)
"""
_LOAD = 'from r2d2_acme.system import cuda; cuda.load()\n'
_PRINT_LOADED = """
from r2d2_acme.system import cuda
print(*(x for x in cuda.LIBRARIES if x in open('/proc/self/maps').read()))
"""

_NEEDS_WHEELS = pytest.mark.skipif(
  len(cuda.find()) < len(cuda.LIBRARIES),
  reason='needs the wheels of the extra [gpu]: make install EXTRAS=gpu',
)


def _python(code: str, **environ: str) -> tuple[list[str], str]:
  ended = subprocess.run(
    [sys.executable, '-c', code],
    env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '0', **environ},
    capture_output=True,
    text=True,
    check=True,
  )
  return ended.stdout.splitlines(), ended.stderr


def _missing(errors: str) -> set[str]:
  return set(re.findall("Could not load dynamic library '(.*?)'", errors))


@_NEEDS_WHEELS
def test_tensorflow_misses_no_library_after_the_wheels_are_loaded():
  (loaded, status), errors = _python(_LOAD + _PRINT_LOADED + _OPEN)
  assert loaded.split() == [*cuda.LIBRARIES]
  assert (status, _missing(errors)) == ('None', set())


def test_processes_without_a_gpu_load_nothing():
  assert _python(_PRINT_LOADED, **cuda.HIDDEN)[0] == ['']
  if not machine.has_gpu():
    assert _python(_PRINT_LOADED)[0] == ['']


@_NEEDS_WHEELS
@pytest.mark.skipif(not cuda.is_wanted(), reason='needs a GPU')
def test_processes_with_a_gpu_load_all():
  assert _python(_PRINT_LOADED)[0] == [' '.join(cuda.LIBRARIES)]


def test_these_are_the_libraries_that_tensorflow_opens():
  """Where the system has some of them, TensorFlow misses the others."""
  _, errors = _python(_OPEN)
  assert _missing(errors) <= {*cuda.LIBRARIES, 'libcublasLt.so.11'}


@pytest.mark.parametrize(
  ('capability', 'runs', 'how'),
  [
    ((3, 0), False, '3.5 to 9.0'),
    ((3, 5), True, 'compiled for it'),
    ((7, 2), True, 'compiled for it'),
    ((8, 0), True, 'compiled for it'),
    ((8, 9), True, 'compiled for it'),
    ((9, 0), True, 'at the first start'),
    ((10, 0), False, '3.5 to 9.0'),
    ((12, 0), False, '3.5 to 9.0'),
  ],
)
def test_support_of_compute_capabilities(capability, runs, how):
  ok, detail = cuda.describe_support(capability)
  assert ok == runs
  assert how in detail
