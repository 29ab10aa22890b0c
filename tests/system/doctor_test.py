"""The doctor finds the faults that occur in practice, survives them and names cures."""

import ast
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

from r2d2_acme.system import cuda, doctor, machine
from tests import helpers

_ROOT = helpers.ROOT


@pytest.fixture
def wrong_versions(monkeypatch):
  """Pretends that other versions of numpy and protobuf are installed."""
  real, wrong = doctor.installed_version, {'numpy': '2.2.6', 'protobuf': '6.1.0'}
  monkeypatch.setattr(
    doctor, 'installed_version', lambda name: wrong.get(name) or real(name)
  )


@pytest.fixture
def libpython(monkeypatch, tmp_path):
  """Pretends that this Python is uv's: libpython exists, but the loader misses it."""
  library = tmp_path / 'lib' / 'libpython3.10.so.1.0'
  library.parent.mkdir()
  library.write_text('the library')
  link = tmp_path / 'site-packages' / 'folder' / library.name
  monkeypatch.setattr(doctor, '_read', lambda path: '')
  monkeypatch.setattr(doctor, '_LOADER_FOLDERS', ())
  monkeypatch.setattr(doctor, '_find_libpython', lambda: str(library))
  monkeypatch.setattr(doctor, '_link', lambda: str(link))
  monkeypatch.delenv('LD_LIBRARY_PATH', raising=False)
  return library, link


def _exit_line(capsys, **arguments):
  with pytest.raises(SystemExit) as error:
    doctor.check_installation(**arguments)
  assert error.value.code == 2
  line = capsys.readouterr().err
  assert line.count('\n') == 1
  return line


