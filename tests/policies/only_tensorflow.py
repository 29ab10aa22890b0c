"""Plays recorded episodes with exported policies, where only TensorFlow is installed.

python only_tensorflow.py FOLDER FOLDER ...: a folder has `episode.npz` and `model/`.
"""

import json
import os
import sys

_MISSING = {'r2d2_acme', 'acme', 'sonnet', 'reverb', 'trfl', 'launchpad', 'tree'}
_MISSING |= {'dm_env', 'gymnasium'}


class _Missing:
  """Finds none of the packages that are not there."""

  def find_spec(self, name, path=None, target=None):
    if name.partition('.')[0] in _MISSING:
      raise ModuleNotFoundError(f'no {name} here')


sys.meta_path.insert(0, _Missing())

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402


def _play(model, observations, rewards):
  """Two copies of an episode in one batch, as in the loop of a user."""
  action, state = np.zeros(2, np.int32), model.initial_state(2)
  actions, q_values = [], []
  for observation, reward in zip(observations, rewards, strict=True):
    batch = np.stack([observation, observation])
    twice = np.full(2, reward, np.float32)
    q, action, state = model.step(batch, action, twice, state)
    assert np.allclose(q[0], q[1], rtol=1e-5, atol=1e-5)
    actions.append(action[0].numpy())
    q_values.append(q[0].numpy())
  return actions, q_values


def _play_by_signatures(model, observations, rewards):
  initial_state, step = (model.signatures[x] for x in ('initial_state', 'step'))
  outputs = initial_state(batch=tf.constant(1))
  action, actions, q_values = np.zeros(1, np.int32), [], []
  for observation, reward in zip(observations, rewards, strict=True):
    outputs = step(
      observation=tf.constant(observation[np.newaxis]),
      previous_action=tf.constant(action),
      previous_reward=tf.constant([reward], tf.float32),
      **{name: x for name, x in outputs.items() if name.startswith('state_')},
    )
    action = outputs['action'].numpy()
    actions.append(action[0])
    q_values.append(outputs['q_values'][0].numpy())
  return actions, q_values


for folder in sys.argv[1:]:
  model = tf.saved_model.load(os.path.join(folder, 'model'))
  episode = np.load(os.path.join(folder, 'episode.npz'))
  inputs = episode['observations'], episode['rewards']
  actions, q = _play(model, *inputs)
  signature_actions, signature_q = _play_by_signatures(model, *inputs)
  np.savez(
    os.path.join(folder, 'played.npz'),
    actions=actions,
    q=q,
    signature_actions=signature_actions,
    signature_q=signature_q,
  )
  assets = {}
  for name in ('config', 'scores'):
    with open(getattr(model, name).asset_path.numpy()) as file:
      assets[name] = json.load(file)
  with open(os.path.join(folder, 'assets.json'), 'w') as file:
    json.dump(assets, file)
assert not _MISSING & set(sys.modules)
