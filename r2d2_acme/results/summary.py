"""What the episodes of an evaluation came to, as a table."""

import os
import statistics

from rich import console, table

from r2d2_acme.results import atari_scores
from r2d2_acme.results.evaluation import Evaluation


def print_table(name: str, evaluation: Evaluation, epsilon: float, protocol: str = ''):
  """Prints mean, median, least and largest return, and the score on Atari games.

  Args:
    name: of the environment.
    evaluation: at least one episode.
    epsilon: the share of random actions in it.
    protocol: of an Atari game, see `R2D2Config.atari_protocol`.
  """
  returns, counts = evaluation.returns, evaluation.counts
  columns = {
    'episodes': f'{len(returns)}',
    'mean': f'{returns.mean():.2f}',
    'median': f'{statistics.median(returns):.2f}',
    'min': f'{returns.min():g}',
    'max': f'{returns.max():g}',
  }
  num_cut = sum(episode.is_cut for episode in evaluation.episodes)
  if num_cut:
    columns['cut off'] = f'{num_cut}'
  game = atari_scores.find_game(name)
  if game is not None:
    normalized = atari_scores.human_normalized(game, returns.mean())
    columns['human-normalised mean'] = f'{100 * normalized:.1f} %'
  played = f'{name} ({protocol})' if protocol else name
  printed = table.Table(
    title=f'{played}: {os.path.basename(evaluation.checkpoint)}, after '
    f'{counts.get("actor_frames", 0):,.0f} frames and '
    f'{counts.get("learner_steps", 0):,.0f} learner steps, epsilon={epsilon:g}'
  )
  for column in columns:
    printed.add_column(column, justify='right')
  printed.add_row(*columns.values())
  console.Console().print(printed)
