"""A torso of the user's own, by function and by import path."""

import dataclasses

import pytest
import sonnet as snt
import tensorflow as tf

from r2d2_acme import experiment as experiment_lib
from r2d2_acme.builder import R2D2Builder
from r2d2_acme.experiment import BadInput, Experiment
from tests import helpers
from tests.masks_test import MaskedWorld

_PATH = 'tests.torso_test:make_torso'


class _Torso(snt.Module):
  def __init__(self, spec):
    super().__init__()
    assert sorted(spec) == ['ears', 'eye']  # neither the text nor the mask
    self.ears = snt.Linear(5)
    assert spec['eye'].shape == (36, 36, 3)
    assert len(spec['ears']) == 1

  def __call__(self, inputs):
    brightness = tf.reduce_mean(tf.cast(inputs['eye'], tf.float32), axis=[1, 2])
    return tf.concat([brightness, self.ears(inputs['ears'][0])], axis=-1)


def make_torso(spec):
  return _Torso(spec)


class _Eye(snt.Module):
  def __call__(self, inputs):
    return inputs['eye']


def make_eye(spec):
  return _Eye()


class _List(snt.Module):
  def __call__(self, inputs):
    return [inputs['ears'][0]]


def make_list(spec):
  return _List()


def make_nothing(spec):
  raise RuntimeError('a fault of its own')


def make_function(spec):
  return lambda inputs: inputs['ears'][0]


_CONFIG = helpers.make_config(frame_stack=3, envs_per_actor=2)


def test_function_becomes_a_path_in_the_config(tmp_path):
  experiment = Experiment(
    _CONFIG, MaskedWorld, workdir=str(tmp_path), torso_factory=make_torso
  )
  run = experiment_lib.begin(experiment, num_processes=0)
  assert run.experiment.config.torso == _PATH
  read = experiment_lib.from_workdir(str(tmp_path))
  network = R2D2Builder(read.config, read.environment_spec).make_network()
  shapes = [v.shape.as_list() for v in network._torso.variables]
  assert sorted(shapes) == [[3, 5], [5]]
  num_inputs = 3 + 5 + 4 + 1  # features, previous action and reward
  assert any(v.shape[0] == num_inputs for v in network.trainable_variables)


def make_flat_torso(spec):
  assert spec.shape == (7,)
  return snt.Flatten()


def test_array_comes_as_it_is():
  config = dataclasses.replace(_CONFIG, torso='tests.torso_test:make_flat_torso')
  network = R2D2Builder(config, helpers.make_spec(image=False)).make_network()
  assert network._torso.name == 'flatten'


@pytest.mark.parametrize(
  ('torso', 'words'),
  [
    ('nowhere:make', "no module 'nowhere'"),
    ('tests.torso_test:nothing', "no function 'nothing'"),
    ('tests.torso_test', 'names no function'),
  ],
)
def test_path_that_leads_nowhere_is_refused(torso, words):
  config = dataclasses.replace(_CONFIG, torso=torso)
  with pytest.raises(BadInput, match=words) as error:
    experiment_lib.begin(Experiment(config, MaskedWorld), num_processes=0)
  assert str(error.value).startswith('bad torso')


def test_function_of_no_module_is_refused():
  with pytest.raises(BadInput, match='must be a function of a module'):
    experiment_lib.begin(
      Experiment(_CONFIG, MaskedWorld, torso_factory=lambda spec: None),
      num_processes=0,
    )


@pytest.mark.parametrize(
  ('name', 'words'),
  [
    ('make_eye', r'float32 \[N, D\], not into uint8 \(1, 36, 36, 3\)'),
    ('make_function', 'must be a Sonnet module, not function'),
    ('make_list', 'not into a list'),
    ('make_nothing', 'RuntimeError: a fault of its own'),
  ],
)
def test_torso_that_is_none_is_refused(name, words):
  config = dataclasses.replace(_CONFIG, torso=f'tests.torso_test:{name}')
  with pytest.raises(BadInput, match=words):
    experiment_lib.begin(Experiment(config, MaskedWorld), num_processes=0)
