"""From the steps of an episode to prioritized windows in Reverb."""

import collections
import math
from collections.abc import Callable

import numpy as np
import reverb
import sonnet as snt
import tree
from acme import specs

from r2d2_acme.config import R2D2Config
from r2d2_acme.observations import kinds
from r2d2_acme.replay import tables
from r2d2_acme.types import Step, Window, core_state_spec

# priority(q [T + 1, A], actions [T], rewards [T], discounts [T], mask [T]) -> float
PriorityFn = Callable[..., float]

# Windows that the server has not yet confirmed, beyond which `add` waits.
_MAX_PENDING_WINDOWS = 4


# Of `Step`, all after its observation; written window by window.
_WINDOW_FIELDS = {
  'action': np.int32,
  'reward': np.float32,
  'discount': np.float32,
  'mask': np.float32,
}

_PADDED_ROW = -1  # stands for all rows before 0, whose state is the initial one


class Stopped(Exception):
  """The program stops while the adder waits for the server."""


class WindowAdder:
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
    kind = kinds.make(frame, config)
    self._num_blocks = kind.num_blocks
    self._block = np.zeros((kind.block_length, *frame.shape), frame.dtype)
    num_rows = kind.num_blocks * kind.block_length
    # A row comes with at most one block, one state and one window; an episode's first
    # rows also with the padding before them.
    self._writer = client.trajectory_writer(num_keep_alive_refs=4 * num_rows)
    state_spec = core_state_spec(config)
    self._initial_state = tree.map_structure(
      lambda spec: np.zeros(spec.shape, spec.dtype), state_spec
    )
    keep_alive = {
      'frames': self._num_blocks,
      'core_state': tree.map_structure(lambda _: num_rows, state_spec),
      'window': dict.fromkeys(_WINDOW_FIELDS, 1),
      'learner_steps': 1,
    }
    for path, num_cells in tree.flatten_with_path(keep_alive):
      self._writer.configure(path, num_keep_alive_refs=num_cells, max_chunk_length=1)
    self._padding = Step(
      observation=np.zeros(frame.shape, frame.dtype),
      action=np.int32(0),
      reward=np.float32(0),
      discount=np.float32(0),
      mask=np.float32(0),
    )
    # Rows of padding in front of an episode: its first window ends with a block.
    self._num_leading = num_rows - (config.trace_length + 1)
    # Rows, modulo the period, where a window starts, is first trained, or ends.
    self._boundaries = {
      row % config.sequence_period
      for row in (-config.burn_in_length, 0, config.trace_length)
    }
    # The newest rows and their Q-values, at least as many as a window has.
    num_actions = environment_spec.actions.num_values
    self._rows = np.zeros(
      2 * num_rows, [*_WINDOW_FIELDS.items(), ('q', np.float32, (num_actions,))]
    )
    self.num_windows = 0  # written since the adder was made
    self._is_cut_off = False  # whether an `add` ended half-way
    self._reset()

  def _reset(self):
    self._row = 0
    self._next_window = 0
    self._num_rows = 0
    # Where the writer has, in this episode, the newest blocks and each row's state.
    self._blocks: collections.deque[int] = collections.deque(maxlen=self._num_blocks)
    self._states: dict[int, int] = {}
    self._last_state = self._last_q = None  # of the newest row

  def add(
    self,
    step: Step,
    core_state,
    q: np.ndarray,
    *,
    last: bool,
    first: bool = False,
    learner_steps: int = 0,
  ):
    """Adds row t of the current episode; `last` ends the episode.

    Where it raises, as at a Ctrl-C, it takes nothing until the next `first`, and what
    no window holds yet of the episode is lost.

    Args:
      step: the row, with mask 1.
      core_state: the actor's recurrent state before row t.
      q: float32 [A], the actor's Q(o_t, .) from that state.
      last: whether o_t is the episode's last observation.
      first: whether o_t is the first of an episode. If one is under way, it ends as
        truncated, with the row before this one.
      learner_steps: age of the parameters that made `q`, in learner steps.

    Raises:
      ValueError, TypeError: the observation's shape or dtype is not the spec's.
      Stopped: the program stopped while the table took no more.
      FloatingPointError: Q-values or rewards are not finite.
    """
    was_cut_off, self._is_cut_off = self._is_cut_off, True  # until this call's end
    if was_cut_off:
      if not first:
        return
      self._close_episode()
    elif first and self._row:
      self._row -= 1
      self._end_episode(learner_steps)
    if self._row == 0:
      self._start_episode(q)
    self._last_state, self._last_q = core_state, q
    if self._row % self._config.sequence_period in self._boundaries:
      self._write_state()
    self._append_row(step, q)
    if self._row == self._window_end(self._next_window):
      self._write_window(self._config.trace_length, learner_steps)
    if last:
      self._end_episode(learner_steps)
    else:
      self._row += 1
    self._is_cut_off = False

  def _end_episode(self, learner_steps: int):
    """Ends it with the newest row."""
    self._write_rest(learner_steps)
    self._close_episode()

  def _close_episode(self):
    """Goes on with the next episode."""
    self._wait_for_server(max_pending=0)
    self._writer.end_episode()
    self._reset()

  def flush(self):
    """Blocks until the server has all windows."""
    self._wait_for_server(max_pending=0)

  def _window_end(self, window: int) -> int:
    return window * self._config.sequence_period + self._config.trace_length

  def _start_episode(self, q: np.ndarray):
    """Pads in front, for the first windows' rows and stacks, and to fill a block."""
    self._states[_PADDED_ROW] = self._write({'core_state': self._initial_state})
    for _ in range(self._num_leading):
      self._append_row(self._padding, q)

  def _append_row(self, step: Step, q: np.ndarray):
    if self._num_rows == len(self._rows):
      self._num_rows //= 2
      self._rows[: self._num_rows] = self._rows[self._num_rows :]
    self._rows[self._num_rows] = (*step[1:], q)
    frame = self._block[self._num_rows % len(self._block)]
    if step.observation.shape != frame.shape:
      raise ValueError(
        f'an observation has shape {step.observation.shape}, but the environment spec '
        f'says {frame.shape}'
      )
    np.copyto(frame, step.observation, casting='no')
    self._num_rows += 1
    if self._num_rows % len(self._block) == 0:
      self._blocks.append(self._write({'frames': self._block}))

  def _write(self, cells) -> int:
    """Hands cells to the writer; returns their place in its history."""
    self._writer.append(cells)
    return self._writer.episode_steps - 1

  def _write_state(self):
    """Writes the state before the newest row."""
    self._states[self._row] = self._write({'core_state': self._last_state})

  def _write_rest(self, learner_steps: int):
    """Writes the episode's tail, if a transition is still in no window."""
    num_transitions = self._row  # N: row N is the last
    window = self._next_window
    covered = self._window_end(window - 1) if window else 0
    if num_transitions <= covered:
      return
    if self._row not in self._states:
      self._write_state()
    num_tail = num_transitions - window * self._config.sequence_period
    for _ in range(self._config.trace_length - num_tail):
      self._append_row(self._padding, self._last_q)
    self._write_window(num_tail, learner_steps)

  def _write_window(self, num_transitions: int, learner_steps: int):
    """Writes the window whose rows, and blocks, end with the newest.

    Args:
      num_transitions: real ones in its trace; after them comes padding.
      learner_steps: as for `add`.
    """
    config = self._config
    rows = self._rows[self._num_rows - (config.sequence_length + 1) : self._num_rows]
    priority = self._priority(rows[-(config.trace_length + 1) :])
    columns = {field: np.ascontiguousarray(rows[field]) for field in _WINDOW_FIELDS}
    # A window's scalars are one cell each: one a row would cost more than the frames.
    window = self._write({'window': columns, 'learner_steps': np.int64(learner_steps)})
    first = self._next_window * config.sequence_period  # trained row
    boundaries = (first - config.burn_in_length, first, first + num_transitions)
    states = [self._states[max(row, _PADDED_ROW)] for row in boundaries]
    history = self._writer.history
    hidden, cell = history['core_state']
    item = Window(
      steps=Step(
        observation=history['frames'][list(self._blocks)],
        **{field: history['window'][field][window] for field in _WINDOW_FIELDS},
      ),
      core_state=tuple(snt.LSTMState(hidden[i], cell[i]) for i in states),
      learner_steps=history['learner_steps'][window],
    )
    self._writer.create_item(tables.TABLE, priority, item)
    self._next_window += 1
    self.num_windows += 1
    self._forget_states(first + config.sequence_period - config.burn_in_length)
    self._wait_for_server(_MAX_PENDING_WINDOWS)

  def _forget_states(self, first_row: int):
    """Forgets those of rows before a window's first one."""
    oldest = max(first_row, _PADDED_ROW)
    self._states = {row: at for row, at in self._states.items() if row >= oldest}

  def _priority(self, rows: np.ndarray) -> float:
    """The learner's priority, from the actor's own Q-values; [T + 1] trained rows."""
    transitions = rows[1:]  # row t + 1 holds transition t
    priority = self._priority_fn(
      rows['q'], *(transitions[field] for field in _WINDOW_FIELDS)
    )
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
