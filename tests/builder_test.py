"""`builder.py`: what is decided once, and goes to all processes."""

import dataclasses
import pickle
import subprocess
import sys

import pytest
import tensorflow as tf

from r2d2_acme import runtime
from r2d2_acme.builder import R2D2Builder
from tests import helpers


def _dtypes(builder: R2D2Builder) -> list[tf.DType]:
  """Of the torso's products, for one observation and for many."""
  return [builder.make_network(n)._torso._dtype for n in (1, 16)]


def test_torso_dtype_is_decided_where_the_builder_is_made():
  """Not in a process that GPUs are hidden from, or on another machine."""
  builder = R2D2Builder(helpers.make_config(torso_dtype='auto'), helpers.make_spec())
  here = tf.bfloat16 if runtime.multiplies_bfloat16() else tf.float32
  assert builder.torso_dtype == here.name
  assert _dtypes(builder) == [tf.float32, here]
  # As if it came from a machine of the other kind.
  other = tf.float32 if runtime.multiplies_bfloat16() else tf.bfloat16
  builder._torso_dtype = other.name
  assert _dtypes(pickle.loads(pickle.dumps(builder))) == [tf.float32, other]


def test_float32_is_float32_on_any_machine():
  builder = R2D2Builder(helpers.make_config(torso_dtype='float32'), helpers.make_spec())
  assert builder.torso_dtype == 'float32'
  assert _dtypes(builder) == [tf.float32, tf.float32]


@pytest.fixture
def tensor_float_32():
  """Leaves TensorFloat-32 as it was."""
  before = tf.config.experimental.tensor_float_32_execution_enabled()
  yield
  tf.config.experimental.enable_tensor_float_32_execution(before)


@pytest.mark.parametrize('is_on', [True, False])
@pytest.mark.parametrize('torso_dtype', ['float32', 'auto'])
@pytest.mark.usefixtures('tensor_float_32')
def test_float32_switches_tensor_float_32_off(torso_dtype, is_on):
  """Also in a node, which is given a builder that another process has made."""
  tf.config.experimental.enable_tensor_float_32_execution(is_on)
  builder = R2D2Builder(
    helpers.make_config(torso_dtype=torso_dtype), helpers.make_spec()
  )
  builder = pickle.loads(pickle.dumps(builder))
  builder.make_network()
  is_on_after = tf.config.experimental.tensor_float_32_execution_enabled()
  assert is_on_after == (is_on and torso_dtype == 'auto')


@pytest.mark.parametrize('given', [None, 3])
def test_agent_has_a_thread_for_each_core(given):
  """Of those that a container may use; what the user has set stays."""
  config = dataclasses.asdict(helpers.make_config())
  code = (
    'import tensorflow as tf\n'
    'from r2d2_acme import agent, config, machine\n'
    'from tests import helpers\n'
    f'if {given}: tf.config.threading.set_intra_op_parallelism_threads({given})\n'
    f'agent.R2D2(helpers.make_spec(), config.R2D2Config(**{config}))\n'
    'print(tf.config.threading.get_intra_op_parallelism_threads(),\n'
    '  tf.config.threading.get_inter_op_parallelism_threads(), machine.num_cores())'
  )
  ended = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, check=True, text=True
  )
  intra, inter, num_cores = map(int, ended.stdout.split())
  assert (intra, inter) == (given or num_cores, num_cores)
