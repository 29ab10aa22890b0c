"""`remote.py`: what the launcher makes of what hosts say; see `ray_test.py`, too."""

import json
import types

import pytest

pytest.importorskip('ray')

from r2d2_acme.running import hosting, remote  # noqa: E402

_VERSIONS = {'python': '3.10', 'numpy': '1.24.4'}


@pytest.fixture
def fleet():
  fleet = remote.Fleet('/runs/pong', _VERSIONS, on_stop=lambda: None)
  yield fleet
  fleet.close()


def _facts(**changes) -> hosting.Facts:
  facts = {'hostname': 'b', 'port': 15_001, 'versions': _VERSIONS, 'sees_workdir': True}
  return hosting.Facts(**{**facts, **changes})


def _report(**changes) -> hosting.Report:
  report = {
    **{'start': 1, 'pid': 7, 'code': None, 'end': '', 'is_announced': True},
    **{'has_beaten': True, 'seconds_since': 2.0, 'stops_program': False},
    **{'lines': [], 'num_lines': 0},
  }
  return hosting.Report(**{**report, **changes})


def test_host_with_the_same_packages_is_taken(fleet):
  assert fleet.find_problem('10.0.0.2', _facts()) == ''


@pytest.mark.parametrize(
  ('facts', 'problem'),
  [
    (_facts(versions={**_VERSIONS, 'numpy': '1.26.0'}), 'has numpy 1.26.0, but 1.24.4'),
    (_facts(versions={**_VERSIONS, 'numpy': None}), 'has no numpy, but 1.24.4 is'),
    (_facts(versions={**_VERSIONS, 'python': '3.11'}), 'has python 3.11, but 3.10 is'),
    (_facts(sees_workdir=False), 'does not see /runs/pong: give a --workdir'),
  ],
)
def test_host_that_cannot_run_a_node_is_named_with_the_reason(fleet, facts, problem):
  found = fleet.find_problem('10.0.0.2', facts)
  assert found.startswith(f'host 10.0.0.2 (b) {problem}')
  assert '\n' not in found


def test_short_silence_of_a_host_is_no_silence_of_its_node(monkeypatch):
  heartbeat = remote.Heartbeat()
  heartbeat.note(_report())
  assert 2 <= heartbeat.seconds_since < 3
  monkeypatch.setattr(remote, '_SILENCE', 0.0)
  heartbeat.excuse(-30)  # as if the report were older
  assert 32 <= heartbeat.seconds_since < 33
  heartbeat.start()
  assert not heartbeat.has_beaten


def _make_node(fleet, path) -> remote.RemoteWorker:
  output = types.SimpleNamespace(path=str(path))
  return remote.RemoteWorker(
    'actor/0', fleet, lambda: None, output, servers=(), stop_order=0
  )


def _note(node, monkeypatch, **changes) -> list[int]:
  """Lets a node take note of a report; returns from which lines on it asks again."""
  asked = []
  monkeypatch.setattr(node, '_watch', lambda: asked.append(node._num_lines))
  node.num_starts = 1
  node._note(_report(**changes))
  return asked


@pytest.mark.parametrize('path', ['/dev/full', '/nowhere/actor/0'])
def test_output_that_cannot_be_written_is_lost_and_the_watching_goes_on(
  fleet, monkeypatch, capfd, path
):
  node = _make_node(fleet, path)
  for num_lines in (2, 4):
    lines = ['a row', 'another one']
    asked = _note(node, monkeypatch, lines=lines, num_lines=num_lines)
    assert asked == [num_lines]
  assert (node.pid, node.heartbeat.has_beaten) == (7, True)
  lines = capfd.readouterr().err.splitlines()
  assert len(lines) == 1  # of at most one a minute
  assert lines[0].startswith('error: cannot write ')
  assert lines[0].endswith('what nodes print is lost until it can be written')


def test_any_text_of_a_node_is_written(fleet, monkeypatch, tmp_path):
  node = _make_node(fleet, tmp_path / 'output')
  asked = _note(node, monkeypatch, lines=['caf\u00e9 \udc80', 'b'], num_lines=2)
  assert asked == [2]
  assert (tmp_path / 'output').read_bytes() == 'caf\u00e9 \\udc80\nb\n'.encode()


def test_nodes_are_told_addresses_in_the_order_of_their_group(fleet):
  for name in ('actor/0', 'actor/1', 'learner/0'):
    node = remote.RemoteWorker(
      name, fleet, lambda: None, None, servers=(), stop_order=0
    )
    node.host, node.address = '10.0.0.3', f'10.0.0.3:{15_000 + len(fleet.nodes)}'
    fleet.nodes.append(node)
  environment = fleet.environment()
  assert json.loads(environment['CLUSTER_SPEC'])['cluster'] == {
    'actor': ['10.0.0.3:15000', '10.0.0.3:15001'],
    'learner': ['10.0.0.3:15002'],
  }
  assert '10.0.0.3' in environment['no_grpc_proxy'].split(',')
