"""TensorFlow functions that are called for days: little Python, and nothing leaks."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.eager import context

_CALLERS_THREAD = -1  # the inter-op "pool" that is no pool


class Traced:
  """A function that was traced once and runs as the graph of a session of its own.

  TensorFlow 2.8's eager runtime keeps some 430 bytes of each function call for ever
  (tensorflow#50765, mended in 2.12). A session keeps none, and spends less time on a
  call: no structures, captures or gradients are looked at.

  The graph works on copies of the `tf.Variable`s that the function uses. They are as
  the variables were when it was traced; `load` and `store` copy all of them.
  """

  def __init__(
    self,
    function: Callable[..., Sequence[tf.Tensor]],
    *signature: tf.TensorSpec,
    parallel: bool = False,
  ):
    """Traces the function, now and for this signature only.

    Args:
      function: from tensors to a list of tensors; may assign to variables.
      *signature: the shape and dtype of each input.
      parallel: whether operations run next to each other on TensorFlow's threads. If
        not, they run one after the other in the caller's thread, which is faster for
        small functions.
    """
    traced = tf.function(function, autograph=False).get_concrete_function(*signature)
    self._traced = traced  # owns what the graph calls of Python
    self._graph = tf.Graph()
    with self._graph.as_default():
      self._copies = _Copies(traced)
      self._nothing = tf.no_op()  # a call without it may have nothing to do: an error
      inputs = [tf.compat.v1.placeholder(x.dtype, x.shape) for x in signature]
      internals = [*traced.inputs[: len(signature)], *self._copies.internals]
      names = [output.name for output in traced.outputs]
      targets = [operation.name for operation in traced.graph.control_outputs]
      imported = tf.graph_util.import_graph_def(
        traced.graph.as_graph_def(),
        input_map={
          internal.name: outer
          for internal, outer in zip(
            internals, [*inputs, *self._copies.externals], strict=True
          )
        },
        return_elements=[*names, *targets],
        name='',
      )
    # With the threads and devices that the process has set for its eager operations.
    self._session = tf.compat.v1.Session(
      graph=self._graph, config=context.context().config
    )
    pool = 0 if parallel else _CALLERS_THREAD
    self._call = self._make_callable(
      inputs, imported[: len(names)], imported[len(names) :], pool
    )
    self._load = self._make_callable(self._copies.values, [], self._copies.assignments)
    self._read = self.make_reader(self._copies.variables)
    self.load()

  def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
    """Runs the graph; inputs must have the signature's dtypes and shapes."""
    return self._call(*inputs)

  def load(self):
    """Copies the variables' values in."""
    self._load(*(variable.numpy() for variable in self._copies.variables))

  def store(self):
    """Copies what calls have made of the values back to the variables."""
    for variable, value in zip(self._copies.variables, self._read(), strict=True):
      variable.assign(value)

  def make_reader(self, variables: Sequence[tf.Variable]):
    """Returns a function that reads the copies of some of the variables."""
    reads = {
      id(variable): read
      for variable, read in zip(self._copies.variables, self._copies.reads, strict=True)
    }
    return self._make_callable([], [reads[id(variable)] for variable in variables])

  def _make_callable(self, feeds, fetches, targets=(), pool: int = _CALLERS_THREAD):
    options = config_pb2.CallableOptions(
      feed=[x.name for x in feeds],
      fetch=[x.name for x in fetches],
      target=[x.name for x in (*targets, self._nothing)],
    )
    options.run_options.inter_op_thread_pool = pool
    return self._session._make_callable_from_options(options)


class _Copies:
  """The graph's own variables, one for each that a concrete function captures."""

  def __init__(self, traced):
    by_handle = {id(variable.handle): variable for variable in traced.graph.variables}
    self.variables: list[tf.Variable] = []
    self.internals, self.externals = [], []  # placeholders of the function, our tensors
    self.values, self.assignments, self.reads = [], [], []
    for external, internal in traced.graph.captures:
      self.internals.append(internal)
      if external.dtype == tf.resource:
        self.externals.append(self._add(by_handle[id(external)]))
      else:
        self.externals.append(tf.constant(external.numpy()))

  def _add(self, variable: tf.Variable) -> tf.Tensor:
    handle = tf.raw_ops.VarHandleOp(
      dtype=variable.dtype, shape=variable.shape, shared_name=str(len(self.variables))
    )
    value = tf.compat.v1.placeholder(variable.dtype, variable.shape)
    self.variables.append(variable)
    self.values.append(value)
    self.assignments.append(tf.raw_ops.AssignVariableOp(resource=handle, value=value))
    self.reads.append(tf.raw_ops.ReadVariableOp(resource=handle, dtype=variable.dtype))
    return handle
