"""A learner on several devices learns what a learner on one device learns.

There are four virtual devices, in a process of their own, because TensorFlow must learn
of them before it starts. All checks run there one after the other on the same learners:
it takes seconds to build the graphs.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import traceback

import numpy as np
import pytest
import tensorflow as tf

from r2d2_acme.learning import devices
from r2d2_acme.learning.learner import R2D2Learner
from r2d2_acme.system import cuda
from r2d2_acme.workdir import saving
from tests import helpers
from tests.learning import learner_test

_NUM_STEPS = 20
_NUMBERS = (1, 2, 4)  # of devices
# Relative to the largest number of a tensor. float32 rounds to 6e-8, sums are in
# another order, and Adam carries on what comes of it for 20 steps.
_TOLERANCE = 1e-5


@pytest.fixture(scope='module', params=['CPU', 'GPU'])
def errors(request):
  """Runs all checks; returns the traceback of each, empty if it passed."""
  kind, environ, limit = request.param, cuda.HIDDEN, None
  if kind == 'GPU':
    if not cuda.is_wanted():
      pytest.skip('needs a GPU')
    environ, limit = {}, 2048  # MiB
  code = (
    'import r2d2_acme, tensorflow as tf\n'
    f'device = tf.config.list_physical_devices({kind!r})[0]\n'
    f'one = tf.config.LogicalDeviceConfiguration({limit})\n'
    f'tf.config.set_logical_device_configuration(device, [one] * {max(_NUMBERS)})\n'
    'from tests.learning import devices_test\n'
    'devices_test.run_checks()\n'
  )
  ended = subprocess.run(
    [sys.executable, '-c', code],
    env={**os.environ, **environ},
    cwd=helpers.ROOT,
    capture_output=True,
    text=True,
  )
  assert ended.returncode == 0, ended.stderr
  return json.loads(ended.stdout.splitlines()[-1])


def run_checks():
  learners = {number: _make_learner(number) for number in _NUMBERS}
  found = {}
  for check in (check_twenty_steps, check_bad_window, check_checkpoints):
    try:
      check(learners)
      found[check.__name__] = ''
    except BaseException:
      found[check.__name__] = traceback.format_exc()
  print(json.dumps(found))


def _make_learner(num_devices: int) -> R2D2Learner:
  config = dataclasses.replace(learner_test._CONFIG, learner_devices=num_devices)
  learner = learner_test._make_learner([], config)
  learner.always_diagnose = True
  return learner


def _step(learner: R2D2Learner, batch) -> dict[int, float]:
  """Takes a step with this batch; returns the priorities that it wrote, by key."""
  written: dict[int, float] = {}
  learner._iterator = iter([batch])
  learner._update_priorities = lambda keys, priorities: written.update(
    zip(keys.tolist(), priorities.tolist(), strict=True)
  )
  learner.step()
  return written


def _assert_close(actual, expected):
  for x, y in zip(tf.nest.flatten(actual), tf.nest.flatten(expected), strict=True):
    scale = np.abs(y).max(initial=1e-3)
    np.testing.assert_allclose(x / scale, y / scale, rtol=0, atol=_TOLERANCE)


def _assert_same_on_all_devices(learner: R2D2Learner, num_devices: int):
  with learner.locked:
    for variable in tf.nest.flatten(learner._parts()):
      copies = variable.values if num_devices > 1 else [variable]
      assert len({copy.device for copy in copies}) == num_devices
      for copy in copies:
        np.testing.assert_array_equal(copy.numpy(), copies[0].numpy())


def test_twenty_steps_are_those_of_one_device(errors):
  assert not errors['check_twenty_steps']


def check_twenty_steps(learners):
  for seed in range(_NUM_STEPS):
    batch = learner_test._make_batch(seed=seed)
    written = {number: _step(learner, batch) for number, learner in learners.items()}
    for number, learner in learners.items():
      assert written[number].keys() == {*batch.keys}
      _assert_close([*written[number].values()], [*written[1].values()])
      _assert_close(learner.last_metrics, learners[1].last_metrics)
  for number, learner in learners.items():
    assert learner.num_steps == _NUM_STEPS
    _assert_close(learner.save(), learners[1].save())
    _assert_close(learner.get_variables(['']), learners[1].get_variables(['']))
    _assert_same_on_all_devices(learner, number)


def test_a_share_alone_would_have_larger_importance_weights():
  """Otherwise the steps say nothing of how the weights are normalised."""
  batch = learner_test._make_batch()
  relative = batch.table_size * batch.probabilities
  for number in _NUMBERS[1:]:
    assert max(x.min() for x in np.split(relative, number)) > relative.min()


def test_a_bad_window_on_one_device_changes_nothing_on_any(errors):
  assert not errors['check_bad_window']


def check_bad_window(learners):
  batch = learner_test._make_batch()
  batch.discount[-1, 0] = np.nan
  for number, learner in learners.items():
    before, num_steps = learner.save(), learner.num_steps
    assert _step(learner, batch) == {0: 0.0}
    assert learner.num_steps == num_steps
    tf.nest.map_structure(np.testing.assert_array_equal, learner.save(), before)
    _assert_same_on_all_devices(learner, number)


def test_checkpoints_fit_any_number_of_devices(errors):
  assert not errors['check_checkpoints']


def check_checkpoints(learners):
  batch = learner_test._make_batch(seed=_NUM_STEPS)
  for before, after in ((1, 2), (2, 4), (4, 1)):
    saved, restored = learners[before], learners[after]
    _step(saved, batch)
    with tempfile.TemporaryDirectory() as folder:
      saving.Checkpointer(folder, saved, {}, learner_test._CONFIG).save({}, force=True)
      saving.Checkpointer(folder, restored, {}, learner_test._CONFIG)
    assert restored.num_steps == saved.num_steps
    tf.nest.map_structure(np.testing.assert_array_equal, restored.save(), saved.save())
    _assert_same_on_all_devices(restored, after)
    assert _step(saved, batch).keys() == _step(restored, batch).keys()
    _assert_close(restored.save(), saved.save())


def test_more_devices_than_there_are_is_one_line():
  for number in (0, 1):
    devices.check(number)
  with pytest.raises(ValueError, match='learner_devices=99 .*lower --config') as error:
    devices.make_strategy(99)
  assert '\n' not in str(error.value)
