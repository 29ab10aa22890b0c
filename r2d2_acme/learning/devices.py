"""The devices of the learner: GPUs if there are any, or else the CPU.

With several, each has copies of all variables and learns from a share of each batch.
"""

import sonnet as snt
import tensorflow as tf


def check(num_devices: int):
  """Refuses more devices than there are, without starting any of them.

  Args:
    num_devices: of the learner; 0 stands for 1.

  Raises:
    ValueError: there are fewer; the message is one line.
  """
  if num_devices <= 1:
    return
  kind = 'GPU' if tf.config.list_physical_devices('GPU') else 'CPU'
  num_found = sum(
    # One may be configured to be several, which is for tests.
    len(tf.config.get_logical_device_configuration(device) or [device])
    for device in tf.config.list_physical_devices(kind)
  )
  if num_devices > num_found:
    found = f'{num_found} that TensorFlow can use' if kind == 'GPU' else 'none'
    raise ValueError(
      f'learner_devices={num_devices} needs as many GPUs, and there is {found}: lower '
      '--config.learner_devices, or see `make doctor` if a GPU is missing'
    )


def make_strategy(num_devices: int) -> tf.distribute.Strategy:
  """Returns the strategy in whose scope a learner's variables must be made.

  Args:
    num_devices: as for `check`; with one, variables are where they always are.

  Raises:
    ValueError: there are fewer devices.
  """
  check(num_devices)
  if num_devices <= 1:
    return tf.distribute.get_strategy()
  devices = tf.config.list_logical_devices('GPU') or tf.config.list_logical_devices()
  return snt.distribute.Replicator(
    [device.name for device in devices[:num_devices]],
    # Gradients are added up on one device, so that all get the same bits.
    tf.distribute.ReductionToOneDevice(),
  )
