"""The base class of all environments here, and how their faults are described."""

import traceback
from typing import Any

import dm_env
import numpy as np
from dm_env import specs

# Errors from an environment's own code. Some call `sys.exit` when a window is closed.
FAULTS = (Exception, SystemExit)


class BadValue(ValueError):
  """An environment returned a value of a wrong kind; the message is one line."""


class Environment(dm_env.Environment):
  """A `dm_env.Environment` whose rewards and discounts are float32.

  Attributes:
    frames_per_step: emulator frames that pass in one step.
  """

  frames_per_step = 1

  def reward_spec(self) -> specs.Array:
    return specs.Array(shape=(), dtype=np.float32, name='reward')

  def discount_spec(self) -> specs.BoundedArray:
    return specs.BoundedArray(
      shape=(), dtype=np.float32, minimum=0.0, maximum=1.0, name='discount'
    )


def to_float32(value: Any, name: str) -> np.float32:
  """Converts a reward or a discount to float32.

  Args:
    value: a number, a bool, or an array of shape [] or [1] with one of them.
    name: what to call the value in the error.

  Raises:
    BadValue: `value` is anything else. The message describes it.
  """
  if isinstance(value, (float, np.floating)):
    return np.float32(value)
  try:
    array = np.asarray(value)
    if array.shape in ((), (1,)) and array.dtype.kind in 'biuf':
      return np.float32(array.item())
  except Exception:  # a ragged nest, or what a tensor of another library raises
    pass
  raise BadValue(f'the {name} must be one number, not {describe_value(value)}')


def describe_value(value: Any) -> str:
  """Returns the type of a value, with its dtype and shape, or its length, if any."""
  if isinstance(value, np.ndarray):
    return f'{value.dtype} of shape {list(value.shape)}'
  if value is None or isinstance(value, (str, bytes)):
    return repr(value)
  if isinstance(value, (tuple, list)):
    return f'a {type(value).__name__} of {len(value)}'
  shape = getattr(value, 'shape', None)
  suffix = '' if shape is None else f' of shape {list(shape)}'
  return f'{type(value).__name__}{suffix}'


def describe_error(error: BaseException) -> str:
  """Returns an error's type, text and place in one line; of a BadValue, its text."""
  text = ' '.join(str(error).split())
  if isinstance(error, BadValue):
    return text
  places = [
    f' ({frame.filename}, line {frame.lineno})'
    for frame in traceback.extract_tb(error.__traceback__)
    if 'importlib' not in frame.filename
  ]
  # The text of a syntax error contains its place.
  place = places[-1] if places and not isinstance(error, SyntaxError) else ''
  return f'{type(error).__name__}{": " if text else ""}{text}{place}'
