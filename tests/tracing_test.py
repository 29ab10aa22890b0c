"""Tests of `r2d2_acme/tracing.py`."""

import numpy as np
import pytest
import tensorflow as tf

from r2d2_acme import tracing

_VECTOR = tf.TensorSpec([3], tf.float32)


def test_it_computes_what_the_function_does():
  function = tracing.trace(lambda x, y: [x + y, x * y], _VECTOR, _VECTOR)
  x, y = np.float32([[1, 2, 3], [4, 5, 6]])
  for inputs in ([x, y], [tf.constant(x), tf.constant(y)], [x, tf.constant(y)]):
    total, product = function(*inputs)
    np.testing.assert_array_equal(total, [5, 7, 9])
    np.testing.assert_array_equal(product, [4, 10, 18])


def test_it_sees_variables_as_they_are_when_called():
  variable = tf.Variable([1.0, 2.0, 3.0])
  function = tracing.trace(lambda x: [x * variable], _VECTOR)
  x = np.float32([2, 2, 2])
  np.testing.assert_array_equal(function(x)[0], [2, 4, 6])
  variable.assign([0.0, 1.0, 0.0])
  np.testing.assert_array_equal(function(x)[0], [0, 2, 0])


def test_it_is_traced_at_once_and_only_once():
  traces = []
  function = tracing.trace(lambda x: traces.append(x) or [x], _VECTOR)
  assert len(traces) == 1
  for _ in range(3):
    function(np.zeros(3, np.float32))
  assert len(traces) == 1


def test_inputs_are_not_written_to_nor_looked_at_afterwards():
  """TensorFlow shares an array's memory if that is aligned to 64 bytes."""
  function = tracing.trace(lambda x: [tf.nn.relu(x)], _VECTOR)
  memory = -np.ones(32, np.float32)
  x = memory[-memory.ctypes.data % 64 // 4 :][:3]
  (output,) = function(x)
  np.testing.assert_array_equal(x, [-1, -1, -1])
  x[:] = 7
  np.testing.assert_array_equal(output, [0, 0, 0])


def test_another_dtype_is_refused():
  function = tracing.trace(lambda x: [x + 1], _VECTOR)
  with pytest.raises(tf.errors.OpError):
    function(np.zeros(3, np.float64))
