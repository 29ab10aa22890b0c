"""Checks whether this machine can run r2d2_acme, and names the cure if it cannot.

    python -m r2d2_acme.system.doctor         # tries out everything that is needed
    python -m r2d2_acme.system.doctor --fix   # links libpython where Reverb looks

DeepMind's wheels work in only one combination of versions, on one version of Python.
In any other, an import usually fails with an undefined symbol. The programs in
`launch/` therefore call `check_installation()` first. It must be able to report a
problem on any Python and without any package, so this module uses only the standard
library and old syntax, and imports most modules inside functions.
"""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

_PYTHON = (3, 10)  # the newest with reverb's and launchpad's wheels for TensorFlow 2.8
_GLIBC = (2, 28)  # the oldest for which the wheels in requirements.txt are built
_LIBPYTHON = 'libpython3.10.so.1.0'
# Reverb's and courier's libraries search this folder in site-packages for libpython.
_RUNPATH = '_solib_k8/_U@python_Uincludes_S_S_Cpython_Uincludes___Upython_Uincludes'
_LOADER_FOLDERS = ('/usr/lib/x86_64-linux-gnu', '/usr/lib64', '/usr/lib')

# The modules that fail in practice, dependencies first, and their distributions.
_IMPORTS = {
  'tensorflow': 'tensorflow',
  'tensorflow_probability': 'tensorflow-probability',
  'sonnet': 'dm-sonnet',
  'trfl': 'trfl',
  'reverb': 'dm-reverb',
  'courier': 'dm-launchpad',
  'launchpad': 'dm-launchpad',
  'acme.tf.savers': 'dm-acme',
  'ale_py': 'ale-py',
  'cv2': 'opencv-python-headless',
}

_IMPORT = """
import importlib, sys
for name in sys.argv[1:]:
  try:
    importlib.import_module(name)
    error = ''
  except BaseException as e:
    error = (str(e).splitlines() or [''])[-1]
    error = f'{type(e).__name__}: {error}'
  print(f'\\n@import {name} {error}', flush=True)
"""

_REVERB = """
import reverb
server = reverb.Server([reverb.Table.queue('table', 1)])
client = reverb.Client(f'localhost:{server.port}')
client.insert([7], {'table': 1.0})
assert next(client.sample('table'))[0].data[0] == 7
server.stop()
"""

_GPUS = """
import json
from r2d2_acme.system import cuda
try:
  print(json.dumps([*map(list, cuda.gpus())]))
except cuda.DriverFailed as error:
  raise SystemExit(str(error))
"""

_CUDA = """
from r2d2_acme.system import cuda
if missing := cuda.missing():
  raise SystemExit(f'missing: {", ".join(missing)}')
import tensorflow as tf
print('@GPUs', len(tf.config.list_physical_devices('GPU')))
"""

_ALE = """
import ale_py, gymnasium
gymnasium.register_envs(ale_py)
env = gymnasium.make('ALE/Pong-v5')
env.reset(seed=0)
env.step(0)
env.close()
"""


class Check(NamedTuple):
  """The result of one check, a row of the table.

  Attributes:
    name: what was checked.
    ok: whether it works.
    detail: what was found.
    cure: what to do, a command if there is one.
  """

  name: str
  ok: bool
  detail: str
  cure: str = ''


def check_python(version=sys.version_info[:3], name=sys.implementation.name):
  """Checks the interpreter; the arguments are for tests."""
  detail = name + ' ' + '.'.join(map(str, version))
  ok = tuple(version[:2]) == _PYTHON and name == 'cpython'
  return Check(
    'CPython 3.10', ok, detail, 'make install, and then run it with .venv/bin/python'
  )


def check_platform(system='', machine='', libc=()):
  """Checks for Linux on x86-64 with a new enough glibc; the arguments are for tests."""
  import platform

  name, version = libc or platform.libc_ver()
  detail = f'{system or platform.system()} {machine or platform.machine()}'
  ok = detail == 'Linux x86_64' and name == 'glibc'
  ok = ok and tuple(map(int, version.split('.')[:2])) >= _GLIBC
  return Check(
    'Linux x86-64, glibc >= 2.28',
    ok,
    f'{detail} {name} {version}',
    'docker run --platform linux/amd64 -it -v "$PWD":/r2d2 -w /r2d2 python:3.10 bash',
  )


