"""The Reverb side of replay: table, signature, priority write-back."""

import math
import queue
import threading
import time
from collections.abc import Sequence as SequenceOf

import numpy as np
import reverb
import tensorflow as tf
import tree
from absl import logging
from acme import specs

from r2d2_acme import layouts, networks
from r2d2_acme.config import R2D2Config
from r2d2_acme.types import Sequence, Step

TABLE = 'windows'

# Bytes of a stored frame over its raw bytes: the compression that busy Atari games
# reach, rounded up. Other observations are counted raw.
_IMAGE_COMPRESSION = 0.35

# Seconds until a silent server is worth a warning, and the next one.
_AWAY_PERIOD = 60.0
_MAX_BLOCK_LENGTH = 20  # rows; longer ones compress no better


def frame_blocks(
  config: R2D2Config, environment_spec: specs.EnvironmentSpec
) -> tuple[int, int]:
  """How a window's frames are stored: the number of blocks, and the rows of each.

  Each block is one cell of Reverb's, which costs the actor a third of what a cell for
  each frame does. Windows end with a block, so that neighbours share their blocks:
  thus the length divides `sequence_period`. A window is its blocks' newest rows.
  """
  period = config.sequence_period
  length = max(n for n in range(1, _MAX_BLOCK_LENGTH + 1) if period % n == 0)
  num_rows = config.sequence_length + networks.num_stacked(
    config, environment_spec.observations
  )
  return math.ceil(num_rows / length), length


def sequence_signature(
  config: R2D2Config, environment_spec: specs.EnvironmentSpec
) -> Sequence:
  """`tf.TensorSpec`s of one replay item."""
  rows = config.sequence_length + 1
  frame = environment_spec.observations
  blocks = frame_blocks(config, environment_spec)

  def column(shape, dtype, name):
    return tf.TensorSpec(shape, tf.as_dtype(dtype), name)

  return Sequence(
    steps=Step(
      observation=column((*blocks, *frame.shape), frame.dtype, 'observation'),
      action=column([rows], np.int32, 'action'),
      reward=column([rows], np.float32, 'reward'),
      discount=column([rows], np.float32, 'discount'),
      mask=column([rows], np.float32, 'mask'),
    ),
    core_state=(
      tree.map_structure(
        lambda spec: tf.TensorSpec(spec.shape, spec.dtype, 'core_state'),
        networks.core_state_spec(config),
      ),
    )
    * 3,
    learner_steps=tf.TensorSpec((), tf.int64, 'learner_steps'),
  )


def make_tables(
  config: R2D2Config,
  environment_spec: specs.EnvironmentSpec,
  rate_limiter: reverb.rate_limiters.RateLimiter | None = None,
) -> SequenceOf[reverb.Table]:
  """The prioritized table of windows.

  Its limiter, by default, holds sampled windows / inserted windows at
  `samples_per_insert` from `min_replay_size` windows on.
  """
  if rate_limiter is None:
    rate_limiter = reverb.rate_limiters.SampleToInsertRatio(
      samples_per_insert=config.samples_per_insert,
      min_size_to_sample=config.min_replay_size,
      error_buffer=config.error_buffer,
    )
  table = reverb.Table(
    name=TABLE,
    sampler=reverb.selectors.Prioritized(config.priority_exponent),
    remover=reverb.selectors.Fifo(),
    max_size=config.max_replay_size,
    rate_limiter=rate_limiter,
    signature=sequence_signature(config, environment_spec),
  )
  return [table]


class PriorityUpdater:
  """Writes priorities back from a thread of its own: `update` never blocks.

  Updates that wait together travel together; of two for one item the later counts.
  While the server is away, updates wait or are lost, and stale priorities are all that
  this costs: a warning says so when it is back, or after a minute. At a program's end,
  where it often goes first, there is none. Any other failure is raised.
  """

  def __init__(self, client: reverb.Client):
    self._client = client
    self._queue: queue.Queue = queue.Queue()
    self._failure: BaseException | None = None
    self._num_lost = 0  # updates
    self._num_told = 0  # of these, in warnings
    self._error = ''  # the server's last answer, if it was one
    self._last_answer = time.monotonic()
    self._last_warning = -math.inf
    self._thread = threading.Thread(target=self._run, daemon=True, name='priorities')
    self._thread.start()

  def update(self, keys: np.ndarray, priorities: np.ndarray):
    """Schedules priorities [B] for the items called keys [B].

    Raises:
      RuntimeError: an earlier update failed, and not because the server was away.
    """
    self._raise_failure()
    if not self._queue.unfinished_tasks and not self._error:
      self._last_answer = time.monotonic()  # the server owes none
    self._queue.put((keys, priorities))
    seconds = time.monotonic() - self._last_answer
    if seconds > _AWAY_PERIOD:
      self._warn(f'has not answered for {seconds:.0f} s')

  def wait(self):
    """Blocks until all that was scheduled is written, or lost.

    Raises:
      RuntimeError: as `update`.
    """
    self._queue.join()
    self._raise_failure()

  def _raise_failure(self):
    if self._failure is not None:
      raise RuntimeError('priorities cannot be written back') from self._failure

  def _run(self):
    while True:
      waiting = [self._queue.get()]
      while not self._queue.empty():
        waiting.append(self._queue.get())
      try:
        if self._failure is None:  # else nobody may wait for ever
          self._write(waiting)
      except BaseException as error:  # handed to the learner
        self._failure = error
      finally:
        for _ in waiting:
          self._queue.task_done()

  def _write(self, waiting: SequenceOf[tuple[np.ndarray, np.ndarray]]):
    updates: dict[int, float] = {}
    for keys, priorities in waiting:
      # Reverb refuses a NaN, and after an infinity draws nothing else.
      finite = np.isfinite(priorities)
      updates.update(
        zip(keys[finite].tolist(), priorities[finite].tolist(), strict=True)
      )
    try:
      self._client.mutate_priorities(TABLE, updates=updates)
    except (RuntimeError, reverb.errors.ReverbError) as error:
      if 'was not found' in str(error):  # a server that is there, without the table
        raise
      self._error = str(error)
      self._num_lost += len(waiting)
      return
    self._last_answer = time.monotonic()
    if self._num_lost > self._num_told:
      self._warn('was not available')
    self._error = ''

  def _warn(self, what: str):
    """Logs at most once in `_AWAY_PERIOD`."""
    now = time.monotonic()
    if now - self._last_warning >= _AWAY_PERIOD:
      self._last_warning = now
      num_lost = self._num_lost
      logging.warning(
        'Replay %s%s: %d updates of priorities are lost, %d wait',
        what,
        f' ({self._error})' if self._error else '',
        num_lost - self._num_told,
        self._queue.qsize(),
      )
      self._num_told = num_lost


def estimate_bytes(config: R2D2Config, environment_spec: specs.EnvironmentSpec) -> int:
  """Bytes that a full table needs, from the raw sizes and typical compression.

  Neighbouring windows share their frames, so that a window adds `sequence_period`
  of them and about two recurrent states.
  """
  frame = environment_spec.observations
  frame_bytes = float(np.prod(frame.shape)) * np.dtype(frame.dtype).itemsize
  if layouts.is_image(frame):
    frame_bytes *= _IMAGE_COMPRESSION
  scalar_bytes = 16
  state_bytes = 2 * 4 * config.core_size
  per_window = (
    config.sequence_period * (frame_bytes + scalar_bytes) + 2 * state_bytes + 500
  )
  return int(config.max_replay_size * per_window)
