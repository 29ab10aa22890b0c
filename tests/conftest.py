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
