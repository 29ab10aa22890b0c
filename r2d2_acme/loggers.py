"""Acme loggers, put together: terminal, CSV and TensorBoard under one workdir."""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from acme.utils import counting, loggers
from acme.utils.loggers import tf_summary

_COUNTS = ('actor_steps', 'actor_frames', 'learner_steps', 'wall_time')

# Fixed, so that a resumed run goes on in the same columns.
COLUMNS = {
  'learner': (
    'loss',
    'gradient_norm',
    'mean_abs_td',
    'max_abs_td',
    'mean_priority',
    'mean_q',
    'max_q',
    'parameter_age',
    'delta_q_initial',
    'delta_q_final',
    'replay_size',
    'sampled_to_inserted',
    'steps_per_second',
    *_COUNTS,
  ),
  'actor': (
    'episode_return',
    'episode_length',
    'epsilon',
    'steps_per_second',
    'actor_episodes',
    *_COUNTS,
  ),
  'evaluator': ('episode_return', 'episode_length', 'evaluator_episodes', *_COUNTS),
}


def make_logger(workdir: str | None, role: str, index: int = 0) -> loggers.Logger:
  """The logger of the `index`-th node of a role ('learner', 'actor', 'evaluator').

  Rows go to `<workdir>/logs/<label>/logs.csv` and `<workdir>/tb/<label>`, all of
  them, and to the terminal, at most one a second. The label is the role, with `_i`
  for the i-th node from 1 on. Without a workdir there is the terminal only.
  """
  label = f'{role}_{index}' if index else role
  terminal = loggers.TimeFilter(
    loggers.TerminalLogger(label, print_fn=print), time_delta=1.0
  )
  to = [terminal]
  if workdir is not None:
    to.append(loggers.CSVLogger(workdir, label=label, add_uid=False, flush_every=1))
    steps_key = 'learner_steps' if role == 'learner' else 'actor_steps'
    to.append(
      tf_summary.TFSummaryLogger(
        os.path.join(workdir, 'tb', label), label, steps_key=steps_key
      )
    )
  return _FixedColumns(loggers.Dispatcher(to, loggers.to_numpy), COLUMNS[role])


class _FixedColumns(loggers.Logger):
  """Passes on the same columns in every row; what is not counted yet is 0."""

  def __init__(self, to: loggers.Logger, columns: Sequence[str]):
    self._to = to
    self._columns = columns

  def write(self, values: Mapping[str, Any]):
    self._to.write({column: values.get(column, 0) for column in self._columns})

  def close(self):
    self._to.close()


class WallTimeCounter(counting.Counter):
  """The root counter. It also counts `wall_time`: seconds over all sittings."""

  def __init__(self, counts: Mapping[str, float] | None = None):
    """`counts` are those of a checkpoint, to go on from."""
    super().__init__()
    counts = dict(counts or {})
    self._started = time.time() - counts.pop('wall_time', 0.0)
    self.increment(**counts)

  def get_counts(self):
    return {**super().get_counts(), 'wall_time': time.time() - self._started}
