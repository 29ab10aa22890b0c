"""Tests of bsuite's memory experiments."""

import itertools
import sys
import unittest

import numpy as np
import pytest
from bsuite import sweep
from dm_env import test_utils

from r2d2_acme.environments import make_bsuite


class MemoryLenContractTest(test_utils.EnvironmentTestMixin, unittest.TestCase):
  def make_object_under_test(self):
    return make_bsuite('memory_len/2')

  def make_action_sequence(self):
    return itertools.repeat(np.int32(1), 20)


class MemorySizeContractTest(test_utils.EnvironmentTestMixin, unittest.TestCase):
  def make_object_under_test(self):
    return make_bsuite('memory_size/3')

  def make_action_sequence(self):
    return itertools.repeat(np.int32(0), 20)


def _play(env, policy):
  timesteps = [env.reset()]
  while not timesteps[-1].last():
    timesteps.append(env.step(policy([t.observation for t in timesteps])))
  return timesteps


def _remember(observations):
  """The bits come first, as ±1, and the index of the one to recall before the end."""
  query = int(observations[-1][1])
  return int(observations[0][2 + query] > 0)


# The number counts the settings of bsuite's sweep.
@pytest.mark.parametrize(
  ('number', 'length'), [(0, 1), (9, 10), (10, 12), (15, 30), (16, 40), (22, 100)]
)
def test_memory_len_is_numbered_as_in_bsuite(number, length):
  assert sweep.SETTINGS[f'memory_len/{number}'] == {'memory_length': length}
  # bsuite shows the bit at the first two of length + 1 decisions.
  timesteps = _play(make_bsuite(f'memory_len/{number}'), _remember)
  assert len(timesteps) - 1 == length + 1


def test_memory_size_is_numbered_as_in_bsuite():
  # Time, index of the bit to recall, and 4 bits.
  assert make_bsuite('memory_size/3').observation_spec().shape == (2 + 4,)


@pytest.mark.parametrize('bsuite_id', ['memory_len/15', 'memory_size/3'])
def test_memory_earns_the_maximal_return(bsuite_id):
  env = make_bsuite(bsuite_id, seed=1)
  for _ in range(50):
    timesteps = _play(env, _remember)
    assert sum(t.reward for t in timesteps[1:]) == env.max_return == 1.0


def test_without_memory_the_return_is_chance():
  env = make_bsuite('memory_len/0', seed=1)
  returns = [sum(t.reward for t in _play(env, lambda _: 1)[1:]) for _ in range(4_000)]
  # The standard deviation is 1, so three standard errors are 0.047.
  assert np.mean(returns) == pytest.approx(env.chance_return, abs=0.047)
  assert env.chance_return == 0


def test_observations_are_flat_float32_of_their_own():
  env = make_bsuite('memory_len/2')
  timesteps = _play(env, lambda _: 0)
  assert env.observation_spec().shape == (3,)
  for timestep in timesteps:
    env.observation_spec().validate(timestep.observation)
  # Later observations show the later time; earlier ones do not change.
  times = [float(t.observation[0]) for t in timesteps[1:]]
  assert times == sorted(set(times), reverse=True)


def test_rewards_and_discounts_are_float32():
  timesteps = _play(make_bsuite('memory_len/2'), lambda _: 0)
  assert {t.reward.dtype for t in timesteps[1:]} == {np.dtype(np.float32)}
  assert [float(t.discount) for t in timesteps[1:]] == [1, 1, 1, 0]
  assert {t.discount.dtype for t in timesteps[1:]} == {np.dtype(np.float32)}


def test_seeds_decide_the_bits():
  def bits(seed):
    env = make_bsuite('memory_size/3', seed=seed)
    return [env.reset().observation.tolist() for _ in range(10)]

  assert bits(1) == bits(1)
  assert bits(1) != bits(2)


def test_nothing_is_printed(capfd):
  make_bsuite('memory_len/2').reset()
  assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize(
  'bsuite_id', ['', 'memory_len', 'memory_len/23', 'memory_len/x', 'catch/0', 'a/b/c']
)
def test_unknown_experiment_names_those_there_are(bsuite_id):
  with pytest.raises(ValueError) as error:
    make_bsuite(bsuite_id)
  assert repr(bsuite_id) in str(error.value)
  assert 'memory_len/0 … 22 and memory_size/0 … 16' in str(error.value)
  assert '\n' not in str(error.value)


def test_missing_package_names_the_cure(monkeypatch):
  monkeypatch.setitem(sys.modules, 'bsuite', None)
  with pytest.raises(ValueError) as error:
    make_bsuite('memory_len/15')
  assert str(error.value).endswith('pip install bsuite==0.3.6')
  assert '\n' not in str(error.value)
