"""Tests of `r2d2_acme/calls.py`."""

import numpy as np
import pytest
import tensorflow as tf

from r2d2_acme import calls
from tests import helpers

_VECTOR = tf.TensorSpec([3], tf.float32)


def test_it_computes_what_the_function_does():
  function = calls.Traced(lambda x, y: [x + y, x * y], _VECTOR, _VECTOR)
  x, y = np.float32([[1, 2, 3], [4, 5, 6]])
  total, product = function(x, y)
  np.testing.assert_array_equal(total, [5, 7, 9])
  np.testing.assert_array_equal(product, [4, 10, 18])


def test_it_uses_variables_as_they_were_when_loaded():
  variable = tf.Variable([1.0, 2.0, 3.0])
  function = calls.Traced(lambda x: [x * variable], _VECTOR)
  x = np.float32([2, 2, 2])
  np.testing.assert_array_equal(function(x)[0], [2, 4, 6])
  variable.assign([0.0, 1.0, 0.0])
  np.testing.assert_array_equal(function(x)[0], [2, 4, 6])
  function.load()
  np.testing.assert_array_equal(function(x)[0], [0, 2, 0])


def test_what_it_assigns_reaches_the_variables_when_stored():
  total = tf.Variable([0.0, 0.0, 0.0])
  num_calls = tf.Variable(0, dtype=tf.int64)

  def add(x):
    total.assign_add(x)
    # In a branch, and without an output that depends on it.
    tf.cond(x[0] > 0, lambda: num_calls.assign_add(1), num_calls.read_value)
    return [x]

  function = calls.Traced(add, _VECTOR, parallel=True)
  for _ in range(3):
    function(np.float32([1, 2, 3]))
  function(np.float32([-1, 0, 0]))
  np.testing.assert_array_equal(total, [0, 0, 0])
  function.store()
  np.testing.assert_array_equal(total, [2, 6, 9])
  assert num_calls.numpy() == 3
  num_calls.assign(2**40)
  function.load()
  function(np.float32([1, 0, 0]))
  function.store()
  assert num_calls.numpy() == 2**40 + 1


def test_a_reader_reads_the_copies_that_it_was_made_for():
  a, b = tf.Variable([1.0, 1.0, 1.0]), tf.Variable([5.0, 5.0, 5.0])
  function = calls.Traced(lambda x: [a.assign_add(x), b.assign_sub(x)], _VECTOR)
  read = function.make_reader([b, a])
  (before,), x = read()[:1], np.float32([1, 2, 3])
  function(x)
  np.testing.assert_array_equal(read(), [[4, 3, 2], [2, 3, 4]])
  np.testing.assert_array_equal(before, [5, 5, 5])  # is a copy


def test_calls_leak_nothing():
  """TensorFlow 2.8's eager runtime keeps 430 bytes of each call of a function."""
  variable = tf.Variable([1.0, 2.0, 3.0])
  function = calls.Traced(lambda x: [x * variable], _VECTOR)
  x = np.float32([2, 2, 2])
  assert helpers.growth(lambda: function(x), warm_up=2_000, num_calls=20_000) < 500_000


def test_it_is_traced_at_once_and_only_once():
  traces = []
  function = calls.Traced(lambda x: traces.append(x) or [x], _VECTOR)
  assert len(traces) == 1
  for _ in range(3):
    function(np.zeros(3, np.float32))
  assert len(traces) == 1


def test_inputs_are_not_written_to_nor_looked_at_afterwards():
  """TensorFlow shares an array's memory if that is aligned to 64 bytes."""
  function = calls.Traced(lambda x: [tf.nn.relu(x)], _VECTOR)
  memory = -np.ones(32, np.float32)
  x = memory[-memory.ctypes.data % 64 // 4 :][:3]
  (output,) = function(x)
  np.testing.assert_array_equal(x, [-1, -1, -1])
  x[:] = 7
  np.testing.assert_array_equal(output, [0, 0, 0])


def test_another_dtype_is_refused():
  function = calls.Traced(lambda x: [x + 1], _VECTOR)
  with pytest.raises(tf.errors.OpError):
    function(np.zeros(3, np.float64))
