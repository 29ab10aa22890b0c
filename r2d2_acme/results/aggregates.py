"""Aggregates of the scores of several runs, with the uncertainty that few runs leave.

As recommended by Agarwal et al., "Deep RL at the Edge of the Statistical Precipice"
(2021): interquartile means, stratified-bootstrap intervals and performance profiles.
Their library, rliable, gives the same numbers.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
  """A statistic of the scores of several runs, and its confidence interval.

  Attributes:
    value: the statistic of the scores, float64 [...].
    low, high: the ends of the interval, float64 [...]; NaN where a task has only one
      run, which does not show how much runs differ.
  """

  value: np.ndarray
  low: np.ndarray
  high: np.ndarray


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
  """Returns the mean without the lowest and the highest quarter of the scores.

  A quarter is rounded down to whole scores. Fewer than four scores give the mean.

  Args:
    scores: float [..., N] of all runs on all tasks, normalised so that tasks compare.

  Returns:
    float64 [...].
  """
  scores = np.sort(scores, axis=-1)
  num_scores = scores.shape[-1]
  cut = num_scores // 4
  return scores[..., cut : num_scores - cut].mean(axis=-1)


def performance_profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
  """Returns the share of the runs whose score is above each threshold.

  Args:
    scores: float [..., N] of all runs on all tasks.
    thresholds: float [T].

  Returns:
    float64 [..., T], between 0 and 1.
  """
  return (scores[..., np.newaxis] > thresholds).mean(axis=-2)


def over_tasks(
  reduce: Callable[[np.ndarray], np.ndarray], num_runs: Sequence[int]
) -> Callable[[np.ndarray], np.ndarray]:
  """Returns a statistic of the tasks' means, for `estimate`.

  Args:
    reduce: maps the mean of each task over its runs, float64 [..., number of tasks], to
      float64 [...].
    num_runs: the number of runs of each task.
  """
  ends = np.cumsum(num_runs)[:-1]

  def statistic(scores: np.ndarray) -> np.ndarray:
    parts = np.split(scores, ends, axis=-1)
    return reduce(np.stack([part.mean(axis=-1) for part in parts], axis=-1))

  return statistic


def estimate(
  scores: Sequence[np.ndarray],
  statistic: Callable[[np.ndarray], np.ndarray] = interquartile_mean,
  *,
  confidence: float = 0.95,
  num_resamples: int = 2_000,
) -> Estimate:
  """Returns a statistic of scores with its stratified-bootstrap interval.

  The statistic is computed again for each of many resamples of the runs. A resample
  draws as many runs of each task as there are, with replacement, independently of the
  other tasks. The interval spans the percentiles of these values. The same scores give
  the same interval.

  Args:
    scores: for each task the scores of its runs, float [number of runs].
    statistic: maps scores, float [..., N], to float64 [..., *shape].
    confidence: the probability that the interval stands for.
    num_resamples: the number of resamples.
  """
  value = np.asarray(statistic(np.concatenate(scores)))
  if min(map(len, scores)) < 2:
    return Estimate(value, *2 * [np.full_like(value, np.nan)])
  rng = np.random.default_rng(0)
  draws = [
    task[rng.integers(len(task), size=(num_resamples, len(task)))] for task in scores
  ]
  tail = 50 * (1 - confidence)
  values = statistic(np.concatenate(draws, axis=-1))
  return Estimate(value, *np.percentile(values, [tail, 100 - tail], axis=0))


def estimate_profile(scores: Sequence[np.ndarray], thresholds: np.ndarray) -> Estimate:
  """Returns the performance profile with an interval at each threshold."""
  profile = functools.partial(performance_profile, thresholds=thresholds)
  return estimate(scores, profile)
