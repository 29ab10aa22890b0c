"""From the steps of an episode to prioritized windows in Reverb.

In come the steps of one environment with Q-values and recurrent states. Out go windows,
each with the priority that the learner would give it.
"""

import collections
import time
from collections.abc import Callable

import numpy as np
import reverb
import sonnet as snt
import tree
from absl import logging
from acme import specs

from r2d2_acme.config import R2D2Config
from r2d2_acme.observations import kinds
from r2d2_acme.replay import tables
from r2d2_acme.types import Step, Window, core_state_spec

# priority(q [T + 1, A], actions [T], rewards [T], discounts [T], mask [T]) -> float
PriorityFn = Callable[..., float]

# Items that the server has not yet confirmed, beyond which `add` waits. There is one
# for each window, and with a gate another.
_MAX_PENDING_ITEMS = 4
_STALL_PERIOD = 30.0  # seconds of waiting between two warnings
_PING_PERIOD = 5.0  # seconds of waiting until the server is asked whether it is there
# For the server's first answer: Reverb's own 3 s are few on a machine that is busy.
_SIGNATURE_TIMEOUT_MS = 30_000

# The fields of `Step` after its observation. They are written window by window.
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
  led to it, so that an episode of N transitions has the rows 0 ... N. Window k trains
  the transitions [k S, k S + T) (S = `sequence_period`, T = `trace_length`), so it
  spans the rows [k S - burn_in_length, k S + T], of which those before 0 and after N
  are padding. A window is written as soon as its last row is there. At the episode's
  end one more window holds the transitions that are left. Thus each transition is
  trained by at least one window, and by exactly one if S = T.

  Attributes:
    num_windows: the number of windows written since the adder was made.
  """

  def __init__(
    self,
    client: reverb.Client,
    config: R2D2Config,
    environment_spec: specs.EnvironmentSpec,
    priority_fn: PriorityFn,
    should_stop: Callable[[], bool] = lambda: False,
  ):
    """Constructs the adder.

    Args:
      client: of the server that has the table.
      config: the hyperparameters.
      environment_spec: of the environment whose steps are added.
      priority_fn: computes the priority of a window.
      should_stop: where it is true, a wait for the rate limiter ends with `Stopped`.
    """
    self._config = config
    self._priority_fn = priority_fn
    self._writer = _EpisodeWriter(client, config, environment_spec, should_stop)
    self._padding = Step(
      observation=tree.map_structure(
        lambda spec: np.zeros(spec.shape, spec.dtype), environment_spec.observations
      ),
      action=np.int32(0),
      reward=np.float32(0),
      discount=np.float32(0),
      mask=np.float32(0),
    )
    self._initial_state = tree.map_structure(
      lambda spec: np.zeros(spec.shape, spec.dtype), core_state_spec(config)
    )
    # Rows of padding in front of an episode: its first window ends with a block.
    self._num_leading = self._writer.rows_per_window - (config.trace_length + 1)
    # Rows, modulo the period, where a window starts, is first trained, or ends.
    self._boundaries = {
      row % config.sequence_period
      for row in (-config.burn_in_length, 0, config.trace_length)
    }
    self.num_windows = 0
    self._is_cut_off = False  # whether an `add` ended half-way
    self._reset()

  def _reset(self):
    self._row = 0
    self._next_window = 0
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
    """Adds row t of the current episode.

    If it raises, for example at Ctrl-C, the part of the episode that no window holds
    yet is lost, and nothing is added until the next row that is a `first` one.

    Args:
      step: the row, with mask 1.
      core_state: the actor's recurrent state before row t.
      q: float32 [A], the actor's Q(o_t, .) from that state.
      last: whether o_t is the episode's last observation.
      first: whether o_t is the first of an episode. An episode that is under way then
        ends as truncated, with the row before this one.
      learner_steps: the age of the parameters that made `q`, in learner steps.

    Raises:
      ValueError, TypeError: the observation's shape or dtype is not that of the
        environment's spec.
      Stopped: the program stopped while the table took no more windows.
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
      self._writer.write_state(self._row, core_state)
    self._writer.append_row(step, q)
    if self._row == self._window_end(self._next_window):
      self._write_window(self._config.trace_length, learner_steps)
    if last:
      self._end_episode(learner_steps)
    else:
      self._row += 1
    self._is_cut_off = False

  def drop_episode(self):
    """Drops what no window holds yet of the current episode, as if `add` had raised."""
    self._is_cut_off = True

  def flush(self):
    """Blocks until the server has all windows."""
    self._writer.wait(max_pending=0)

  def _start_episode(self, q: np.ndarray):
    """Writes the padding that the first windows and their stacks reach back to."""
    self._writer.write_state(_PADDED_ROW, self._initial_state)
    for _ in range(self._num_leading):
      self._writer.append_row(self._padding, q)

  def _end_episode(self, learner_steps: int):
    """Ends the episode with the newest row."""
    self._write_rest(learner_steps)
    self._close_episode()

  def _close_episode(self):
    """Gets ready for the next episode."""
    self._writer.end_episode()
    self._reset()

  def _window_end(self, window: int) -> int:
    """Returns the number of a window's last row."""
    return window * self._config.sequence_period + self._config.trace_length

  def _write_rest(self, learner_steps: int):
    """Writes a window of the transitions that are in no window yet, if any."""
    num_transitions = self._row  # N: row N is the last
    window = self._next_window
    covered = self._window_end(window - 1) if window else 0
    if num_transitions <= covered:
      return
    if not self._writer.has_state(self._row):
      self._writer.write_state(self._row, self._last_state)
    num_rest = num_transitions - window * self._config.sequence_period
    for _ in range(self._config.trace_length - num_rest):
      self._writer.append_row(self._padding, self._last_q)
    self._write_window(num_rest, learner_steps)

  def _write_window(self, num_transitions: int, learner_steps: int):
    """Writes the window that ends with the newest row.

    Args:
      num_transitions: the number of trained transitions; after them comes padding.
      learner_steps: as for `add`.
    """
    config = self._config
    rows = self._writer.newest_rows(config.sequence_length + 1)
    priority = self._priority(rows[-(config.trace_length + 1) :])
    first = self._next_window * config.sequence_period  # trained row
    boundaries = (first - config.burn_in_length, first, first + num_transitions)
    state_rows = [max(row, _PADDED_ROW) for row in boundaries]
    self._writer.write_window(rows, state_rows, priority, learner_steps)
    self._next_window += 1
    self.num_windows += 1
    oldest = first + config.sequence_period - config.burn_in_length
    self._writer.forget_states_before(max(oldest, _PADDED_ROW))
    self._writer.wait(_MAX_PENDING_ITEMS)

  def _priority(self, rows: np.ndarray) -> float:
    """Returns the priority by the actor's Q-values in the T + 1 trained rows."""
    transitions = rows[1:]  # row t + 1 holds transition t
    priority = self._priority_fn(
      rows['q'], *(transitions[field] for field in _WINDOW_FIELDS)
    )
    # The priority may not depend on the others, see `actor_priorities`.
    if not all(np.isfinite(x).all() for x in (priority, rows['q'], rows['reward'])):
      # Reverb's table would stop serving, and all nodes would wait without a message.
      raise FloatingPointError(
        f'the priority of a window is {priority}, and either it or Q-values or rewards '
        'are not finite: learning diverged, or the environment is at fault'
      )
    return priority


