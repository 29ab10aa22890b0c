"""Small TensorFlow functions that are called often, without their Python."""

from collections.abc import Callable, Sequence

import tensorflow as tf


def trace(
  function: Callable[..., Sequence[tf.Tensor]], *signature: tf.TensorSpec
) -> Callable[..., Sequence[tf.Tensor]]:
  """Traces flat tensors to a list of new tensors, now and for this signature only.

  What it returns takes tensors or arrays, whose memory it may share, and runs the graph
  as the one operation that it is. A `tf.function` spends another 200 us a call on
  structures, captures and gradients, half as much as one environment's policy takes;
  here there are no gradients, and nobody checks shapes.
  """
  traced = tf.function(function, autograph=False).get_concrete_function(*signature)
  captured = traced.captured_inputs
  dtypes = [output.dtype for output in traced.outputs]

  def call(*inputs):
    return tf.raw_ops.StatefulPartitionedCall(
      args=[*inputs, *captured], Tout=dtypes, f=traced
    )

  return call
