"""Imports go downwards from room to room; what must start anywhere imports little."""

import ast
import pathlib
import subprocess
import sys

import pytest

from tests import helpers

_PACKAGE = helpers.ROOT / 'r2d2_acme'

# Rooms, that is folders, and modules beside them. Each imports from lower layers only,
# that is from lines above its own. Rooms of one layer know nothing of each other.
_LAYERS = (
  {'system'},
  {'config', 'calls', 'seeds'},
  {'types', 'observations'},
  {'environments', 'replay', 'learning'},
  {'acting', 'workdir'},
  {'builder', 'tracking'},
  {'experiment'},
  {'results', 'policies'},
  {'running'},
  {'agent', 'program'},
  {'launch'},
)
_LAYER = {name: index for index, layer in enumerate(_LAYERS) for name in layer}


def _room(path: pathlib.Path) -> str:
  """The name in `_LAYERS` of where a file is."""
  first, *others = path.relative_to(helpers.ROOT).with_suffix('').parts
  return others[0] if first == 'r2d2_acme' else first


def _imported(path: pathlib.Path) -> list[list[str]]:
  """The parts of the names that a file imports from the package, wherever in it."""
  dotted = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      dotted |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path}: relative import'
      dotted |= {f'{node.module}.{alias.name}' for alias in node.names}
  parts = [name.split('.') for name in dotted]
  return [name[1:] for name in parts if name[0] == 'r2d2_acme' and len(name) > 1]


def _files() -> list[pathlib.Path]:
  files = {*_PACKAGE.rglob('*.py'), *helpers.LAUNCH.rglob('*.py')}
  return sorted(files - {_PACKAGE / '__init__.py'})


@pytest.mark.parametrize(
  'path', _files(), ids=lambda path: str(path.relative_to(helpers.ROOT))
)
def test_imports_go_downwards(path):
  room = _room(path)
  assert room in _LAYER, f'{room} needs a place in _LAYERS'
  upwards = {
    name[0]
    for name in _imported(path)
    if name[0] != room and _LAYER.get(name[0], len(_LAYERS)) >= _LAYER[room]
  }
  assert not upwards


@pytest.mark.parametrize(
  'room', sorted(p.name for p in _PACKAGE.iterdir() if p.is_dir() and p.name in _LAYER)
)
def test_modules_of_a_room_do_not_import_each_other_in_circles(room):
  imports = {
    path.stem: {
      name[1] for name in _imported(path) if name[0] == room and len(name) > 1
    }
    for path in (_PACKAGE / room).glob('*.py')
    if path.stem != '__init__'
  }
  left = dict(imports)
  while left:
    free = {
      name for name, others in left.items() if not others & (left.keys() - {name})
    }
    assert free, f'a circle among {sorted(left)}'
    left = {name: others for name, others in left.items() if name not in free}


def test_package_itself_imports_only_what_sets_the_environment():
  imported = sorted(_imported(_PACKAGE / '__init__.py'))
  assert imported == [['system', 'cuda'], ['system', 'runtime']]


def _run(code: str):
  subprocess.run([sys.executable, '-c', code], check=True, cwd='/')


def test_doctor_imports_nothing_that_may_be_broken():
  _run(
    'import sys; before = set(sys.modules); import r2d2_acme.system.doctor\n'
    'new = {name.split(".")[0] for name in set(sys.modules) - before}\n'
    'assert new - sys.stdlib_module_names == {"r2d2_acme"}, new'
  )


def test_no_part_needs_jax_or_gym():
  """They are not in the runtime lock; some of Acme's modules import them.

  The trackers' modules import what is an extra, too, and only the process beside a
  tracked program imports them.
  """
  names = [
    '.'.join(path.relative_to(helpers.ROOT).with_suffix('').parts) for path in _files()
  ]
  parts = [
    name
    for name in names
    if name.startswith('r2d2_acme.') and not name.endswith('_tracker')
  ]
  _run(
    'import importlib, sys\n'
    'sys.modules.update(dict.fromkeys(["jax", "jaxlib", "gym", "scipy", "rlax"]))\n'
    f'for name in {parts}: importlib.import_module(name)'
  )
