"""`builder.py`: what is decided once, and goes to all processes."""

import dataclasses
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from r2d2_acme.builder import R2D2Builder
from r2d2_acme.system import runtime
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


def test_optimizer_fields_count_after_a_restore(tmp_path):
  """The optimizer comes from the checkpoint; what the config says of it does not."""

  def make_learner(**fields):
    config = helpers.make_config(**fields)
    return R2D2Builder(config, helpers.make_spec(image=False)).make_learner(iter([]))

  def first_step(learner) -> np.ndarray:
    """Of the first parameter, with the same gradient at each."""
    variables = learner.state['network'].trainable_variables
    before = variables[0].numpy()
    learner.state['optimizer'].apply([tf.ones_like(v) for v in variables], variables)
    return np.abs(variables[0].numpy() - before)

  saved = make_learner(learning_rate=1e-3, adam_epsilon=1e-6)
  np.testing.assert_allclose(first_step(saved), 1e-3, rtol=1e-3)
  prefix = tf.train.Checkpoint(**saved.state).write(str(tmp_path / 'ckpt'))
  for fields, expected in (
    (dict(learning_rate=1e-2, adam_epsilon=1e-6), 1e-2),
    (dict(learning_rate=1e-3, adam_epsilon=1.0), 0.5e-3),
  ):
    learner = make_learner(**fields)
    tf.train.Checkpoint(**learner.state).read(prefix).assert_consumed()
    np.testing.assert_allclose(first_step(learner), expected, rtol=1e-3)


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
    'from r2d2_acme import agent, config; from r2d2_acme.system import machine\n'
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
