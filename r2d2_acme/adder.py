"""`SequenceAdder`: from an episode's steps to prioritized windows in Reverb."""

import collections
import math
import operator
from collections.abc import Callable, Mapping

import numpy as np
import reverb
import tensorflow as tf
import tree
from acme import specs

from r2d2_acme import losses, networks, replay, tracing
from r2d2_acme.config import R2D2Config
from r2d2_acme.types import Sequence, Step

# priority(q [T + 1, A], actions [T], rewards [T], discounts [T], mask [T]) -> float
PriorityFn = Callable[..., float]

# Windows that the server has not yet confirmed, beyond which `add` waits.
_MAX_PENDING_WINDOWS = 4


# Of `Step`, written window by window.
_WINDOW_FIELDS = {
  'action': np.int32,
  'reward': np.float32,
  'discount': np.float32,
  'mask': np.float32,
}


class Stopped(Exception):
  """The program stops while the adder waits for the server."""


class SequenceAdder:
  """Writes one environment's episodes as windows, each with its priority.

  Rows are numbered within an episode: row t holds o_t and the transition t - 1 that
  led to it, so that an episode of N transitions has rows 0 ... N. Window k trains
  the transitions [k S, k S + T) (S = sequence_period, T = trace_length), so it spans
  the rows [k S - burn_in_length, k S + T], of which those before 0 and after N are
  padding. A window is written as soon as its last row is there; at the episode's end
  one more holds what is left. Thus each transition is trained by at least one
  window, and by exactly one if S = T.
  """

  def __init__(
    self,
    client: reverb.Client,
    config: R2D2Config,
    environment_spec: specs.EnvironmentSpec,
    priority_fn: PriorityFn,
    should_stop: Callable[[], bool] = lambda: False,
  ):
    """`should_stop` ends a wait for the rate limiter with `Stopped`."""
    self._config = config
    self._priority_fn = priority_fn
    self._should_stop = should_stop
    frame = environment_spec.observations
    self._stack = networks.num_stacked(config, frame)
    keep_alive = config.sequence_length + self._stack
    self._writer = client.trajectory_writer(num_keep_alive_refs=keep_alive)
    state_spec = networks.core_state_spec(config)
    self._initial_state = tree.map_structure(
      lambda spec: np.zeros(spec.shape, spec.dtype), state_spec
    )
    chunk_lengths = {
      'frame': _chunk_length(config),
      # Few rows have these.
      'core_state': tree.map_structure(lambda _: 1, state_spec),
      'window': dict.fromkeys(_WINDOW_FIELDS, 1),
      'learner_steps': 1,
    }
    for path, chunk_length in tree.flatten_with_path(chunk_lengths):
      self._writer.configure(
        path, num_keep_alive_refs=keep_alive, max_chunk_length=chunk_length
      )
    self._padding = Step(
      observation=np.zeros(frame.shape, frame.dtype),
      action=np.int32(0),
      reward=np.float32(0),
      discount=np.float32(0),
      mask=np.float32(0),
    )
    # The newest rows and their Q-values, as many as a window has.
    self._rows: collections.deque[tuple[Step, np.ndarray]] = collections.deque(
      maxlen=config.sequence_length + 1
    )
    self._row = 0
    self._next_window = 0
    self.num_windows = 0  # written since the adder was made

  def add(
    self,
    step: Step,
    core_state,
    q: np.ndarray,
    *,
    last: bool,
    learner_steps: int | tf.Variable = 0,
  ):
    """Adds row t of the current episode; `last` ends the episode.

    Args:
      step: the row, with mask 1.
      core_state: the actor's recurrent state before row t.
      q: float32 [A], the actor's Q(o_t, .) from that state.
      last: whether o_t is the episode's last observation.
      learner_steps: age of the parameters that made `q`, in learner steps; a variable
        is read when a window is written.

    Raises:
      Stopped: the program stopped while the table took no more.
      FloatingPointError: Q-values or rewards are not finite.
    """
    if self._row == 0:
      self._start_episode(q)
    has_state = last or self._is_boundary(self._row)
    ends_window = self._row == self._window_end(self._next_window)
    self._append(step, q, core_state if has_state else None, partial=ends_window)
    if ends_window:
      self._write_window(self._config.trace_length, learner_steps)
    if last:
      self._write_rest(q, learner_steps)
      self._wait_for_server(max_pending=0)
      self._writer.end_episode()
      self._rows.clear()
      self._row = 0
      self._next_window = 0
    else:
      self._row += 1

  def flush(self):
    """Blocks until the server has all windows."""
    self._wait_for_server(max_pending=0)

  def _is_boundary(self, row: int) -> bool:
    """Whether some window starts, is first trained, or ends at `row`."""
    period = self._config.sequence_period
    return (
      row % period == 0
      or (row + self._config.burn_in_length) % period == 0
      or (row - self._config.trace_length) % period == 0
    )

  def _window_end(self, window: int) -> int:
    return window * self._config.sequence_period + self._config.trace_length

  def _start_episode(self, q: np.ndarray):
    """Pads in front, so that the first windows' rows and stacks are there."""
    for row in range(-self._config.burn_in_length - (self._stack - 1), 0):
      has_state = self._is_boundary(row)
      self._append(self._padding, q, self._initial_state if has_state else None)

  def _append(self, step: Step, q: np.ndarray, core_state, partial: bool = False):
    """Appends a row; a partial one is left open for the window that ends there."""
    self._rows.append((step, q))
    data = {'frame': step.observation}
    if core_state is not None:
      data['core_state'] = core_state
    self._writer.append(data, partial_step=partial)

  def _write_rest(self, q: np.ndarray, learner_steps: int | tf.Variable):
    """Writes the episode's tail, if a transition is still in no window."""
    num_transitions = self._row  # N: row N is the last
    window = self._next_window
    covered = self._window_end(window - 1) if window else 0
    if num_transitions <= covered:
      return
    num_tail = num_transitions - window * self._config.sequence_period
    for num_missing in reversed(range(self._config.trace_length - num_tail)):
      self._append(self._padding, q, None, partial=num_missing == 0)
    self._write_window(num_tail, learner_steps)

  def _write_window(self, num_transitions: int, learner_steps: int | tf.Variable):
    """Writes the window whose rows end with the newest, still open, one.

    Args:
      num_transitions: real ones in its trace; after them comes padding.
      learner_steps: as for `add`.
    """
    config = self._config
    steps, q = zip(*self._rows, strict=True)
    columns = {
      field: np.array([getattr(step, field) for step in steps], dtype)
      for field, dtype in _WINDOW_FIELDS.items()
    }
    priority = self._priority(columns, np.stack(q[-(config.trace_length + 1) :]))
    # All its scalars are one cell each: one a row would cost more than the frame.
    self._writer.append(
      {'window': columns, 'learner_steps': np.int64(int(learner_steps))}
    )
    num_rows = config.sequence_length + 1
    history = self._writer.history
    # Rows counted back from the newest: the window's first, its first trained, and
    # the one after its last trained transition.
    boundaries = [
      -num_rows,
      -(config.trace_length + 1),
      -(config.trace_length + 1) + num_transitions,
    ]
    sequence = Sequence(
      steps=Step(
        observation=history['frame'][-(num_rows + self._stack - 1) :],
        **{field: history['window'][field][-1] for field in _WINDOW_FIELDS},
      ),
      # One by one: Reverb cannot read a list that names a row twice, as this one
      # does without burn-in.
      core_state=tuple(
        tree.map_structure(operator.itemgetter(row), history['core_state'])
        for row in boundaries
      ),
      learner_steps=history['learner_steps'][-1],
    )
    self._writer.create_item(replay.TABLE, priority, sequence)
    self._next_window += 1
    self.num_windows += 1
    self._wait_for_server(_MAX_PENDING_WINDOWS)

  def _priority(self, columns: Mapping[str, np.ndarray], q: np.ndarray) -> float:
    """The learner's priority, from the actor's own Q-values [T + 1, A]."""
    # Transition t is in row t + 1.
    action, reward, discount, mask = (
      columns[field][-self._config.trace_length :] for field in _WINDOW_FIELDS
    )
    priority = self._priority_fn(q, action, reward, discount, mask)
    if not math.isfinite(priority):
      # Reverb's table would die of it, and everyone wait for it without a word.
      raise FloatingPointError(
        f'the priority of a window is {priority}: the Q-values or the rewards are not '
        'finite, so either learning diverged or the environment is at fault'
      )
    return priority

  def _wait_for_server(self, max_pending: int):
    """Waits until at most `max_pending` windows are unconfirmed.

    `create_item` never waits, so without this the actor would run ahead of the rate
    limiter, filling its own memory.
    """
    while True:
      try:
        self._writer.flush(max_pending, timeout_ms=500)
        return
      except reverb.errors.DeadlineExceededError:
        if self._should_stop():
          raise Stopped() from None


