"""`runtime.py`: what it detects on the machine and sets for this process."""

import json
import os
import shutil
import subprocess
import sys
import tempfile

import pytest

from r2d2_acme.system import machine, runtime

# The environment of a user, without the variables that this process has set.
_ENVIRON = {
  name: value
  for name, value in os.environ.items()
  if name not in (*runtime._ENVIRONMENT, *runtime._CACHES)
}
_AS_NOBODY = ['unshare', '--user', '--map-user=54321', '--map-group=54321']


def _run(*command: str, **environ: str) -> tuple[str, str]:
  """Runs a program; returns its stdout and its stderr without TensorFlow's notices."""
  ended = subprocess.run(
    command,
    env={'TF_CPP_MIN_LOG_LEVEL': '3', **_ENVIRON, **environ},
    capture_output=True,
    text=True,
    check=True,
  )
  return ended.stdout, ended.stderr


def _python(code: str, **environ: str) -> tuple[str, str]:
  return _run(sys.executable, '-c', code, **environ)


@pytest.mark.parametrize('flags', ['flags\t\t: fpu avx2 avx512f', 'Features\t: asimd'])
def test_a_cpu_without_the_flag_does_not_multiply_bfloat16(tmp_path, flags):
  path = tmp_path / 'cpuinfo'
  path.write_text(f'processor\t: 0\nmodel name\t: avx512_bf16\n{flags}\n\n')
  assert runtime.multiplies_bfloat16(str(path)) is False


@pytest.mark.parametrize('onednn', ['0', '1'])
def test_bfloat16_needs_the_flag_and_onednn(onednn):
  code = 'from r2d2_acme.system import runtime; print(runtime.multiplies_bfloat16())'
  out, _ = _python(code, TF_ENABLE_ONEDNN_OPTS=onednn, CUDA_VISIBLE_DEVICES='-1')
  with open('/proc/cpuinfo') as file:
    has_flag = 'avx512_bf16' in file.read()
  assert out.split() == [str(has_flag and onednn == '1')]


# Import order.


@pytest.mark.parametrize(
  'modules',
  [
    'tensorflow, r2d2_acme',
    'acme, r2d2_acme',
    'launchpad, r2d2_acme.config',
    'reverb, r2d2_acme.agent, r2d2_acme.learning.learner',
    'os; import sonnet; from r2d2_acme import R2D2Config',
    # The variable is set too late.
    'os, trfl; os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"; import r2d2_acme',
    'importlib, courier, r2d2_acme; importlib.reload(r2d2_acme)',
  ],
)
def test_tensorflow_before_r2d2_acme_is_one_line(modules):
  _, err = _python(f'import {modules}')
  assert err.startswith('warning: TensorFlow was imported before r2d2_acme')
  assert 'import r2d2_acme before' in err
  assert 'or export TF_ENABLE_ONEDNN_OPTS=1' in err
  assert err.count('\n') == 1


@pytest.mark.parametrize(
  ('modules', 'onednn'),
  [
    ('r2d2_acme, acme, tensorflow', None),
    ('r2d2_acme.learning.learner, tensorflow', None),
    ('tensorflow_probability, acme.specs, r2d2_acme', '1'),
    # The user turned oneDNN off.
    ('tensorflow, r2d2_acme', '0'),
    ('acme, r2d2_acme', 'False'),
  ],
)
def test_other_orders_are_silent(modules, onednn):
  environ = {} if onednn is None else {'TF_ENABLE_ONEDNN_OPTS': onednn}
  assert _python(f'import {modules}', **environ) == ('', '')


def test_children_of_a_warned_process_use_onednn():
  """A program's nodes inherit it, whatever their launcher imported first."""
  code = 'import launchpad, r2d2_acme'
  child = f'import subprocess, sys; {code}; subprocess.run([sys.executable, "-c", %r])'
  _, err = _python(child % code)
  assert err.count('warning') == 1


# No home directory.


@pytest.fixture
def temporary_folder(tmp_path):
  """A temporary folder with a short path, which every user may write in."""
  folder = tempfile.mkdtemp()
  os.chmod(folder, 0o1777)
  yield folder
  shutil.rmtree(folder)


_CACHES = (
  'import json, os, r2d2_acme\n'
  f'print(json.dumps([os.environ.get(name) for name in {list(runtime._CACHES)}]))'
)


@pytest.mark.parametrize('home', ['/nonexistent', '/dev/null', '/dev/null/x'])
def test_caches_are_temporary_without_a_home(temporary_folder, home):
  environ = {'HOME': home, 'TMPDIR': temporary_folder}
  out, err = _python(_CACHES, **environ)
  caches = json.loads(out)
  assert err == ''
  assert {os.path.dirname(path) for path in caches} == {
    os.path.join(temporary_folder, f'r2d2_acme-{os.getuid()}-0')
  }
  # The next process uses the same folder.
  assert json.loads(_python(_CACHES, **environ)[0]) == caches
  assert len(os.listdir(temporary_folder)) == 1


