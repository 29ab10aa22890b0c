"""Calls of TensorFlow functions that cost little Python and leak no memory.

A function of tensors comes in, a callable on NumPy arrays goes out.
"""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.eager import context

_CALLERS_THREAD = -1  # in place of an inter-op pool's number


class Traced:
  """A function that was traced once and runs as a graph in a session of its own.

  TensorFlow 2.8's eager runtime leaks some 430 bytes in each function call
  (tensorflow#50765, fixed in 2.12). A session leaks nothing. Its calls are also faster,
  because they do not look at nested structures, captures or gradients.

  The graph works on copies of the `tf.Variable`s that the function uses. The copies
  start with the values that the variables have when the function is traced; `load` and
  `store` copy all values in and out.
  """

  def __init__(
    self,
    function: Callable[..., Sequence[tf.Tensor]],
    *signature: tf.TensorSpec,
    parallel: bool = False,
  ):
    """Traces the function, at once and for this signature only.

    Args:
      function: takes tensors and returns a list of tensors; may assign to variables.
      *signature: the shape and dtype of each input.
      parallel: whether operations run in parallel on TensorFlow's threads. Otherwise
        they run one after the other in the caller's thread, which is faster for small
        functions.
    """
    traced = tf.function(function, autograph=False).get_concrete_function(*signature)
    self._traced = traced  # keeps Python functions alive that the graph calls
    self._graph = tf.Graph()
    with self._graph.as_default():
      self._copies = _Copies(traced)
      self._nothing = tf.no_op()  # without it, a call may be empty, which is an error
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
    # It has the threads and devices that the process has for its eager operations.
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
    """Runs the graph on inputs with the signature's dtypes and shapes."""
    return self._call(*inputs)

  def load(self):
    """Copies the values of the variables to the graph's copies."""
    self._load(*(variable.numpy() for variable in self._copies.variables))

  def store(self):
    """Copies the values of the graph's copies, which calls may have changed, back."""
    for variable, value in zip(self._copies.variables, self._read(), strict=True):
      variable.assign(value)

  def make_reader(self, variables: Sequence[tf.Variable]):
    """Returns a function that returns the copies' values of some of the variables."""
    reads = {
      id(variable): read
      for variable, read in zip(self._copies.variables, self._copies.reads, strict=True)
    }
    firsts = map(_on_first_device, variables)
    return self._make_callable([], [reads[id(variable)] for variable in firsts])

  def _make_callable(self, feeds, fetches, targets=(), pool: int = _CALLERS_THREAD):
    options = config_pb2.CallableOptions(
      feed=[x.name for x in feeds],
      fetch=[x.name for x in fetches],
      target=[x.name for x in (*targets, self._nothing)],
    )
    options.run_options.inter_op_thread_pool = pool
    return self._session._make_callable_from_options(options)


class _Copies:
  """The graph's own variables, one for each variable that a traced function uses."""

  def __init__(self, traced):
    by_handle = {id(variable.handle): variable for variable in traced.graph.variables}
    self.variables: list[tf.Variable] = []
    self.internals, self.externals = [], []  # the function's placeholders, our tensors
    self.values, self.assignments, self.reads = [], [], []
    for external, internal in traced.graph.captures:
      self.internals.append(internal)
      if external.dtype == tf.resource:
        self.externals.append(self._add(by_handle[id(external)]))
      else:
        self.externals.append(tf.constant(external.numpy()))

  def _add(self, variable: tf.Variable) -> tf.Tensor:
    with tf.device(variable.device):
      handle = tf.raw_ops.VarHandleOp(
        dtype=variable.dtype, shape=variable.shape, shared_name=str(len(self.variables))
      )
    value = tf.compat.v1.placeholder(variable.dtype, variable.shape)
    self.variables.append(variable)
    self.values.append(value)
    self.assignments.append(tf.raw_ops.AssignVariableOp(resource=handle, value=value))
    self.reads.append(tf.raw_ops.ReadVariableOp(resource=handle, dtype=variable.dtype))
    return handle


def _on_first_device(variable: tf.Variable) -> tf.Variable:
  """Returns one of the variables that stand for this one on several devices."""
  is_distributed = isinstance(variable, tf.distribute.DistributedValues)
  return variable.values[0] if is_distributed else variable
