"""`results/aggregates.py`: written-out arithmetic, and the numbers of rliable."""

import numpy as np
import pytest

from r2d2_acme.results import aggregates

_SCORES = np.random.default_rng(1).lognormal(size=[5, 4])  # [runs, tasks]


def test_interquartile_mean_leaves_out_the_outer_quarters():
  scores = np.array([100.0, 1, 2, 3, 4, -50, 6, 7])  # without -50, 1, 7 and 100
  assert aggregates.interquartile_mean(scores) == (2 + 3 + 4 + 6) / 4
  nine = np.append(scores, 8.0)  # two of nine from each end: -50, 1 and 8, 100
  assert aggregates.interquartile_mean(nine) == (2 + 3 + 4 + 6 + 7) / 5
  for few in ([3.0], [1.0, 2], [0.0, 1, 8]):
    assert aggregates.interquartile_mean(np.array(few)) == np.mean(few)


def test_profile_is_the_share_of_runs_above_each_threshold():
  scores = np.array([0.0, 1, 1, 4])
  profile = aggregates.performance_profile(scores, np.array([-1.0, 0, 0.5, 1, 4]))
  assert profile.tolist() == [1, 0.75, 0.75, 0.25, 0]


def test_statistics_take_leading_dimensions():
  batch = np.stack([_SCORES.ravel(), 2 * _SCORES.ravel()])
  for statistic in (
    aggregates.interquartile_mean,
    lambda x: aggregates.performance_profile(x, np.array([0.5, 1.0])),
  ):
    expected = [statistic(row) for row in batch]
    np.testing.assert_allclose(statistic(batch), expected, rtol=1e-12)


def test_interval_of_two_runs_has_the_probabilities_of_their_resamples():
  """Of two runs, resamples are (0, 0), (0, 1), (1, 0) and (1, 1), each a quarter."""
  two = [np.array([0.0, 1.0])]
  assert aggregates.estimate(two) == (0.5, 0, 1)
  assert aggregates.estimate(two, confidence=0.4) == (0.5, 0.5, 0.5)


def test_resamples_are_drawn_within_tasks():
  tasks = [np.array([1.0, 1.0, 1.0]), np.array([5.0, 5.0])]
  assert aggregates.estimate(tasks, lambda x: x.mean(axis=-1)) == (2.6, 2.6, 2.6)


def test_single_run_of_a_task_has_no_interval():
  value, low, high = aggregates.estimate([np.array([1.0, 2.0]), np.array([6.0])])
  assert value == 3
  assert np.isnan([low, high]).all()
  profile = aggregates.estimate_profile([np.array([1.0])], np.array([0.0, 2.0]))
  assert profile.value.tolist() == [1, 0]
  assert np.isnan(profile.low).all()


def test_numbers_are_those_of_rliable():
  library = pytest.importorskip('rliable.library')
  metrics = pytest.importorskip('rliable.metrics')
  tasks = list(_SCORES.T)
  np.random.seed(0)  # rliable draws from the global generator
  points, intervals = library.get_interval_estimates(
    {'x': _SCORES}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=500
  )
  ours = aggregates.estimate(tasks)
  assert ours.value == pytest.approx(points['x'].item(), rel=1e-12)
  # The ends are percentiles of random resamples, theirs of 500: some 4 % of the width.
  width = ours.high - ours.low
  np.testing.assert_allclose(ours[1:], intervals['x'].ravel(), atol=0.15 * width)
  thresholds = np.linspace(0, 4, 9)
  points, intervals = library.create_performance_profile(
    {'x': _SCORES}, thresholds, reps=100
  )
  profile = aggregates.estimate_profile(tasks, thresholds)
  np.testing.assert_allclose(profile.value, points['x'], atol=1e-12)
  # Profiles are multiples of 1/20. Theirs are percentiles of 100 resamples.
  np.testing.assert_allclose(profile[1:], intervals['x'], atol=0.1 + 1e-9)