def test_caches_stay_in_a_home_that_is_writable(tmp_path):
  out, err = _python(_CACHES, HOME=str(tmp_path))
  assert (set(json.loads(out)), err) == ({None}, '')
  assert os.listdir(tmp_path) == []


def test_caches_of_the_user_stay(tmp_path):
  environ = {name: str(tmp_path / name) for name in runtime._CACHES}
  out, _ = _python(_CACHES, HOME='/nonexistent', **environ)
  assert json.loads(out) == list(environ.values())


def test_a_folder_that_others_can_write_is_not_used(temporary_folder):
  """Its owner could have put files into it."""
  name = os.path.join(temporary_folder, f'r2d2_acme-{os.getuid()}-')
  os.mkdir(f'{name}0', mode=0o700)
  os.chmod(f'{name}0', 0o777)
  os.symlink(temporary_folder, f'{name}1')
  environ = {'HOME': '/nonexistent', 'TMPDIR': temporary_folder}
  out, _ = _python(_CACHES, **environ)
  assert {os.path.dirname(path) for path in json.loads(out)} == {f'{name}2'}


def _may_be_nobody() -> bool:
  return subprocess.run([*_AS_NOBODY, 'true'], capture_output=True).returncode == 0


_NEEDS_NAMESPACES = pytest.mark.skipif(
  not _may_be_nobody(), reason='needs user namespaces'
)


@_NEEDS_NAMESPACES
@pytest.mark.parametrize('read_only', ['.', '.config', '.config/matplotlib'])
def test_caches_are_temporary_where_the_home_is_read_only(
  tmp_path, temporary_folder, read_only
):
  (tmp_path / read_only).mkdir(parents=True, exist_ok=True)
  (tmp_path / read_only).chmod(0o555)
  environ = {'HOME': str(tmp_path), 'TMPDIR': temporary_folder}
  out, _ = _run(*_AS_NOBODY, sys.executable, '-c', _CACHES, **environ)
  (tmp_path / read_only).chmod(0o755)
  matplotlib, *others = json.loads(out)
  assert matplotlib.startswith(temporary_folder)
  assert {x is None for x in others} == {read_only != '.'}


@_NEEDS_NAMESPACES
def test_figures_need_no_home_and_no_passwd_entry(tmp_path, temporary_folder):
  code = (
    'import getpass, os\n'
    'try: getpass.getuser(); raise SystemExit("there is an entry")\n'
    'except KeyError: pass\n'
    'from r2d2_acme.results import plotting\n'
    'figure, _ = plotting.pyplot().subplots()\n'
    f'figure.savefig({str(tmp_path / "figure.png")!r})\n'
    'import keras'
  )
  environ = {'TMPDIR': temporary_folder, 'PYTHONPATH': os.getcwd()}
  unset = ['env', '-u', 'HOME', '-u', 'USER', '-u', 'LOGNAME', '--chdir', str(tmp_path)]
  out, err = _run(*_AS_NOBODY, *unset, sys.executable, '-c', code, **environ)
  assert (out, err) == ('', '')
  assert os.listdir(tmp_path) == ['figure.png']  # no folder called ~
  assert len(os.listdir(temporary_folder)) == 1


_SERVING = """
import ctypes, pickle, threading
import numpy as np

parameters = [np.ones(100_000, np.float32) for _ in range(12)]
all_serve, all_served = threading.Barrier(16), threading.Barrier(17)
over, lock = threading.Event(), threading.Lock()

def serve():
  for _ in range(3):
    all_serve.wait()
    with lock:  # else it depends on how many do so at once
      pickle.dumps(parameters)
  all_served.wait()
  over.wait()

class Mallinfo(ctypes.Structure):  # glibc's; the first field is `arena`
  _fields_ = [(str(i), ctypes.c_uint32) for i in range(10)]

mallinfo = ctypes.CDLL(None).mallinfo
mallinfo.restype = Mallinfo
arenas = lambda: getattr(mallinfo(), '0')  # bytes
before = arenas()
for _ in range(16):
  threading.Thread(target=serve).start()
all_served.wait()
print((arenas() - before) / 2**20)
over.set()
"""


@pytest.mark.skipif(machine.num_cores() > 4, reason='as many arenas as threads')
def test_threads_that_serve_parameters_keep_little_memory():
  """In processes that a program starts; without the limit it is 11 MiB to 47.

  The C library's own count: a busy system takes pages from a process, and brings them
  back when it uses them.
  """
  code = 'import subprocess, sys, r2d2_acme; subprocess.run(sys.argv[1:])'
  ended = subprocess.run(
    [sys.executable, '-c', code, sys.executable, '-c', _SERVING],
    env={k: v for k, v in os.environ.items() if k != 'MALLOC_ARENA_MAX'},
    stdout=subprocess.PIPE,
    check=True,
    text=True,
  )
  assert float(ended.stdout) < 5.5 * machine.num_cores()
