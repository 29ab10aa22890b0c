"""The GPU's libraries: loads those of NVIDIA's wheels, and asks the driver for GPUs.

TensorFlow 2.8 opens seven libraries of CUDA 11 by name, and finds them if the system
has them or if the process has loaded them. `pip install r2d2-acme[gpu]` installs them
as wheels, which put them into folders that the system does not search.
"""

from __future__ import annotations  # loads on any Python, as `doctor` does

import contextlib
import ctypes
import importlib.util
import os
from typing import NamedTuple

from r2d2_acme.system import machine

# The libraries, each after those that it needs, and their folders in the wheels.
LIBRARIES = {
  'libcudart.so.11.0': 'cuda_runtime',
  'libcublas.so.11': 'cublas',
  'libcufft.so.10': 'cufft',
  'libcurand.so.10': 'curand',
  'libcusparse.so.11': 'cusparse',
  'libcusolver.so.11': 'cusolver',
  'libcudnn.so.8': 'cudnn',
}
_ZLIB = 'libz.so.1'  # the system's; cuDNN needs it when it is used first
_VISIBLE = 'CUDA_VISIBLE_DEVICES'
HIDDEN = {_VISIBLE: '-1'}  # environment variables of a process without a GPU

# What TensorFlow's kernels are compiled for: sm_35, sm_50, sm_60, sm_70, sm_75 and
# compute_80. A kernel runs on GPUs of its major version and of no lower minor version,
# and compute_80 also holds what a driver can compile for later ones. cuBLAS and cuDNN
# of CUDA 11 end with Hopper.
_OLDEST = (3, 5)
_NEWEST_COMPILED, _NEWEST = 8, 9  # major versions: Ampere and Ada; Hopper
_OLDEST_DRIVER = 11_000  # of CUDA 11.0, as cuDriverGetVersion counts

# Attributes of a device, see cuDeviceGetAttribute.
_MAJOR, _MINOR = 75, 76


class GPU(NamedTuple):
  """A GPU that the driver shows to this process.

  Attributes:
    name: such as 'NVIDIA A100-SXM4-40GB'.
    capability: the compute capability, such as (8, 0).
  """

  name: str
  capability: tuple[int, int]


class DriverFailed(RuntimeError):
  """The driver is missing, or does not work; the message is one line."""


def is_wanted() -> bool:
  """Returns whether there is a GPU that the user does not hide from this process."""
  return machine.has_gpu() and os.environ.get(_VISIBLE) not in ('', '-1')


def load():
  """Loads the libraries of the wheels, as far as they are installed.

  Call it before TensorFlow is imported, which looks for the first of them at once.
  """
  for path in find():
    with contextlib.suppress(OSError):  # `doctor` says what is wrong with it
      ctypes.CDLL(path, os.RTLD_GLOBAL | os.RTLD_LAZY)


def find() -> list[str]:
  """Returns the paths of the libraries in the wheels, in the order to load them."""
  spec = importlib.util.find_spec('nvidia')  # the folder that the wheels share
  folders = spec.submodule_search_locations if spec else None
  paths = [
    os.path.join(folder, part, 'lib', library)
    for library, part in LIBRARIES.items()
    for folder in folders or ()
  ]
  return [path for path in paths if os.path.exists(path)]


def missing() -> list[str]:
  """Returns the names of the libraries that do not load.

  Afterwards the others stay loaded: call it in a process of its own.
  """
  load()
  names = []
  for library in (*LIBRARIES, _ZLIB):
    try:
      ctypes.CDLL(library)
    except OSError:
      names.append(library)
  return names


def gpus() -> list[GPU]:
  """Asks the driver for the GPUs that this process can see.

  Raises:
    DriverFailed: there is no driver, it does not work, or it is too old.
  """
  try:
    driver = ctypes.CDLL('libcuda.so.1')
  except OSError as error:
    raise DriverFailed(str(error)) from error
  number = ctypes.c_int()

  def ask(function: str, *arguments) -> int:
    code = getattr(driver, function)(ctypes.byref(number), *arguments)
    if code:
      raise DriverFailed(f'{function} ends with error {code}')
    return number.value

  version = ask('cuDriverGetVersion')
  if version < _OLDEST_DRIVER:
    raise DriverFailed(f'the driver is for CUDA {version // 1000}, which is too old')
  code = driver.cuInit(0)
  if code:
    raise DriverFailed(f'cuInit ends with error {code}')
  found = []
  for index in range(ask('cuDeviceGetCount')):
    device = ask('cuDeviceGet', index)
    name = ctypes.create_string_buffer(100)
    driver.cuDeviceGetName(name, len(name), device)
    major, minor = (ask('cuDeviceGetAttribute', x, device) for x in (_MAJOR, _MINOR))
    found.append(GPU(name.value.decode(), (major, minor)))
  return found


def describe_support(capability: tuple[int, int]) -> tuple[bool, str]:
  """Says how TensorFlow runs on GPUs of a compute capability.

  Returns:
    Whether it runs, and a line that says how, or why not.
  """
  major, _ = capability
  if capability < _OLDEST or major > _NEWEST:
    return False, 'TensorFlow 2.8 runs on 3.5 to 9.0 only'
  if major > _NEWEST_COMPILED:
    return True, 'the driver compiles for minutes at the first start'
  return True, 'compiled for it'
