"""Fixtures of several test modules."""

import gc
import signal

import pytest

import r2d2_acme  # noqa: F401 (sets what TensorFlow reads when it is imported)
from tests import helpers


def pytest_configure():
  """Takes signals as from a terminal, also under nohup: children inherit that."""
  signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def serve():
  """`serve(tables)` starts a Reverb server for the test, and returns its client."""
  servers = []

  def start(tables):
    server, client = helpers.start_server(tables)
    servers.append(server)
    return client

  yield start
  gc.collect()  # see `helpers.start_server`
  for server in servers:
    server.stop()
