"""A trained policy as a TensorFlow SavedModel, which needs nothing but TensorFlow.

In comes a workdir, out goes a folder.
"""

import os
import re
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import sonnet as snt
import tensorflow as tf
import tree
from acme import specs

from r2d2_acme import experiment
from r2d2_acme.builder import R2D2Builder
from r2d2_acme.experiment import BadInput
from r2d2_acme.observations import kinds
from r2d2_acme.observations.base import Kind
from r2d2_acme.types import Observation
from r2d2_acme.workdir import (
  checkpoint_files,
  checkpointing,
  description,
  json_files,
  paths,
)


def export(
  workdir: str, out: str, checkpoint: str = checkpointing.NEWEST
) -> dict[str, Any]:
  """Writes the greedy policy of a checkpoint as a SavedModel.

  See `make_module` for its functions. `assets/config.json` is the run's description,
  and `assets/scores.json` has what this function returns.

  Args:
    workdir: of the run, which may be going on.
    out: the folder to make; it may exist if it is empty.
    checkpoint: see `checkpointing.choose`.

  Returns:
    The name of the `checkpoint`, its `counts`, and the `returns` of the evaluator's
    last episodes at that time with their `mean_return`, None without any.

  Raises:
    BadInput: there is no such run, or there is something in the folder.
    CheckpointError: there is no such checkpoint, or the folder cannot be written.
  """
  if os.path.lexists(out) and (not os.path.isdir(out) or os.listdir(out)):
    raise BadInput(f'{paths.shown(out)} exists: give another --out')
  run = experiment.from_workdir(workdir)
  spec = run.environment_spec
  assert spec is not None
  network = R2D2Builder(run.config, spec).make_network()
  prefix, moment = checkpointing.restore_network(network, workdir, checkpoint)
  scores = {
    'checkpoint': os.path.basename(prefix),
    'counts': moment.counts,
    'returns': moment.returns,
    'mean_return': statistics.mean(moment.returns) if moment.returns else None,
  }
  kind = kinds.make(spec.observations, run.config)
  try:
    module, signatures = make_module(network, kind, run.config.clip_rewards)
  except ValueError as error:
    raise BadInput(str(error)) from error
  with tempfile.TemporaryDirectory() as folder, checkpoint_files.writing(out):
    assets = {'config': description.read(workdir), 'scores': scores}
    for name, content in assets.items():
      path = os.path.join(folder, f'{name}.json')
      json_files.write(path, content)
      setattr(module, name, tf.saved_model.Asset(path))
    os.makedirs(out, exist_ok=True)
    with paths.opened(out) as opened:
      tf.saved_model.save(module, opened, signatures)
  return scores


def make_module(
  network: snt.RNNCore, kind: Kind, clip_rewards: bool
) -> tuple[tf.Module, dict[str, Callable]]:
  """Returns a module with the functions of a policy of B environments, and signatures.

  - `initial_state(batch)` returns the state before an episode, zeros: a dict of
    `stack` [B, ...], the network's input, and `hidden` and `cell`, float32 [B, H].
  - `step(observation, previous_action, previous_reward, state)` takes o_t [B, ...],
    a_{t-1}, int32 [B], r_{t-1}, float32 [B], unclipped, and the state after step
    t - 1. It returns the Q-values, float32 [B, A], the greedy actions, int32 [B], and
    the next state. At an episode's first step the previous action and reward are 0.

  B may differ from call to call. The signatures of the same names take and return flat
  dicts, in which `hidden` of the state is called `state_hidden`, and the leaves of a
  nested observation likewise.

  Args:
    network: with its variables.
    kind: of the observations.
    clip_rewards: whether the network sees rewards clipped to [-1, 1].

  Raises:
    ValueError: two leaves of a nested observation have the same flat name.
  """
  core = tree.map_structure(
    lambda x: specs.Array(x.shape[1:], x.dtype.as_numpy_dtype), network.initial_state(1)
  )
  arguments = _named(
    {
      'observation': kind.frame_spec,
      'previous_action': specs.Array([], np.int32),
      'previous_reward': specs.Array([], np.float32),
      'state': {'stack': kind.input_spec, 'hidden': core.hidden, 'cell': core.cell},
    }
  )

  def initial_state(batch):
    return tree.map_structure(
      lambda x: tf.zeros([batch, *x.shape[1:]], x.dtype), arguments['state']
    )

  def step(observation, previous_action, previous_reward, state):
    stack = kind.next_inputs(state['stack'], observation)
    if clip_rewards:
      previous_reward = tf.clip_by_value(previous_reward, -1, 1)
    q, (hidden, cell) = network(
      Observation(stack, previous_action, previous_reward),
      snt.LSTMState(state['hidden'], state['cell']),
    )
    action = tf.argmax(q, axis=-1, output_type=tf.int32)
    return q, action, {'stack': stack, 'hidden': hidden, 'cell': cell}

  def flat_initial_state(batch):
    return _flat({'state': initial_state(batch)})

  def flat_step(**tensors):
    flat = [tensors[x.name] for x in tree.flatten(arguments)]
    q, action, state = step(**tree.unflatten_as(arguments, flat))
    return _flat({'q_values': q, 'action': action, 'state': state})

  names = {x.name for x in tree.flatten(arguments)}
  if len(names) < len(tree.flatten(arguments)):
    raise ValueError(
      'two parts of the observation have the same name in a flat signature, of '
      f'{", ".join(sorted(names))}: rename a key'
    )
  batch = tf.TensorSpec([], tf.int32, 'batch')
  module = tf.Module(name='policy')
  module.parameters = network.variables
  module.initial_state = tf.function(initial_state, [batch], autograph=False)
  module.step = tf.function(step, list(arguments.values()), autograph=False)
  flat = {x.name: x for x in tree.flatten(arguments)}
  return module, {
    'initial_state': tf.function(
      flat_initial_state, autograph=False
    ).get_concrete_function(batch=batch),
    'step': tf.function(flat_step, autograph=False).get_concrete_function(**flat),
  }


def _named(nest: Any) -> Any:
  return tree.map_structure_with_path(
    lambda path, x: tf.TensorSpec([None, *x.shape], x.dtype, _name(path)), nest
  )


def _flat(nest: Any) -> dict[str, tf.Tensor]:
  """Returns the leaves of a nest by their names."""
  return {_name(path): x for path, x in tree.flatten_with_path(nest)}


def _name(path: tuple) -> str:
  return '_'.join(re.sub(r'[^A-Za-z0-9_]', '_', str(key)) for key in path)
