"""The table of Atari games: our scores beside the human's and the paper's."""

import csv
import dataclasses
import os
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, get_type_hints

from rich import console, table

from r2d2_acme.results import atari_scores

if TYPE_CHECKING:  # it brings TensorFlow, whose memory a run that trains needs
  from r2d2_acme.results.evaluation import Evaluation


@dataclasses.dataclass(frozen=True)
class Row:
  """One game's result, a row of the CSV.

  Attributes:
    game: the game's name.
    mean_return: the mean return of `episodes` episodes.
    human_normalized, paper_human_normalized: 0 for random play, 1 for the human.
    paper_return: the return of R2D2 in Kapturowski et al. (2019), table 4.
    protocol: how the game was played, see `R2D2Config.atari_protocol`. The paper's
      returns are of the protocol 'paper'.
    checkpoint, learner_steps, actor_frames: of the network that played.
  """

  game: str
  mean_return: float
  human_normalized: float
  paper_return: float
  paper_human_normalized: float
  episodes: int
  protocol: str
  checkpoint: str
  learner_steps: int
  actor_frames: int


def make_row(game: str, result: 'Evaluation', protocol: str) -> Row:
  """Returns the table's row for an evaluation in a game by a protocol."""
  mean = float(result.returns.mean())
  paper = atari_scores.GAMES[game].paper
  return Row(
    game,
    mean,
    atari_scores.human_normalized(game, mean),
    paper,
    atari_scores.human_normalized(game, paper),
    len(result.episodes),
    protocol,
    os.path.basename(result.checkpoint),
    int(result.counts.get('learner_steps', 0)),
    int(result.counts.get('actor_frames', 0)),
  )


def summarize(rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
  """Returns median and mean of the human-normalised scores, as (ours, paper's)."""
  ours = [row.human_normalized for row in rows]
  paper = [row.paper_human_normalized for row in rows]
  return {
    'median': (statistics.median(ours), statistics.median(paper)),
    'mean': (statistics.mean(ours), statistics.mean(paper)),
  }


def read(path: str) -> list[Row]:
  """Reads the games' rows; leaves out damaged ones and those of another version."""
  if not os.path.exists(path):
    return []
  with open(path, errors='replace') as file:
    lines = file.read().splitlines()
  rows = []
  types = get_type_hints(Row)
  for line in lines[1:]:
    try:
      names, values = csv.reader([lines[0], line])
      cells = dict(zip(names, values, strict=True))
      row = Row(**{name: types[name](cells[name]) for name in types})
    except (KeyError, TypeError, ValueError, csv.Error):
      continue  # also the rows of median and mean, which lack most values
    rows.append(row)
  return rows


def write(path: str, rows: Sequence[Row]):
  """Writes the rows and a summary of them, replacing the file in one step."""
  names = [field.name for field in dataclasses.fields(Row)]
  with open(f'{path}.new', 'w', newline='') as file:
    writer = csv.DictWriter(file, names, restval='')
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    for name, (ours, paper) in summarize(rows).items():
      writer.writerow(
        {'game': name, 'human_normalized': ours, 'paper_human_normalized': paper}
      )
  os.replace(f'{path}.new', path)


def print_table(rows: Sequence[Row], num_games: int):
  printed = table.Table(title=f'{len(rows)} of {num_games} games', show_footer=True)
  summary = summarize(rows)
  ours, paper = (
    '\n'.join(f'{100 * pair[i]:,.1f} %' for pair in summary.values()) for i in (0, 1)
  )
  printed.add_column('game', footer='\n'.join(summary))
  printed.add_column('return', justify='right')
  printed.add_column('human-\nnormalised', justify='right', footer=ours)
  printed.add_column("paper's\nreturn", justify='right')
  printed.add_column('human-\nnormalised', justify='right', footer=paper)
  printed.add_column('million\nframes', justify='right')
  printed.add_column('protocol')
  for row in rows:
    printed.add_row(
      row.game,
      f'{row.mean_return:,.1f}',
      f'{100 * row.human_normalized:,.1f} %',
      f'{row.paper_return:,.1f}',
      f'{100 * row.paper_human_normalized:,.1f} %',
      f'{row.actor_frames / 1e6:,.1f}',
      row.protocol,
    )
  console.Console().print(printed)
