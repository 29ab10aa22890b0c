"""What follows a batch whose gradient is not finite.

In come such a batch and its new priorities. Out go the windows to blame, a line on
stderr, and, after many in a row, older parameters or an error.
"""

from collections.abc import Callable

import numpy as np
import tree

from r2d2_acme.system import stopping
from r2d2_acme.types import Batch

_MAX_NAMED = 4  # windows in a line


class LearningFailed(FloatingPointError):
  """The gradient stays not finite; the message is one line that says what to do."""


class BadBatches:
  """Counts batches whose gradient is not finite, and decides when it is enough.

  After `max_in_a_row` of them it restores older parameters, and after as many again it
  raises `LearningFailed`. A good batch starts the count again.

  Attributes:
    count: the number of such batches so far.
  """

  def __init__(self, max_in_a_row: int):
    self.count = 0
    self._max_in_a_row = max_in_a_row
    self._in_a_row = 0
    self._is_restored = False  # since the last good batch

  def end_row(self):
    """Notes a good batch."""
    self._in_a_row = 0
    self._is_restored = False

  def add(
    self,
    batch: Batch,
    is_bad: np.ndarray,
    num_steps: int,
    restore: Callable[[], bool],
  ):
    """Notes and names a bad batch; perhaps restores older parameters.

    Args:
      batch: of arrays.
      is_bad: bool [B], whether a window is to blame.
      num_steps: of the learner.
      restore: sets the learner back to its newest sound checkpoint. Returns whether
        there was one.

    Raises:
      LearningFailed: there were too many in a row.
    """
    self.count += 1
    self._in_a_row += 1
    stopping.say(
      f'The gradient is not finite at learner step {num_steps:,} and this batch is '
      f'skipped ({self._in_a_row} of at most {self._max_in_a_row} in a row): '
      f'{_name(batch.keys[is_bad], len(is_bad))}.'
    )
    if self._in_a_row < self._max_in_a_row:
      return
    if self._is_restored:
      raise self._failure('before the newest checkpoint was restored and as many after')
    if not restore():
      raise self._failure('and there is no checkpoint to restore')
    self._in_a_row, self._is_restored = 0, True
    stopping.say('The newest checkpoint is restored, and learning goes on.')

  def _failure(self, when: str) -> LearningFailed:
    return LearningFailed(
      f'the gradient was not finite in {self._max_in_a_row} batches in a row, {when}: '
      'learning diverged, or the environment gives observations or rewards that are '
      'too large; start again with a lower --config.learning_rate in another '
      '--workdir, or from an earlier --checkpoint, or make the rewards smaller'
    )


def find_bad_windows(batch: Batch, priorities: np.ndarray) -> np.ndarray:
  """Returns which windows made the gradient not finite, bool [B].

  These are windows whose data are not finite, and windows with TD errors whose squares
  are not. If the TD errors of all windows are like that, the parameters are to blame.

  Args:
    batch: of arrays.
    priorities: float32 [B], the new ones.
  """
  num_windows = len(priorities)
  is_bad = np.zeros(num_windows, bool)
  by_time = (batch.observations, batch.discount)  # [R, B, ...]
  for x in tree.flatten(by_time):
    is_bad |= ~np.isfinite(np.moveaxis(x, 1, 0)).reshape(num_windows, -1).all(1)
  for x in batch.core_state:  # [B, 3, core size]
    is_bad |= ~np.isfinite(x).reshape(num_windows, -1).all(1)
  with np.errstate(over='ignore'):
    has_bad_error = ~np.isfinite(np.square(priorities))
  return is_bad if has_bad_error.all() else is_bad | has_bad_error


def _name(keys: np.ndarray, batch_size: int) -> str:
  if not len(keys):
    return 'none of its windows is to blame alone, so the parameters may be'
  more = ', …' if len(keys) > _MAX_NAMED else ''
  named = ', '.join(map(str, keys[:_MAX_NAMED]))
  return (
    'windows that are to blame are not sampled again: '
    f'{len(keys)} of {batch_size}, key {named}{more}'
  )
