"""What travels between the rooms: steps, windows, batches, recurrent states."""

from typing import NamedTuple

import numpy as np
import sonnet as snt
from acme import specs, types

from r2d2_acme.config import R2D2Config


class Observation(NamedTuple):
  """What the network sees at step t. Leading axes: none, [B] or [T, B].

  Attributes:
    observation: o_t, uint8 [..., H, W, C x frame_stack] or float32 [..., D].
    action: int32 [...], a_{t-1}; 0 at an episode's first step.
    reward: float32 [...], r_{t-1}, unclipped; 0 at an episode's first step.
  """

  observation: types.NestedArray
  action: types.NestedArray
  reward: types.NestedArray


class Step(NamedTuple):
  """One row of replay: an observation and the transition that led to it.

  Attributes:
    observation: o_t, a single frame: uint8 [H, W, C] or float32 [D].
    action: int32 [], a_{t-1}.
    reward: float32 [], r_{t-1}.
    discount: float32 [], the environment's discount of that transition: 0 after a
      termination, else 1.
    mask: float32 [], 1 on a real observation, 0 on padding.
  """

  observation: types.NestedArray
  action: types.NestedArray
  reward: types.NestedArray
  discount: types.NestedArray
  mask: types.NestedArray


class Window(NamedTuple):
  """One replay item: L = burn-in + trace transitions between L + 1 rows.

  Attributes:
    steps: a `Step` of arrays [L + 1, ...], but for its frames, [blocks, rows, ...] as
      `tables.frame_blocks` has it: the newest L + 1 rows are those, and the
      `frame_stack - 1` before them what the dataset rebuilds the stacks from.
    core_state: the actor's recurrent state before the window's first row, its first
      trained row, and the row after its last trained transition (whose Q-values are
      its bootstrap), a tuple of three. The first is the stored state, the other two
      are what Delta-Q compares with.
    learner_steps: int64 [], the age of the parameters that acted, in learner steps.
  """

  steps: Step
  core_state: types.NestedArray
  learner_steps: types.NestedArray


class Batch(NamedTuple):
  """B windows, time-major, stacks rebuilt. R = burn-in + trace + 1 rows.

  Attributes:
    observations: `Observation` of [R, B, ...], row t the input of step t.
    discount: float32 [R, B], the environment's discount of the transition into t.
    mask: float32 [R, B], 1 on real rows.
    core_state: [B, 3, ...], those three of `Window`.
    learner_steps: int64 [B], as in `Window`.
    keys: uint64 [B], the items' names in the table.
    probabilities: float64 [B], with which they were drawn.
    table_size: int64 [B], windows in the table when they were drawn.
  """

  observations: Observation
  discount: types.NestedArray
  mask: types.NestedArray
  core_state: types.NestedArray
  learner_steps: types.NestedArray
  keys: types.NestedArray
  probabilities: types.NestedArray
  table_size: types.NestedArray


def core_state_spec(config: R2D2Config) -> snt.LSTMState:
  """Specs of one environment's recurrent state, without a batch axis."""
  spec = specs.Array((config.core_size,), np.float32)
  return snt.LSTMState(hidden=spec, cell=spec)
