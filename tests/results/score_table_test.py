"""`results/score_table.py`: its file, and what the runs come to over the seeds."""

import dataclasses
import math

import numpy as np
import pytest

from r2d2_acme.results import atari_scores, score_table


def _row(game: str, normalized: float, seed: int = 0, setting='') -> score_table.Row:
  scores = atari_scores.GAMES[game]
  value = scores.random + normalized * (scores.human - scores.random)
  return score_table.Row(
    game, setting, seed, value, normalized, 10, 'paper', 'ckpt-3', 7, 8
  )


def test_table_comes_back_from_its_file(tmp_path):
  rows = [_row('pong', 0.5), _row('hero', -0.25, 2, 'conv_channels=(8,8,8)')]
  path = tmp_path / 'scores.csv'
  score_table.write(path, rows)
  assert score_table.read(path) == [
    dataclasses.replace(row, mean_return=float(f'{row.mean_return:.6g}'))
    for row in rows
  ]


@pytest.mark.parametrize(
  'damage', [b'\xff\xfe', b'\0', b'x' * 200_000, b'"', b'pong,1'], ids=lambda x: x[:6]
)
def test_damaged_line_of_the_table_is_none(tmp_path, damage):
  path = tmp_path / 'scores.csv'
  score_table.write(path, [_row('alien', 0.5), _row('pong', 0.25)])
  rows = score_table.read(path)
  header, first, *others = path.read_bytes().splitlines()
  path.write_bytes(b'\n'.join([header, first, damage, *others]))
  assert score_table.read(path) == rows
  path.write_bytes(damage)
  assert score_table.read(path) == []


def test_aggregates_are_over_the_same_games_for_both():
  rows = [_row('pong', 0.5), _row('hero', 3), _row('qbert', 1)]
  paper = [41.7 / 35.3, 38510.1 / 29799.4, 408686.1 / 13291.1]
  statistics = score_table.summarize(rows)
  ours = {s.name: float(s.ours.value) for s in statistics}
  assert ours == pytest.approx({'interquartile mean': 1.5, 'median': 1, 'mean': 1.5})
  theirs = {s.name: s.paper for s in statistics}
  mean = sum(paper) / 3
  assert theirs == pytest.approx(
    {'interquartile mean': mean, 'median': paper[1], 'mean': mean}
  )


def test_interquartile_mean_is_over_runs_and_the_median_over_games():
  scores = {'pong': (0, 1, 5), 'hero': (2, 3, 10), 'qbert': (4, 5, 6)}
  rows = [_row(g, x, i) for g, xs in scores.items() for i, x in enumerate(xs)]
  (iqm, median, mean) = score_table.summarize(rows)
  assert iqm.ours.value == pytest.approx((2 + 3 + 4 + 5 + 5) / 5)  # of nine
  assert median.ours.value == pytest.approx(5)  # of 2, 5 and 5
  assert mean.ours.value == pytest.approx(4)
  for statistic in (iqm, median, mean):
    assert statistic.ours.low < statistic.ours.value < statistic.ours.high


def test_settings_are_summarized_apart_and_other_environments_left_out():
  rows = [_row('pong', 1), _row('pong', 3, setting='n_step=1')]
  cart_pole = score_table.Row(
    'CartPole-v1', '', 0, 9.0, math.nan, 1, '', 'ckpt-1', 1, 1
  )
  means = {
    s.setting: s.ours.value
    for s in score_table.summarize([*rows, cart_pole])
    if s.name == 'mean'
  }
  assert means == {'': 1, 'n_step=1': 3}
  assert score_table.summarize([cart_pole]) == []


def test_prediction_is_the_published_formula():
  """Of Atari-5, with scores of 0, 100, 900 and 9,900 per cent and one below random."""
  scores = np.array([1.0, 9.0, -3.0, 99.0, 0.0])
  logs = 0.3820 * np.log10(101) + 0.0679 * np.log10(901) + 0.1241 * np.log10(9901)
  expected = (10**logs - 1) / 100
  assert atari_scores.predict_median('atari5', scores) == pytest.approx(expected)
  games = atari_scores.SUITES['atari5']
  assert games == ['battle_zone', 'double_dunk', 'name_this_game', 'phoenix', 'qbert']
  rows = [_row(game, x) for game, x in zip(games, scores, strict=True)][::-1]
  (prediction,) = [s for s in score_table.summarize(rows) if 'predicted' in s.name]
  assert prediction.ours.value == pytest.approx(expected)


@pytest.mark.parametrize('suite', atari_scores.WEIGHTS)
def test_predictions_are_near_the_median_of_the_papers_scores(suite):
  """A wrong weight would show: the predictions are made for such scores."""
  normalized = {
    game: atari_scores.human_normalized(game, scores.paper)
    for game, scores in atari_scores.GAMES.items()
  }
  subset = np.array([normalized[game] for game in atari_scores.SUITES[suite]])
  predicted = atari_scores.predict_median(suite, subset)
  assert predicted == pytest.approx(np.median(list(normalized.values())), rel=0.25)


def test_printed_tables_and_figure(tmp_path, capsys, monkeypatch):
  monkeypatch.setenv('COLUMNS', '160')
  rows = [_row('pong', x, seed) for seed, x in enumerate((0.5, 1.0))]
  statistics = score_table.summarize(rows)
  score_table.print_tables(rows, statistics, 4)
  out = capsys.readouterr().out
  assert '2 of 4 runs' in out
  assert '75.0 % [50.0, 100.0]' in out
  assert '118.1 %' in out
  score_table.write_summary(tmp_path / 'summary.csv', statistics)
  assert (tmp_path / 'summary.csv').read_text().splitlines()[:2] == [
    'setting,statistic,value,low,high,paper',
    ',interquartile mean,0.75,0.5,1,1.1813',
  ]
  score_table.draw_profiles(tmp_path / 'profiles.png', rows)
  assert (tmp_path / 'profiles.png').read_bytes().startswith(b'\x89PNG')