def test_this_installation_works():
  result = subprocess.run(
    [sys.executable, '-m', 'r2d2_acme.system.doctor'],
    env={**os.environ, **cuda.HIDDEN},  # it may lack libraries
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stdout + result.stderr
  *rows, verdict = result.stdout.splitlines()
  assert verdict == 'Everything works.'
  assert all(row.startswith('OK ') for row in rows)
  for name in [
    'CPython 3.10',
    'Linux x86-64',
    'libpython',
    'r2d2-acme',
    'tensorflow',
    'numpy',
    'import reverb',
    'import courier',
    'import cv2',
    'Reverb gives back an item',
    'Atari plays Pong',
    'GPU',
  ]:
    assert any(re.match(rf'OK +{re.escape(name)}', row) for row in rows), name


def test_installation_check_passes_and_imports_nothing_heavy():
  code = (
    'import sys; from r2d2_acme.system import doctor; doctor.check_installation();'
    'print({m.split(".")[0] for m in sys.modules} - set(sys.stdlib_module_names))'
  )
  output = subprocess.check_output([sys.executable, '-c', code], text=True)
  assert not {'numpy', 'rich', 'tensorflow', 'reverb'} & ast.literal_eval(output)


def test_wrong_version_is_a_failed_row_with_its_cure(
  wrong_versions, monkeypatch, capsys
):
  for slow in ['check_imports', 'check_reverb', 'check_atari']:
    monkeypatch.setattr(doctor, slow, list)
  monkeypatch.setattr(doctor, 'run_checks', doctor.check_pins)
  assert doctor.main([]) == 1
  output = capsys.readouterr().out
  assert re.search('FAIL +numpy +2.2.6 is installed, 1.24.4 is needed', output)
  assert re.search('cure: .*pip install numpy==1.24.4', output)
  assert re.search('OK +tensorflow', output)
  assert '2 of ' in output


def test_undefined_symbol_is_a_failed_row_and_not_a_stack_trace(tmp_path, monkeypatch):
  (tmp_path / 'wheel.py').write_text(
    'raise ImportError("courier.so:\\nundefined symbol: _ZN6google8protobuf")'
  )
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  first, broken, last = doctor.check_imports(
    {'json': 'json', 'wheel': 'dm-launchpad', 'math': 'math'}
  )
  assert first.ok and last.ok and not broken.ok
  assert broken.name == 'import wheel'
  assert broken.detail == 'ImportError: undefined symbol: _ZN6google8protobuf'
  assert 'pip install --force-reinstall' in broken.cure
  assert 'dm-launchpad==0.5.0' in broken.cure


@pytest.mark.parametrize('death', ['SIGSEGV', 'SIGILL', 'SIGABRT'])
def test_import_that_crashes_does_not_take_the_others_along(
  death, tmp_path, monkeypatch
):
  (tmp_path / 'wheel.py').write_text(
    f'import os, signal; os.kill(os.getpid(), signal.{death})'
  )
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  checks = doctor.check_imports({'json': '', 'wheel': 'dm-reverb', 'math': ''})
  assert [c.ok for c in checks] == [True, False, True]
  assert checks[1].detail == f'killed by {death}'
  assert ('AVX' in checks[1].cure) == (death == 'SIGILL')


def test_replay_that_never_answers_is_a_failed_row():
  check = doctor.check_reverb(code='import time; time.sleep(60)', seconds=1)
  assert not check.ok
  assert check.detail == 'no answer in 1 s'


def test_game_that_is_missing_is_a_failed_row_with_the_last_line_of_its_error():
  check = doctor.check_atari(code='raise RuntimeError("no ROM for Pong")')
  assert not check.ok
  assert check.detail == 'RuntimeError: no ROM for Pong'
  assert 'ale-py==' in check.cure


@pytest.mark.skipif(machine.has_gpu(), reason='there is a GPU, and perhaps its driver')
def test_gpu_without_its_driver_is_a_failed_row(monkeypatch):
  monkeypatch.setattr(machine, 'has_gpu', lambda: True)
  monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
  (check,) = doctor.check_gpu()
  assert not check.ok
  assert 'libcuda.so.1' in check.detail
  assert 'docker run --gpus all' in check.cure
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')
  (check,) = doctor.check_gpu()
  assert check.ok


@pytest.mark.parametrize('version', [(3, 8, 18), (3, 9, 18), (3, 11, 7), (3, 13, 0)])
def test_wrong_python_exits_with_one_line(version, capsys):
  line = _exit_line(capsys, python_version=version)
  assert 'cpython ' + '.'.join(map(str, version)) in line
  assert 'cure: make install' in line


def _modules_of_doctor():
  """Returns the files that `python -m r2d2_acme.system.doctor` loads at its start."""
  program = (
    'import sys, r2d2_acme.system.doctor; '
    'print(*(m.__file__ for n, m in sys.modules.items() if n.startswith("r2d2_acme")))'
  )
  result = subprocess.run([sys.executable, '-c', program], capture_output=True)
  return [pathlib.Path(os.fsdecode(path)) for path in result.stdout.split()]


def test_doctor_parses_on_older_pythons():
  paths = _modules_of_doctor()
  assert pathlib.Path(doctor.__file__) in paths
  for path in paths:
    ast.parse(path.read_text(), feature_version=(3, 7))


_OTHER_PYTHONS = sorted(
  path
  for path in pathlib.Path.home().glob('.pyenv/versions/3.*/bin/python')
  if re.search(r'/3\.(7|8|9|11|12|13)\.', str(path))
)


@pytest.mark.parametrize('python', _OTHER_PYTHONS or [None], ids=str)
def test_doctor_speaks_on_other_pythons(python):
  if python is None:
    pytest.skip('there is no other Python here')
  result = subprocess.run(
    [python, '-m', 'r2d2_acme.system.doctor', '--interpreter'],
    capture_output=True,
    text=True,
    cwd=pathlib.Path(doctor.__file__).parents[2],
  )
  assert (result.returncode, result.stderr) == (1, '')


def test_wrong_versions_exit_with_one_command_that_cures_all(wrong_versions, capsys):
  line = _exit_line(capsys)
  assert '(and 1 more)' in line
  assert line.endswith('pip install protobuf==3.19.6 numpy==1.24.4\n')


def test_missing_package_exits_with_one_line(monkeypatch, capsys):
  def not_installed(name):
    raise importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(importlib.metadata, 'distributions', lambda **_: iter(()))
  monkeypatch.setattr(importlib.metadata, 'requires', not_installed)
  assert 'r2d2-acme: not installed; cure: make install' in _exit_line(capsys)


def test_packages_that_ray_brings_along_are_not_taken_for_installed_ones():
  pytest.importorskip('ray')
  code = 'import ray; from r2d2_acme.system import doctor; doctor.check_installation()'
  subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize(
  'system, machine, libc',
  [
    ('Darwin', 'arm64', ('', '')),
    ('Windows', 'AMD64', ('', '')),
    ('Linux', 'aarch64', ('glibc', '2.36')),
    ('Linux', 'x86_64', ('musl', '1.2')),
    ('Linux', 'x86_64', ('glibc', '2.27')),
  ],
)
def test_platform_without_wheels_fails(system, machine, libc):
  check = doctor.check_platform(system, machine, libc)
  assert not check.ok
  assert check.cure.startswith('docker run')


def test_libpython_that_reverb_cannot_find_is_linked_by_fix(libpython):
  library, link = libpython
  check = doctor.check_libpython()
  assert not check.ok
  assert check.cure.endswith('-m r2d2_acme.system.doctor --fix')
  assert doctor.main(['--fix']) is None
  assert doctor.check_libpython().ok
  assert link.resolve() == library


def test_fix_replaces_a_link_that_leads_nowhere(libpython):
  library, link = libpython
  link.parent.mkdir(parents=True)
  link.symlink_to('/a/python/since/removed')
  assert not doctor.check_libpython().ok
  doctor.link_libpython()
  assert link.resolve() == library


def test_python_without_libpython_is_told_where_to_get_it(libpython, monkeypatch):
  monkeypatch.setattr(doctor, '_find_libpython', lambda: '')
  doctor.link_libpython()
  check = doctor.check_libpython()
  assert not check.ok
  assert 'libpython3.10' in check.cure


@pytest.mark.parametrize(
  'package, library', [('reverb', 'libpybind.so'), ('courier', 'python/py_client.so')]
)
def test_link_is_in_the_search_path_of_the_compiled_libraries(package, library):
  folder = pathlib.Path(importlib.util.find_spec(package).origin).parent
  depth = '/..' * (library.count('/') + 1)
  search_path = f'$ORIGIN{depth}/{doctor._RUNPATH}'.encode()
  assert search_path in (folder / library).read_bytes()
  assert os.path.samefile(folder.parent, doctor._link().split('/_solib')[0])


def test_proxy_that_would_swallow_local_connections_fails(monkeypatch):
  for name in ['grpc_proxy', 'https_proxy', 'no_grpc_proxy', 'no_proxy']:
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('http_proxy', 'http://proxy:3128')
  assert not doctor.check_proxy().ok
  monkeypatch.setenv('no_proxy', '10.0.0.1,localhost')
  assert doctor.check_proxy().ok


def test_table_is_plain_text_where_rich_is_missing(monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, 'rich', None)
  doctor.print_table([doctor.Check('rich', False, 'not installed', 'make install')])
  rows = capsys.readouterr().out.splitlines()
  assert [row.split() for row in rows] == [
    ['FAIL', 'rich', 'not', 'installed'],
    ['cure:', 'make', 'install'],
  ]
