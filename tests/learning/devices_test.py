"""A learner on several devices learns what a learner on one device learns.

There are four virtual CPU devices, in a process of their own, because TensorFlow must
learn of them before it starts.
"""

import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from r2d2_acme.learning import devices
from r2d2_acme.learning.learner import R2D2Learner
from r2d2_acme.workdir import saving
from tests import helpers
from tests.learning import learner_test

_NUM_STEPS = 20
_NUM_FOUND = 4
# Relative to the largest number of a tensor. float32 rounds to 6e-8, sums are in
# another order, and Adam carries on what comes of it for 20 steps.
_TOLERANCE = 1e-5


def _run_here(check: str, *arguments):
  """Calls a function of this file in a process with four devices."""
  code = (
    'import r2d2_acme, tensorflow as tf\n'
    'cpu, = tf.config.list_physical_devices("CPU")\n'
    'one = tf.config.LogicalDeviceConfiguration()\n'
    f'tf.config.set_logical_device_configuration(cpu, [one] * {_NUM_FOUND})\n'
    'from tests.learning import devices_test\n'
    f'devices_test.{check}(*{arguments!r})\n'
  )
  ended = subprocess.run(
    [sys.executable, '-c', code], cwd=helpers.ROOT, capture_output=True, text=True
  )
  assert ended.returncode == 0, ended.stderr


def _make_learner(num_devices: int, batches=()) -> R2D2Learner:
  config = dataclasses.replace(learner_test._CONFIG, learner_devices=num_devices)
  learner = learner_test._make_learner(batches, config)
  learner.always_diagnose = True
  return learner


def _assert_close(actual, expected):
  for x, y in zip(tf.nest.flatten(actual), tf.nest.flatten(expected), strict=True):
    scale = np.abs(y).max(initial=1e-3)
    np.testing.assert_allclose(x / scale, y / scale, rtol=0, atol=_TOLERANCE)


@pytest.mark.parametrize('num_devices', [2, 4])
def test_twenty_steps_are_those_of_one_device(num_devices):
  _run_here('check_twenty_steps', num_devices)


def check_twenty_steps(num_devices: int):
  batches = [learner_test._make_batch(seed=i) for i in range(_NUM_STEPS)]
  relative = batches[0].table_size * batches[0].probabilities
  least = [share.min() for share in np.split(relative, num_devices)]
  assert len({*least}) > 1  # a share alone would get larger importance weights
  one, several = (_make_learner(n, batches) for n in (1, num_devices))
  written = [], []
  for learner, rows in zip((one, several), written, strict=True):
    learner._update_priorities = lambda *row, rows=rows: rows.append(row)
  for _ in range(_NUM_STEPS):
    for learner in (one, several):
      learner.step()
    _assert_close(several.last_metrics, one.last_metrics)
    for (keys, priorities), (keys_of_one, expected) in zip(*written, strict=True):
      np.testing.assert_array_equal(keys, keys_of_one)
      _assert_close(priorities, expected)
  _assert_close(several.save(), one.save())
  _assert_close(several.get_variables(['']), one.get_variables(['']))
  with several.locked:
    _assert_same_on_all_devices(several, num_devices)


def _assert_same_on_all_devices(learner: R2D2Learner, num_devices: int):
  for variable in tf.nest.flatten(learner._parts()):
    assert len({copy.device for copy in variable.values}) == num_devices
    for copy in variable.values:
      np.testing.assert_array_equal(copy.numpy(), variable.values[0].numpy())


def test_checkpoints_fit_any_number_of_devices(tmp_path):
  _run_here('check_checkpoints', str(tmp_path))


def check_checkpoints(folder: str):
  batches = itertools.repeat(learner_test._make_batch())
  before = _make_learner(1, batches)
  before.step()
  for index, num_devices in enumerate([2, 4, 1]):
    workdir = f'{folder}/{index}'
    saving.Checkpointer(workdir, before, {}, learner_test._CONFIG).save({}, force=True)
    after = _make_learner(num_devices, batches)
    saving.Checkpointer(workdir, after, {}, learner_test._CONFIG)
    assert after.num_steps == before.num_steps
    tf.nest.map_structure(np.testing.assert_array_equal, after.save(), before.save())
    if num_devices > 1:
      _assert_same_on_all_devices(after, num_devices)
    for learner in (before, after):
      learner.step()
    _assert_close(after.save(), before.save())
    before = after


def test_a_bad_window_on_one_device_changes_nothing_on_any():
  _run_here('check_bad_window')


def check_bad_window():
  good = learner_test._make_batch()
  bad = good._replace(discount=good.discount.copy())
  bad.discount[-1, 0] = np.nan
  learner = _make_learner(2, [good, bad, good])
  written = {}
  learner._update_priorities = lambda *row: written.update(zip(*row, strict=True))
  learner.step()
  before = learner.save()
  written.clear()
  learner.step()
  assert not np.isfinite(learner.last_metrics['gradient_norm'])
  assert written == {0: 0.0}
  tf.nest.map_structure(np.testing.assert_array_equal, learner.save(), before)
  with learner.locked:
    _assert_same_on_all_devices(learner, 2)
  learner.step()
  assert learner.num_steps == 2
  assert all(np.isfinite(x).all() for x in tf.nest.flatten(learner.save()))


def test_more_devices_than_there_are_is_one_line():
  _run_here('check_refusals')


def check_refusals():
  for num_devices in range(_NUM_FOUND + 1):
    devices.check(num_devices)
  with pytest.raises(ValueError, match='learner_devices=5 .*lower --config') as error:
    devices.make_strategy(_NUM_FOUND + 1)
  assert '\n' not in str(error.value)