def check_libpython():
  """Checks that Reverb and courier, which are linked against libpython, find it.

  uv and conda install libpython in a folder that the loader does not search. Debian and
  Ubuntu have it in a separate package. pyenv builds it only with --enable-shared.
  """
  if _LIBPYTHON in _read('/proc/self/maps'):
    return Check(_LIBPYTHON, True, 'part of this interpreter')
  folders = os.environ.get('LD_LIBRARY_PATH', '').split(':') + [*_LOADER_FOLDERS]
  for path in [*(os.path.join(f, _LIBPYTHON) for f in folders if f), _link()]:
    if os.path.exists(path):
      return Check(_LIBPYTHON, True, 'where Reverb looks')
  if _find_libpython():
    cure = _python() + ' -m r2d2_acme.system.doctor --fix'
    return Check(_LIBPYTHON, False, 'not where Reverb looks', cure)
  return Check(
    _LIBPYTHON,
    False,
    'this Python came without it',
    'apt-get install libpython3.10, or a Python that has it: uv python install 3.10, '
    'or PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install 3.10',
  )


def check_proxy():
  """Checks that gRPC will not send local connections to a proxy and wait for ever."""
  proxies = [x for x in ('grpc_proxy', 'https_proxy', 'http_proxy') if x in os.environ]
  direct = os.environ.get('no_grpc_proxy', os.environ.get('no_proxy', ''))
  ok = not any(map(os.environ.get, proxies)) or 'localhost' in direct.split(',')
  detail = '' if ok else f'{proxies[0]} is set and no_proxy lacks localhost'
  cure = 'export no_proxy=localhost,127.0.0.1,$no_proxy'
  return Check('local connections avoid the proxy', ok, detail, cure)


def check_pins():
  """Checks that every direct dependency has the version that setup.py pins."""
  found = installed_version('r2d2-acme')
  if found is None:
    return [
      Check('r2d2-acme', False, 'not installed', 'make install, or pip install .')
    ]
  checks = [Check('r2d2-acme', True, found)]
  for name, pin in _pins().items():
    found = installed_version(name)
    state = f'{found} is installed' if found else 'not installed'
    detail = found if found == pin else f'{state}, {pin} is needed'
    checks.append(Check(name, found == pin, detail, _pip_install(f'{name}=={pin}')))
  return checks


def installed_version(name):
  """Returns the version of a distribution, or None if it is not installed.

  When Ray is imported, it puts a folder with a psutil of its own before all others.
  That is not the one that pip has installed.
  """
  from importlib import metadata

  path = [x for x in sys.path if os.path.basename(x) != 'thirdparty_files']
  found = next(iter(metadata.distributions(name=name, path=path)), None)
  return found and found.version


def check_imports(imports=_IMPORTS):
  """Imports each module in another process, so that a crash fails only that check."""
  names, checks = list(imports), []
  while names:
    output, error = _run(_IMPORT, *names)
    results = dict(
      (line.split(' ', 2) + [''])[1:3]
      for line in output.splitlines()
      if line.startswith('@import ')
    )
    if len(results) < len(names):
      results[names[len(results)]] = error or 'the import ended the process'
    for name in names[: len(results)]:
      error = results[name].strip()
      cure = _cure(error, imports[name])
      checks.append(Check('import ' + name, not error, error, cure))
    names = names[len(results) :]
  return checks


def check_reverb(code=_REVERB, seconds=60):
  """Checks that a Reverb server returns an item that was inserted."""
  _, error = _run(code, seconds=seconds)
  return Check('Reverb gives back an item', not error, error, _cure(error, 'dm-reverb'))


def check_atari(code=_ALE):
  """Checks that an Atari game takes a step."""
  _, error = _run(code)
  cure = _cure(error, 'ale-py', 'gymnasium')
  return Check('Atari plays Pong', not error, error, cure)


