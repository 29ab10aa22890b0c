"""The inputs of `pip install` and of `make install` agree."""

import re
import runpy
import shutil
import subprocess
import sys

import pytest
import setuptools

from tests import helpers

_ROOT = helpers.ROOT
_PIN = re.compile(r'([A-Za-z0-9_.-]+)==([0-9][A-Za-z0-9.]*)')


def _setup_arguments(monkeypatch):
  """Returns the arguments that setup.py passes to setuptools."""
  arguments = {}
  monkeypatch.setattr(setuptools, 'setup', lambda **kwargs: arguments.update(kwargs))
  monkeypatch.chdir(_ROOT)
  runpy.run_path('setup.py')
  return arguments


def _pins(requirements):
  """Returns versions by name; fails on anything that is not an exact pin."""
  matches = {r: _PIN.fullmatch(r) for r in requirements}
  assert all(matches.values()), [r for r, match in matches.items() if not match]
  return {re.sub('[-_.]+', '-', m[1]).lower(): m[2] for m in matches.values()}


def _lock(name):
  lines = (_ROOT / name).read_text().splitlines()
  return _pins(line for line in lines if not line.startswith(('#', '-r ')))


def test_runtime_lock_holds_every_direct_dependency_at_its_version(monkeypatch):
  direct = _pins(_setup_arguments(monkeypatch)['install_requires'])
  assert direct.items() <= _lock('requirements.txt').items()


def test_dev_lock_holds_every_extra_at_its_version(monkeypatch):
  extras = _setup_arguments(monkeypatch)['extras_require']
  for name in ('test', 'bench'):
    assert _pins(extras[name]).items() <= _lock('requirements-dev.txt').items()


def test_gpu_lock_is_the_extra(monkeypatch):
  """The wheels need nothing but each other."""
  extras = _setup_arguments(monkeypatch)['extras_require']
  assert _pins(extras['gpu']) == _lock('requirements-gpu.txt')


@pytest.mark.parametrize('name', ['envs', 'ray', 'wandb', 'mlflow'])
def test_lock_of_an_extra_holds_it(monkeypatch, name):
  extras = _setup_arguments(monkeypatch)['extras_require']
  assert _pins(extras[name]).items() <= _lock(f'requirements-{name}.txt').items()


@pytest.mark.parametrize(
  'name', sorted(path.name for path in _ROOT.glob('requirements-*.txt'))
)
def test_lock_adds_to_the_runtime_lock_and_repeats_nothing(name):
  text = (_ROOT / name).read_text()
  assert text.splitlines()[1] == '-r requirements.txt'
  assert not _lock(name).keys() & _lock('requirements.txt').keys()


def test_runtime_lock_has_no_jax():
  """If it is installed, Reverb imports it in every worker."""
  assert not {'jax', 'jaxlib', 'gym'} & _lock('requirements.txt').keys()


def test_package_is_built_with_the_locked_setuptools():
  version = _lock('requirements.txt')['setuptools']
  pyproject = (_ROOT / 'pyproject.toml').read_text()
  assert f'requires = ["setuptools=={version}"]' in pyproject


def test_every_module_is_installed(monkeypatch):
  packages = _setup_arguments(monkeypatch)['packages']
  folders = {path.parent for path in (_ROOT / 'r2d2_acme').rglob('*.py')}
  assert {'.'.join(f.relative_to(_ROOT).parts) for f in folders} == set(packages)
  assert (_ROOT / 'r2d2_acme' / 'py.typed').exists()


@pytest.mark.parametrize('version', [(3, 8, 18), (3, 9, 18), (3, 11, 7), (3, 13, 0)])
def test_setup_on_a_wrong_python_is_one_line(version, monkeypatch):
  monkeypatch.setattr(sys, 'version_info', version)
  with pytest.raises(SystemExit, match='CPython 3.10.*cure') as error:
    _setup_arguments(monkeypatch)
  assert '\n' not in error.value.code


@pytest.mark.skipif(not shutil.which('make'), reason='needs make')
def test_make_without_a_usable_python_names_the_cure_in_one_line(tmp_path):
  shutil.copy(_ROOT / 'Makefile', tmp_path)
  for name in ['requirements.txt', 'setup.py', 'pyproject.toml']:
    (tmp_path / name).touch()
  result = subprocess.run(
    ['make', 'install', 'PYTHON=false'], cwd=tmp_path, capture_output=True, text=True
  )
  ours, makes = result.stderr.splitlines()
  assert result.returncode != 0
  assert 'cure: uv python install 3.10' in ours
  assert makes.startswith('make')
  assert not (tmp_path / '.venv').exists()


@pytest.mark.skipif(not shutil.which('make'), reason='needs make')
def test_make_alone_lists_the_targets():
  output = subprocess.check_output(['make'], cwd=_ROOT, text=True)
  for target in 'install test train check format doctor lock clean'.split():
    assert re.search(rf'make {target}\t\w+', output)