def make_priority_fn(config: R2D2Config) -> PriorityFn:
  """The learner's arithmetic on the actor's Q-values, which stand in for both
  networks' (section 2.3 of the paper leaves open which the actor uses).

  Without `actor_priorities`, 1 whatever the window.
  """
  if not config.actor_priorities:
    return lambda *_: 1.0
  length = config.trace_length

  def priority(q, actions, rewards, discounts, mask):
    q, actions, rewards, discounts, mask = (
      tf.expand_dims(x, 1) for x in (q, actions, rewards, discounts, mask)
    )  # B = 1
    td_errors = losses.window_td_errors(
      q,
      q,
      actions=actions,
      rewards=rewards,
      discounts=discounts,
      mask=mask,
      gamma=config.discount,
      n_step=config.n_step,
      epsilon=config.rescaling_epsilon,
    )
    return [losses.sequence_priorities(td_errors, mask, config.priority_eta)[0]]

  function = tracing.trace(
    priority,
    tf.TensorSpec([length + 1, None], tf.float32),
    *(tf.TensorSpec([length], dtype) for dtype in _WINDOW_FIELDS.values()),
  )
  return lambda *args: float(function(*map(tf.constant, args))[0])


def _chunk_length(config: R2D2Config) -> int:
  """Rows compressed together: long enough to compress, short enough to share."""
  return min(20, config.sequence_period)
