"""The types that rooms exchange: observations, steps, windows, batches, states."""

from typing import NamedTuple

import numpy as np
import sonnet as snt
from acme import specs, types

from r2d2_acme.config import R2D2Config

# The Q-value of an action that the environment's mask forbids: less than any other, and
# finite, so that a difference of two is 0 and not NaN.
INVALID_Q = -1e9


class Observation(NamedTuple):
  """What the network sees at step t, with leading axes [], [B] or [T, B].

  Attributes:
    observation: the input made of o_t and of earlier frames if they are stacked, for
      example uint8 [..., H, W, C x frame_stack] or float32 [..., D]; of an environment
      with nested observations a tuple, see `observations.nested`.
    action: int32 [...], a_{t-1}; 0 at an episode's first step.
    reward: float32 [...], r_{t-1}, clipped with `clip_rewards`; 0 at an
      episode's first step.
  """

  observation: types.NestedArray
  action: types.NestedArray
  reward: types.NestedArray


class Step(NamedTuple):
  """One row of replay: an observation and the transition that led to it.

  Attributes:
    observation: o_t, a single frame, for example uint8 [H, W, C] or float32 [D].
    action: int32 [], a_{t-1}.
    reward: float32 [], r_{t-1}.
    discount: float32 [], the environment's discount of that transition: 0 at a
      termination, else 1.
    mask: float32 [], 1 on a real observation, 0 on padding.
  """

  observation: types.NestedArray
  action: types.NestedArray
  reward: types.NestedArray
  discount: types.NestedArray
  mask: types.NestedArray


class Window(NamedTuple):
  """What replay stores, samples and prioritizes: L transitions between L + 1 rows.

  L is `sequence_length`, the sum of burn-in and trace.

  Attributes:
    steps: a `Step` of arrays [L + 1]. Its observations are the exception: they are
      frames in blocks [num_blocks, block_length, ...], see `observations.base.Kind`.
    core_state: a tuple of three, the actor's recurrent states before the window's first
      row, before its first trained row, and before the row after its last trained
      transition, whose Q-values are the bootstrap. The first is the stored state from
      which the learner unrolls; Delta-Q compares with the other two.
    learner_steps: int64 [], the age of the parameters that acted, in learner steps.
  """

  steps: Step
  core_state: types.NestedArray
  learner_steps: types.NestedArray


class Batch(NamedTuple):
  """B windows, time-major, with whole inputs; each has R = L + 1 rows.

  Attributes:
    observations: an `Observation` of [R, B, ...]; row t is what the network sees at
      step t.
    discount: float32 [R, B], the environment's discount of the transition to row t.
    mask: float32 [R, B], 1 on real rows, 0 on padding.
    core_state: [B, 3, ...], the three states of each `Window`.
    learner_steps: int64 [B], as in `Window`.
    keys: uint64 [B], the windows' keys in the table.
    probabilities: float64 [B], with which the windows were drawn.
    table_size: int64 [B], the number of windows in the table when each was drawn.
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
  """Returns the specs of one environment's recurrent state, without a batch axis."""
  spec = specs.Array((config.core_size,), np.float32)
  return snt.LSTMState(hidden=spec, cell=spec)
