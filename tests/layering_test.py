"""Imports go downwards, and what must start anywhere imports little."""

import ast
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parent.parent
_PACKAGE = _ROOT / 'r2d2_acme'

# Each imports from lower layers only, that is from lines above its own.
_LAYERS = (
  {'machine', 'processes'},
  {
    'atari_scores',
    'config',
    'doctor',
    'event_files',
    'layouts',
    'locking',
    'runtime',
    'sittings',
    'tracing',
    'types',
    'workdir',
  },
  {'description'},
  {
    'diagnostics',
    'environments',
    'loggers',
    'losses',
    'lstm',
    'plotting',
    'stopping',
    'video',
  },
  {'launching'},
  {'networks'},
  {'replay'},
  {'adder', 'dataset'},
  {'actor', 'learner'},
  {'builder', 'checkpointing'},
  {'evaluation'},
  {'agent', 'experiment', 'program'},
  {'launch'},
)
_LAYER = {name: index for index, layer in enumerate(_LAYERS) for name in layer}


def _module(path: pathlib.Path) -> str:
  """The name in `_LAYERS` of a file's module."""
  first, *others = path.relative_to(_ROOT).with_suffix('').parts
  return others[0] if first == 'r2d2_acme' else first


def _imports(path: pathlib.Path) -> set[str]:
  """Names in `_LAYERS` of what a file imports, wherever in it."""
  dotted = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      dotted |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path}: relative import'
      dotted |= {f'{node.module}.{alias.name}' for alias in node.names}
  parts = [name.split('.') for name in dotted]
  return {name[1] for name in parts if name[0] == 'r2d2_acme' and len(name) > 1}


def _files() -> list[pathlib.Path]:
  files = {*_PACKAGE.rglob('*.py'), *_ROOT.glob('launch/**/*.py')}
  return sorted(files - {_PACKAGE / '__init__.py'})


@pytest.mark.parametrize(
  'path', _files(), ids=lambda path: str(path.relative_to(_ROOT))
)
def test_imports_go_downwards(path):
  module = _module(path)
  assert module in _LAYER, f'{module} needs a place in _LAYERS'
  upwards = {
    name
    for name in _imports(path) - {module}
    if name not in _LAYER or _LAYER[name] >= _LAYER[module]
  }
  assert not upwards


def test_package_itself_imports_only_what_sets_the_environment():
  assert _imports(_PACKAGE / '__init__.py') == {'runtime'}


def _run(code: str):
  subprocess.run([sys.executable, '-c', code], check=True, cwd='/')


def test_doctor_imports_nothing_that_may_be_broken():
  _run(
    'import sys; before = set(sys.modules); import r2d2_acme.doctor\n'
    'new = {name.split(".")[0] for name in set(sys.modules) - before}\n'
    'assert new - sys.stdlib_module_names == {"r2d2_acme"}, new'
  )


def test_no_part_needs_jax_or_gym():
  """They are not in the runtime lock; some of Acme's modules import them."""
  names = ['.'.join(path.relative_to(_ROOT).with_suffix('').parts) for path in _files()]
  parts = [name for name in names if name.startswith('r2d2_acme.')]
  _run(
    'import importlib, sys\n'
    'sys.modules.update(dict.fromkeys(["jax", "jaxlib", "gym", "scipy", "rlax"]))\n'
    f'for name in {parts}: importlib.import_module(name)'
  )
