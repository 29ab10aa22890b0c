"""Scores of random play, of a human and of the paper's R2D2 in the 57 Atari games.

Episodes begin with up to 30 no-ops and are cut off after 108,000 frames.

The scores of random play and of the human tester are from Badia et al., "Agent57"
(2020), appendix H. Google DeepMind's `dqn_zoo/atari_data.py` has the same numbers,
except for random play in Video Pinball, where it has 16256.9 instead of 0.0.

The scores of R2D2 are the final ones of three seeds in Kapturowski et al. (2019), table
4. Together with the other two columns they give the numbers in table 1: a mean of
4024.9 % (which 16256.9 would not give), and 52 games above the human. The median in
table 1, 1920.6 %, is that of Double Dunk. Table 4 has only one decimal of its score,
which gives 1922.7 %.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np


class Scores(NamedTuple):
  """Undiscounted returns in one game."""

  random: float
  human: float
  paper: float  # R2D2


GAMES = {
  'alien': Scores(227.8, 7127.7, 229496.9),
  'amidar': Scores(5.8, 1719.5, 29321.4),
  'assault': Scores(222.4, 742.0, 108197.0),
  'asterix': Scores(210.0, 8503.3, 999153.3),
  'asteroids': Scores(719.1, 47388.7, 357867.7),
  'atlantis': Scores(12850.0, 29028.1, 1620764.0),
  'bank_heist': Scores(14.2, 753.1, 24235.9),
  'battle_zone': Scores(2360.0, 37187.5, 751880.0),
  'beam_rider': Scores(363.9, 16926.5, 188257.4),
  'berzerk': Scores(123.7, 2630.4, 53318.7),
  'bowling': Scores(23.1, 160.7, 219.5),
  'boxing': Scores(0.1, 12.1, 98.5),
  'breakout': Scores(1.7, 30.5, 837.7),
  'centipede': Scores(2090.9, 12017.0, 599140.3),
  'chopper_command': Scores(811.0, 7387.8, 986652.0),
  'crazy_climber': Scores(10780.5, 35829.4, 366690.7),
  'defender': Scores(2874.5, 18688.9, 665792.0),
  'demon_attack': Scores(152.1, 1971.0, 140002.3),
  'double_dunk': Scores(-18.6, -16.4, 23.7),
  'enduro': Scores(0.0, 860.5, 2372.7),
  'fishing_derby': Scores(-91.7, -38.7, 85.8),
  'freeway': Scores(0.0, 29.6, 32.5),
  'frostbite': Scores(65.2, 4334.7, 315456.4),
  'gopher': Scores(257.6, 2412.5, 124776.3),
  'gravitar': Scores(173.0, 3351.4, 15680.7),
  'hero': Scores(1027.0, 30826.4, 39537.1),
  'ice_hockey': Scores(-11.2, 0.9, 79.3),
  'jamesbond': Scores(29.0, 302.8, 25354.0),
  'kangaroo': Scores(52.0, 3035.0, 14130.7),
  'krull': Scores(1598.0, 2665.5, 218448.1),
  'kung_fu_master': Scores(258.5, 22736.3, 233413.3),
  'montezuma_revenge': Scores(0.0, 4753.3, 2061.3),
  'ms_pacman': Scores(307.3, 6951.6, 42281.7),
  'name_this_game': Scores(2292.3, 8049.0, 58182.7),
  'phoenix': Scores(761.4, 7242.6, 864020.0),
  'pitfall': Scores(-229.4, 6463.7, 0.0),
  'pong': Scores(-20.7, 14.6, 21.0),
  'private_eye': Scores(24.9, 69571.3, 5322.7),
  'qbert': Scores(163.9, 13455.0, 408850.0),
  'riverraid': Scores(1338.5, 17118.0, 45632.1),
  'road_runner': Scores(11.5, 7845.0, 599246.7),
  'robotank': Scores(2.2, 11.9, 100.4),
  'seaquest': Scores(68.4, 42054.7, 999996.7),
  'skiing': Scores(-17098.1, -4336.9, -30021.7),
  'solaris': Scores(1236.3, 12326.7, 3787.2),
  'space_invaders': Scores(148.0, 1668.7, 43223.4),
  'star_gunner': Scores(664.0, 10250.0, 717344.0),
  'surround': Scores(-10.0, 6.5, 9.9),
  'tennis': Scores(-23.8, -8.3, -0.1),
  'time_pilot': Scores(3568.0, 5229.2, 445377.3),
  'tutankham': Scores(11.4, 167.6, 395.3),
  'up_n_down': Scores(533.4, 11693.2, 589226.9),
  'venture': Scores(0.0, 1187.5, 1970.7),
  'video_pinball': Scores(0.0, 17667.9, 999383.2),
  'wizard_of_wor': Scores(563.5, 4756.5, 144362.7),
  'yars_revenge': Scores(3092.9, 54576.9, 995048.4),
  'zaxxon': Scores(32.5, 9173.3, 224910.7),
}

# Subsets that predict the median over the 57 games, with a weight for each game, from
# Aitchison et al., "Atari-5: Distilling the Arcade Learning Environment down to Five
# Games" (2022). The authors' code fits the weights to published scores. We fitted them
# to the same scores in the same way, without an intercept: those of Atari-5 come out as
# published, in all four digits.
WEIGHTS: Mapping[str, Mapping[str, float]] = MappingProxyType(
  {
    'atari3': {'battle_zone': 0.3706, 'name_this_game': 0.5133, 'phoenix': 0.1015},
    'atari5': {
      'battle_zone': 0.3820,
      'double_dunk': 0.0679,
      'name_this_game': 0.3108,
      'phoenix': 0.1241,
      'qbert': 0.0805,
    },
    'atari10': {
      'amidar': 0.0825,
      'battle_zone': 0.1888,
      'bowling': 0.0559,
      'double_dunk': 0.0852,
      'frostbite': 0.0691,
      'kung_fu_master': 0.0986,
      'name_this_game': 0.1287,
      'phoenix': 0.1643,
      'qbert': 0.0592,
      'riverraid': 0.0486,
    },
  }
)

SUITES: Mapping[str, list[str]] = MappingProxyType(
  {**{name: list(games) for name, games in WEIGHTS.items()}, 'atari57': list(GAMES)}
)


def predict_median(suite: str, scores: np.ndarray) -> np.ndarray:
  """Predicts the median human-normalised score over the 57 games from a subset.

  It is 10^(Σ w log10(1 + max(0, s))) − 1, where s are scores in per cent.

  Args:
    suite: a key of `WEIGHTS`.
    scores: human-normalised, 1 for the human, in the order of the suite's games,
      float64 [..., number of games].

  Returns:
    float64 [...], 1 for the human.
  """
  weights = np.array(list(WEIGHTS[suite].values()))
  logs = np.log10(1 + 100 * np.maximum(0, scores))
  return (10 ** (logs @ weights) - 1) / 100


def find_game(name: str) -> str | None:
  """Returns the key in `GAMES` for `ms_pacman`, `MsPacman` or `ALE/MsPacman-v5`.

  It is None if the name is not that of one of the 57 games.
  """
  return _KEYS.get(_letters(name.removeprefix('ALE/').removesuffix('-v5')))


def human_normalized(game: str, value: float) -> float:
  """Returns (value - random) / (human - random): 0 for random play, 1 for the human."""
  scores = GAMES[game]
  return (value - scores.random) / (scores.human - scores.random)


def _letters(name: str) -> str:
  return name.lower().replace('_', '')


_KEYS = {_letters(game): game for game in GAMES}
