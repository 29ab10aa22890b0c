"""`ray_cluster.py` without a cluster; see `ray_test.py` and `ray_local_test.py`."""

import itertools

import pytest

pytest.importorskip('ray')

from r2d2_acme.running import clusters, ray_cluster, remote  # noqa: E402
from r2d2_acme.system import stopping  # noqa: E402

_NAMES = map('sources_test_{}'.format, itertools.count())  # none was imported before


@pytest.fixture
def folders(tmp_path, monkeypatch):
  """Two folders that Python imports from."""
  found = [tmp_path / 'a', tmp_path / 'b']
  for folder in found:
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
  return found


def test_source_of_a_module_is_its_file(folders):
  name = next(_NAMES)
  path = folders[0] / f'{name}.py'
  path.touch()
  assert ray_cluster._sources(name) == [str(path)]


def test_source_of_a_package_is_its_folder(folders):
  path = folders[0] / next(_NAMES)
  path.mkdir()
  (path / '__init__.py').touch()
  assert ray_cluster._sources(f'{path.name}.games') == [str(path)]


def test_sources_of_a_namespace_package_are_all_its_folders(folders):
  name = next(_NAMES)
  for folder in folders:
    (folder / name).mkdir()
  found = ray_cluster._sources(f'{name}.games')
  assert sorted(found) == [str(folder / name) for folder in folders]


@pytest.mark.parametrize('name', ['numpy', 'json', 'sys', 'no_such_module'])
def test_what_is_installed_or_absent_has_no_source(name):
  assert ray_cluster._sources(name) == []


def test_amount_that_ray_refuses_is_one_line():
  def refuse(number):
    raise ValueError('TPU was set to 3\nwhich is not supported')

  fleet = remote.Fleet(None, {}, on_stop=lambda: None)
  fleet.nodes.append(
    remote.RemoteWorker('actor/0', fleet, refuse, None, servers=(), stop_order=0)
  )
  try:
    with pytest.raises(clusters.NoCluster) as refusal:
      ray_cluster._place(fleet, stopping.Requests())
  finally:
    fleet.close()
  assert str(refusal.value) == (
    'Ray refuses what actor/0 needs: TPU was set to 3 which is not supported'
  )
