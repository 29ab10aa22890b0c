"""Fixtures of several test modules."""

import gc
import signal

import pytest

import r2d2_acme  # noqa: F401 (sets what TensorFlow reads when it is imported)
from tests import helpers
from tests.starts import home, refuse, start, starter  # noqa: F401 (fixtures)


def pytest_configure():
  """Takes signals as from a terminal, as what tests start then does.

  Under nohup or in a script's background they would be ignored.
  """
  signal.signal(signal.SIGINT, signal.default_int_handler)
  signal.signal(signal.SIGHUP, signal.SIG_DFL)


# Modules that take longest. They come first, so that no process is left with one alone.
_LONGEST = (
  'running/launching_test.py',
  'running/ray_test.py',
  'learning/learner_test.py',
  'program_test.py',
  'running/progress_test.py',
  'agent_test.py',
  'replay/adder_test.py',
  'launch/studies/memory_tasks_test.py',
  'replay/shards_test.py',
  'learning/devices_test.py',
)


def pytest_collection_modifyitems(items: list[pytest.Item]):
  """Sorts the modules: with `--no-loadscope-reorder` they start in this order."""
  ranks = {helpers.ROOT / 'tests' / path: i for i, path in enumerate(_LONGEST)}
  items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_collection_finish():
  """Leaves what is imported out of garbage collections: they took 8 % of all time."""
  gc.collect()
  gc.freeze()


@pytest.fixture
def serve():
  """`serve(tables)` starts a Reverb server for the test, and returns its client."""
  servers = []

  def serve_tables(tables):
    server, client = helpers.start_server(tables)
    servers.append(server)
    return client

  yield serve_tables
  gc.collect()  # see `helpers.start_server`
  for server in servers:
    server.stop()