def check_gpu():
  """Checks that TensorFlow can use the GPUs of this machine, if there are any."""
  import json

  from r2d2_acme.system import cuda, machine

  if not machine.has_gpu():
    return [Check('GPU', True, 'none: learning on the CPU')]
  if not cuda.is_wanted():
    return [Check('GPU', True, 'hidden by CUDA_VISIBLE_DEVICES: learning on the CPU')]
  instead = 'or learn on the CPU: export CUDA_VISIBLE_DEVICES=-1'
  driver = _read('/proc/driver/nvidia/version').partition('Kernel Module')[2].split()
  output, error = _run(_GPUS, hide_gpu=False)
  checks = [
    Check(
      'NVIDIA driver',
      not error,
      error or ' '.join(driver[:1]),
      'install a driver for CUDA 11 or later, in a container: docker run --gpus all; '
      + instead,
    )
  ]
  if error:
    return checks
  for index, (name, capability) in enumerate(json.loads(output)):
    ok, detail = cuda.describe_support(tuple(capability))
    detail = '{}, compute capability {}.{}: {}'.format(name, *capability, detail)
    checks.append(Check(f'GPU {index}', ok, detail, f'another GPU, {instead}'))
  output, error = _run(_CUDA, hide_gpu=False)
  found = output.partition('@GPUs ')[2].strip()
  return checks + [
    Check(
      'TensorFlow finds the GPU',
      found not in ('', '0'),
      error or f'{found} of {len(checks) - 1}',
      "make install EXTRAS=gpu, or pip install '.[gpu]', and for libz.so.1 "
      f'apt-get install zlib1g; {instead}',
    )
  ]


def check_installation(python_version=sys.version_info[:3]):
  """Exits with one line that names the cure if this installation cannot work.

  It makes the cheap checks only, of versions and files, and imports nothing heavy.
  """
  steps = (
    lambda: [check_python(python_version), check_platform()],
    check_pins,
    lambda: [check_libpython(), check_proxy()],
  )
  for step in steps:
    failed = [c for c in step() if not c.ok]
    if not failed:
      continue
    first, more = failed[0], f' (and {len(failed) - 1} more)' if failed[1:] else ''
    cure = first.cure
    if step is check_pins and _pins():
      cure = _pip_install(*(f'{c.name}=={_pins()[c.name]}' for c in failed))
    problem = f'{first.name}: {first.detail}{more}'
    print(f'r2d2_acme cannot run here: {problem}; cure: {cure}', file=sys.stderr)
    sys.exit(2)


def check_interpreter():
  """Exits with code 1 if this Python cannot make a virtual environment for r2d2_acme.

  If it is Python 3.10, it prints the reason and the cure.
  """
  if not check_python().ok:
    sys.exit(1)
  problem = check_libpython()
  if problem.ok or _find_libpython():
    problem = None
  try:
    import ensurepip  # noqa: F401 (Debian keeps it in a package of its own)
    import ssl  # noqa: F401 (missing where CPython was built without OpenSSL)
  except ImportError as error:
    problem = Check('venv', False, str(error), 'apt-get install python3.10-venv')
  if problem:
    name, _, detail, cure = problem
    print(f'{sys.executable}: {name}: {detail}; cure: {cure}')
    sys.exit(1)


def link_libpython():
  """Links this Python's libpython to where Reverb and courier look for it."""
  source, link = _find_libpython(), _link()
  if check_libpython().ok or not source:
    return
  os.makedirs(os.path.dirname(link), exist_ok=True)
  if os.path.lexists(link):
    os.remove(link)
  os.symlink(source, link)
  print(f'Linked {source} for Reverb and Launchpad.')


def run_checks():
  """Returns all checks. The slow ones run at the same time."""
  from concurrent import futures

  checks = [check_python(), check_platform()]
  if not all(c.ok for c in checks):
    return checks  # all other checks would fail for the same reason
  checks += [check_libpython(), check_proxy(), *check_pins()]
  with futures.ThreadPoolExecutor() as pool:
    imports, gpu, *rest = map(
      pool.submit, [check_imports, check_gpu, check_reverb, check_atari]
    )
    return checks + imports.result() + [f.result() for f in rest] + gpu.result()