class _EpisodeWriter:
  """Writes an episode to Reverb in cells, and windows that refer to these cells.

  Frames are written in blocks, see `observations.base.Kind`, and recurrent states in
  the rows where a window needs them. Scalars are one cell a window and field: one cell
  a row would cost more than the frames.

  Attributes:
    rows_per_window: the number of rows in the blocks of a window.
  """

  def __init__(
    self,
    client: reverb.Client,
    config: R2D2Config,
    environment_spec: specs.EnvironmentSpec,
    should_stop: Callable[[], bool],
  ):
    self._client = client
    self._should_stop = should_stop
    self._has_gate = config.num_replay_shards > 1
    kind = kinds.make(environment_spec.observations, config)
    self._flatten = kind.flatten
    # Nested observations have blocks for each leaf, all of the same length.
    self._stored_spec = kind.stored_spec
    self._block = tree.map_structure(
      lambda spec: np.zeros(spec.shape[1:], spec.dtype.as_numpy_dtype),
      self._stored_spec,
    )
    self._block_length = kind.block_length
    # By row of the block, where its frame goes, or its tuple of frames.
    self._slots = [
      tree.map_structure(lambda x, i=i: x[i, ...], self._block)
      for i in range(kind.block_length)
    ]
    self._is_nested = isinstance(self._block, tuple)
    num_blocks = tree.map_structure(lambda spec: spec.shape[0], self._stored_spec)
    self._num_blocks = max(tree.flatten(num_blocks))
    self.rows_per_window = self._num_blocks * self._block_length
    # A row comes with at most one block, one state and one window; an episode's first
    # rows also with the padding before them.
    self._writer = client.trajectory_writer(
      num_keep_alive_refs=4 * self.rows_per_window,
      get_signature_timeout_ms=_SIGNATURE_TIMEOUT_MS,
    )
    keep_alive = {
      'frames': num_blocks,
      'core_state': tree.map_structure(
        lambda _: self.rows_per_window, core_state_spec(config)
      ),
      'window': dict.fromkeys(_WINDOW_FIELDS, 1),
      'learner_steps': 1,
    }
    for path, num_cells in tree.flatten_with_path(keep_alive):
      self._writer.configure(path, num_keep_alive_refs=num_cells, max_chunk_length=1)
    # The newest rows and their Q-values, at least as many as a window has.
    num_actions = environment_spec.actions.num_values
    self._rows = np.zeros(
      2 * self.rows_per_window,
      [*_WINDOW_FIELDS.items(), ('q', np.float32, (num_actions,))],
    )
    self._reset()

  def _reset(self):
    self._num_rows = 0
    # Where the writer's history has, in this episode, the newest blocks and the states.
    self._blocks: collections.deque[int] = collections.deque(maxlen=self._num_blocks)
    self._states: dict[int, int] = {}  # by row

  def append_row(self, step: Step, q: np.ndarray):
    """Appends a row, and writes the block that it completes, if any."""
    if self._num_rows == len(self._rows):
      self._num_rows //= 2
      self._rows[: self._num_rows] = self._rows[self._num_rows :]
    self._rows[self._num_rows] = (*step[1:], q)
    slot = self._slots[self._num_rows % self._block_length]
    if self._is_nested:
      for frame, part in zip(self._flatten(step.observation), slot, strict=True):
        _copy(frame, part)
    else:
      _copy(step.observation, slot)
    self._num_rows += 1
    if self._num_rows % self._block_length == 0:
      self._blocks.append(self._write({'frames': self._block}))

  def newest_rows(self, num: int) -> np.ndarray:
    """Returns rows [num] with a field for each of `_WINDOW_FIELDS` and for `q`."""
    return self._rows[self._num_rows - num : self._num_rows]

  def write_state(self, row: int, core_state):
    """Writes the recurrent state before a row."""
    self._states[row] = self._write({'core_state': core_state})

  def has_state(self, row: int) -> bool:
    """Returns whether the state before a row was written, and is not forgotten."""
    return row in self._states

  def forget_states_before(self, first_row: int):
    """Forgets states that no further window needs."""
    self._states = {row: at for row, at in self._states.items() if row >= first_row}

  def write_window(
    self, rows: np.ndarray, state_rows: list[int], priority: float, learner_steps: int
  ):
    """Inserts the window of the newest blocks into the table.

    Args:
      rows: [L + 1], from `newest_rows`.
      state_rows: the three rows whose states the window holds.
      priority: the window's.
      learner_steps: the age of the parameters that acted.
    """
    columns = {field: np.ascontiguousarray(rows[field]) for field in _WINDOW_FIELDS}
    at = self._write({'window': columns, 'learner_steps': np.int64(learner_steps)})
    states = [self._states[row] for row in state_rows]
    history = self._writer.history
    hidden, cell = history['core_state']
    blocks = list(self._blocks)
    window = Window(
      steps=Step(
        observation=tree.map_structure_up_to(
          self._stored_spec,
          lambda spec, column: column[blocks[-spec.shape[0] :]],
          self._stored_spec,
          history['frames'],
        ),
        **{field: history['window'][field][at] for field in _WINDOW_FIELDS},
      ),
      core_state=tuple(snt.LSTMState(hidden[i], cell[i]) for i in states),
      learner_steps=history['learner_steps'][at],
    )
    self._writer.create_item(tables.TABLE, priority, window)
    if self._has_gate:
      self._writer.create_item(tables.GATE, 1.0, window.learner_steps)

  def end_episode(self):
    """Waits until the server has all windows; the next row starts an episode."""
    self.wait(max_pending=0)
    self._writer.end_episode()
    self._reset()

  def wait(self, max_pending: int):
    """Waits until at most `max_pending` items are unconfirmed.

    `create_item` never waits, so without this the actor would run ahead of the rate
    limiter, filling its own memory.

    A connection may be dead, as after a cut of the network. Who only waits for an
    answer does not notice, and would wait for ever; who asks something does. Then
    Reverb connects again, and writes again what was not confirmed.

    Raises:
      Stopped: the program stops.
    """
    started = told = asked = time.monotonic()
    while True:
      try:
        self._writer.flush(max_pending, timeout_ms=500)
        return
      except reverb.errors.DeadlineExceededError:
        if self._should_stop():
          raise Stopped() from None
        now = time.monotonic()
        if now - asked >= _PING_PERIOD:
          asked = now
          tables.info(self._client)
        if now - told >= _STALL_PERIOD:
          told = now
          logging.warning(
            'Acting has waited for %.0f s: the replay takes no more windows until the '
            'learner samples, or does not answer',
            now - started,
          )

  def _write(self, cells) -> int:
    """Hands cells to Reverb's writer; returns their place in its history."""
    self._writer.append(cells)
    return self._writer.episode_steps - 1


def _copy(frame: np.ndarray, slot: np.ndarray):
  """Copies a frame to its place in a block.

  Raises:
    ValueError, TypeError: its shape or dtype is not that of the environment's spec.
  """
  if frame.shape != slot.shape:
    raise ValueError(
      f'an observation has shape {frame.shape}, but the environment spec says '
      f'{slot.shape}'
    )
  np.copyto(slot, frame, casting='no')
