"""The table of a sweep: the returns of its runs, and what they come to over the seeds.

Scores of Atari games stand beside the human's and the paper's.
"""

import csv
import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

import numpy as np
from rich import console, table

from r2d2_acme.results import aggregates, atari_scores, plotting, tables
from r2d2_acme.results.aggregates import Estimate

if TYPE_CHECKING:  # it brings TensorFlow, whose memory runs that train need
  from r2d2_acme.results.evaluation import Evaluation

_THRESHOLDS = np.concatenate([np.linspace(0, 2, 101), np.linspace(2, 20, 91)[1:]])


@dataclasses.dataclass(frozen=True)
class Row:
  """The result of one run, a row of the CSV.

  Attributes:
    task: the name of the game or environment.
    setting: what distinguishes the run from others on the task, apart from its seed.
    seed: of the run.
    mean_return: the mean return of `episodes` episodes.
    human_normalized: 0 for random play, 1 for the human; NaN if it is no Atari game.
    protocol: how an Atari game was played, see `R2D2Config.atari_protocol`; '' for
      others. The paper's returns are of the protocol 'paper'.
    checkpoint, learner_steps, actor_frames: of the network that played.
  """

  task: str
  setting: str
  seed: int
  mean_return: float
  human_normalized: float
  episodes: int
  protocol: str
  checkpoint: str
  learner_steps: int
  actor_frames: int


class Statistic(NamedTuple):
  """An aggregate of human-normalised scores.

  Attributes:
    setting: of the runs.
    name: of the aggregate.
    ours: over all runs of that setting, with its interval.
    paper: of the paper's R2D2 over the same games.
  """

  setting: str
  name: str
  ours: Estimate
  paper: float


def make_row(
  task: str, setting: str, seed: int, result: 'Evaluation', protocol: str
) -> Row:
  """Returns the row of a run from its evaluation; see `Row`."""
  mean = float(result.returns.mean())
  game = atari_scores.find_game(task)
  return Row(
    task,
    setting,
    seed,
    mean,
    math.nan if game is None else atari_scores.human_normalized(game, mean),
    len(result.episodes),
    protocol,
    os.path.basename(result.checkpoint),
    int(result.counts.get('learner_steps', 0)),
    int(result.counts.get('actor_frames', 0)),
  )


def read(path: pathlib.Path) -> list[Row]:
  """Reads rows; leaves out damaged ones and those of another version."""
  if not path.exists():
    return []
  lines = path.read_text(errors='replace').splitlines()
  rows = []
  types = get_type_hints(Row)
  for line in lines[1:]:
    try:
      names, values = csv.reader([lines[0], line])
      cells = dict(zip(names, values, strict=True))
      rows.append(Row(**{name: types[name](cells[name]) for name in types}))
    except (KeyError, TypeError, ValueError, csv.Error):
      continue
  return rows


def write(path: pathlib.Path, rows: Sequence[Row]):
  """Writes the rows, replacing the file in one step."""
  columns = [field.name for field in dataclasses.fields(Row)]
  tables.write_csv(path, columns, map(dataclasses.astuple, rows))


def summarize(rows: Sequence[Row]) -> list[Statistic]:
  """Returns aggregates over the Atari games of each setting.

  They are the interquartile mean of all runs, and the median and the mean of the games'
  means over their runs. If the games are those of a subset in `atari_scores.WEIGHTS`,
  the predicted median over the 57 games follows.
  """
  statistics = []
  for setting, games in _scores_by_setting(rows).items():
    scores = list(games.values())
    paper = [
      np.array([atari_scores.human_normalized(game, atari_scores.GAMES[game].paper)])
      for game in games
    ]
    ours, theirs = aggregates.estimate(scores), aggregates.estimate(paper)
    statistics.append(
      Statistic(setting, 'interquartile mean', ours, float(theirs.value))
    )
    for name, reduce in _reductions(list(games)).items():
      ours, theirs = (
        aggregates.estimate(x, aggregates.over_tasks(reduce, list(map(len, x))))
        for x in (scores, paper)
      )
      statistics.append(Statistic(setting, name, ours, float(theirs.value)))
  return statistics


def write_summary(path: pathlib.Path, statistics: Sequence[Statistic]):
  """Writes a row for each statistic."""
  columns = ('setting', 'statistic', 'value', 'low', 'high', 'paper')
  tables.write_csv(path, columns, ((s[0], s[1], *s.ours, s.paper) for s in statistics))