def print_table(checks):
  """Prints one row per check, as plain text if rich is not installed."""
  rows = [
    ('OK' if c.ok else 'FAIL', c.name, c.detail + ('' if c.ok else f'\ncure: {c.cure}'))
    for c in checks
  ]
  try:
    from rich import console, table, text
  except ImportError:
    for status, name, detail in rows:
      print(f'{status:4}  {name:27}  ' + detail.replace('\n', '\n' + 35 * ' '))
    return
  # Piped output keeps each cure on one line, to be copied.
  terminal = console.Console(width=None if sys.stdout.isatty() else 1000)
  grid = table.Table(box=None, pad_edge=False, show_header=False)
  grid.add_column(no_wrap=True)
  grid.add_column(no_wrap=True)
  grid.add_column(overflow='fold')
  for status, name, detail in rows:
    color = 'green' if status == 'OK' else 'bold red'
    grid.add_row(text.Text(status, color), name, text.Text(detail))
  terminal.print(grid)


def main(argv=None):
  import argparse

  parser = argparse.ArgumentParser(
    'python -m r2d2_acme.system.doctor', description=__doc__
  )
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  parser.add_argument('--fix', action='store_true', help='link libpython, if needed')
  parser.add_argument(
    '--interpreter',
    action='store_true',
    help='check only whether this Python can make a virtual environment',
  )
  args = parser.parse_args(argv)
  if args.interpreter:
    return check_interpreter()
  if args.fix:
    return link_libpython()
  checks = run_checks()
  print_table(checks)
  failed = sum(not c.ok for c in checks)
  print(f'{failed} of {len(checks)} checks FAIL.' if failed else 'Everything works.')
  return 1 if failed else 0


def _run(code, *args, seconds=120, hide_gpu=True):
  """Runs code in a new interpreter; returns its output and its error's last line."""
  import signal
  import subprocess

  from r2d2_acme.system import cuda

  env = {**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3', **(cuda.HIDDEN if hide_gpu else {})}
  process = subprocess.Popen(
    [sys.executable, '-c', code, *args],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    env=env,
    text=True,
  )
  try:
    output, errors = process.communicate(timeout=seconds)
  except subprocess.TimeoutExpired:
    process.kill()
    return process.communicate()[0], f'no answer in {seconds} s'
  if process.returncode < 0:
    return output, 'killed by ' + signal.Signals(-process.returncode).name
  if process.returncode > 0:
    return output, (errors.strip().splitlines() or ['failed without a message'])[-1]
  return output, ''


def _cure(error, *distributions):
  """Returns the cure of an error that came from using these distributions."""
  if _LIBPYTHON in error:
    return check_libpython().cure
  if 'no answer' in error and not check_proxy().ok:
    return check_proxy().cure
  if 'SIGILL' in error:
    return "a CPU with AVX, which TensorFlow's wheels need: grep -c avx /proc/cpuinfo"
  pins = _pins()
  requirements = [f'{d}=={pins[d]}' if d in pins else d for d in distributions]
  return _pip_install('--force-reinstall', '--no-deps', *requirements)


def _pip_install(*arguments):
  """Returns the command that installs into the environment of this interpreter."""
  from importlib import metadata

  try:
    metadata.distribution('pip')
    command = f'{_python()} -m pip install'
  except metadata.PackageNotFoundError:  # uv made the environment
    command = f'uv pip install --python {_python()}'
  return ' '.join([command, *arguments])


def _python():
  """Returns the shorter of this interpreter's absolute and relative paths."""
  return min(sys.executable, os.path.relpath(sys.executable), key=len)


def _pins():
  """Returns the pins of the direct dependencies, from the installed metadata."""
  from importlib import metadata

  try:
    requirements = metadata.requires('r2d2-acme') or []
  except metadata.PackageNotFoundError:
    return {}
  return dict(r.split('==') for r in requirements if ';' not in r)


def _find_libpython():
  """Returns the path of this Python's own libpython, or ''."""
  import sysconfig

  folders = [os.path.join(sys.base_prefix, 'lib'), sysconfig.get_config_var('LIBDIR')]
  paths = [os.path.join(f, _LIBPYTHON) for f in folders if f]
  return next(filter(os.path.exists, paths), '')


def _link():
  """Returns the path where Reverb and courier look for libpython."""
  import sysconfig
  from importlib import util

  spec = util.find_spec('reverb')
  site = os.path.dirname(spec.origin) if spec and spec.origin else ''
  site = os.path.dirname(site) or sysconfig.get_path('platlib')
  return os.path.join(site, _RUNPATH, _LIBPYTHON)


def _read(path):
  try:
    with open(path) as f:
      return f.read()
  except OSError:
    return ''


if __name__ == '__main__':
  sys.exit(main())
