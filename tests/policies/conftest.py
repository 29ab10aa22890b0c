"""Runs, and their episodes, for all tests of the folder."""

import functools

import pytest

from tests.policies import runs


@pytest.fixture(scope='session')
def run_of(tmp_path_factory):
  """`run_of(environment)` is the workdir of a run with two checkpoints."""

  @functools.cache
  def run_of(environment):
    folder = tmp_path_factory.mktemp('run')
    return runs.save(folder, environment, number=2)

  return run_of