def print_tables(rows: Sequence[Row], statistics: Sequence[Statistic], num_runs: int):
  """Prints a line for each task and setting, and below it the aggregates."""
  terminal = console.Console()
  has_settings = any(row.setting for row in rows)
  printed = table.Table(title=f'{len(rows)} of {num_runs} runs')
  printed.add_column('task')
  if has_settings:
    printed.add_column('setting')
  headers = ['runs', 'return', 'million\nframes']
  if statistics:
    headers[2:2] = ['human-\nnormalised', "paper's\nreturn", 'human-\nnormalised']
  for header in headers:
    printed.add_column(header, justify='right')
  if statistics:
    printed.add_column('protocol')
  for (task, setting), group in _group(rows).items():
    cells = [task, *([setting] if has_settings else []), f'{len(group)}']
    cells.append(_show(aggregates.estimate([_column(group, 'mean_return')])))
    if statistics:
      cells += _show_atari(task, group)
    frames = _column(group, 'actor_frames').mean() / 1e6
    protocols = [' / '.join(sorted({row.protocol for row in group}))]
    printed.add_row(*cells, f'{frames:,.1f}', *(protocols if statistics else []))
  terminal.print(printed)
  if statistics:
    below = table.Table(title='human-normalised scores over games')
    below.add_column('setting' if has_settings else '')
    for header in ('statistic', 'ours', "paper's"):
      below.add_column(header, justify='left' if header == 'statistic' else 'right')
    for s in statistics:
      ours = _show(Estimate(*(100 * x for x in s.ours)), ' %')
      below.add_row(s.setting, s.name, ours, f'{100 * s.paper:,.1f} %')
    terminal.print(below)


def draw_profiles(path: pathlib.Path, rows: Sequence[Row]):
  """Writes a figure with the performance profile of each setting, in its 95 % band."""
  plt = plotting.pyplot()
  figure, axes = plt.subplots(figsize=(7, 4.5), layout='constrained')
  for setting, games in _scores_by_setting(rows).items():
    profile = aggregates.estimate_profile(list(games.values()), _THRESHOLDS)
    label = plotting.escape(setting or 'all runs')
    axes.step(_THRESHOLDS, profile.value, where='post', label=label)
    axes.fill_between(
      _THRESHOLDS, profile.low, profile.high, step='post', alpha=0.2, linewidth=0
    )
  axes.set_xscale('symlog', linthresh=2)
  axes.set_xlabel('human-normalised score s')
  axes.set_ylabel('share of runs with a score above s')
  axes.grid(alpha=0.3)
  axes.legend(fontsize='small')
  figure.savefig(path, dpi=120)
  plt.close(figure)


def _reductions(games: Sequence[str]) -> dict[str, Callable[[np.ndarray], Any]]:
  """Returns what is made of the games' mean scores, float64 [..., number of games]."""
  reductions: dict[str, Callable[[np.ndarray], Any]] = {
    'median': functools.partial(np.median, axis=-1),
    'mean': functools.partial(np.mean, axis=-1),
  }
  subsets = [x for x, weights in atari_scores.WEIGHTS.items() if {*weights} == {*games}]
  if subsets:
    (subset,) = subsets
    order = [games.index(game) for game in atari_scores.WEIGHTS[subset]]

    def predict(scores: np.ndarray) -> np.ndarray:
      return atari_scores.predict_median(subset, scores[..., order])

    reductions['predicted median of 57 games'] = predict
  return reductions


def _group(rows: Sequence[Row]) -> Mapping[tuple[str, str], list[Row]]:
  groups: dict[tuple[str, str], list[Row]] = {}
  for row in rows:
    groups.setdefault((row.task, row.setting), []).append(row)
  return groups


def _column(rows: Sequence[Row], name: str) -> np.ndarray:
  return np.array([getattr(row, name) for row in rows], float)


def _scores_by_setting(rows: Sequence[Row]) -> dict[str, dict[str, np.ndarray]]:
  """Returns the human-normalised scores of the runs, by setting and by Atari game."""
  scores: dict[str, dict[str, np.ndarray]] = {}
  for (task, setting), group in _group(rows).items():
    game = atari_scores.find_game(task)
    if game is not None:
      scores.setdefault(setting, {})[game] = _column(group, 'human_normalized')
  return scores


def _show(estimate: Estimate, unit: str = '') -> str:
  """Returns a value and, if there is one, its interval."""
  text = f'{estimate.value:,.1f}{unit}'
  if not np.isnan(estimate.low):
    text += f' [{estimate.low:,.1f}, {estimate.high:,.1f}]'
  return text


def _show_atari(task: str, group: Sequence[Row]) -> list[str]:
  """Returns the cells that only Atari games have."""
  game = atari_scores.find_game(task)
  if game is None:
    return ['', '', '']
  ours = aggregates.estimate([_column(group, 'human_normalized')])
  paper = atari_scores.GAMES[game].paper
  return [
    _show(Estimate(*(100 * x for x in ours)), ' %'),
    f'{paper:,.1f}',
    f'{100 * atari_scores.human_normalized(game, paper):,.1f} %',
  ]
