"""From which recurrent state should replay start? Delta-Q and learning curves.

python launch/study.py initial_states               cue recall, half an hour on a core
python launch/study.py initial_states --game=pong   hours; see --max_steps and --cases

This is the study of section 3 of Kapturowski et al. (2019). The cases are
zero_<burn-in>, stored_<burn-in> and, on cue recall, trajectory, whose windows are whole
episodes. The burn-ins are 0, 20 and 40; on cue recall 0, 2 and 4.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from r2d2_acme import agent as agent_lib
from r2d2_acme import config as config_lib
from r2d2_acme.agent import R2D2
from r2d2_acme.config import R2D2Config
from r2d2_acme.experiment import Experiment
from r2d2_acme.results import plotting, tables
from studies import cue_recall, curves, drawing
from studies.runner import Case, Study

_ITEMS = 'items.csv'
_NUM_SNAPSHOTS = 200  # batches of a run whose windows are kept
_NUM_AGE_BINS = 6
_TRAJECTORY = 'trajectory'

_DELTA_Q = ('delta_q_initial', 'delta_q_final')
_METRICS = ('parameter_age', *_DELTA_Q)
ITEM_COLUMNS = ('actor_steps', 'learner_steps', *_METRICS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeltaQCase(Case):
  """A case whose runs also keep Delta-Q and parameter age of the windows they learn."""

  def train(self, experiment: Experiment, workdir: pathlib.Path) -> None:
    """Trains a run in this process and writes `items.csv`; see `Case.train`."""
    items: list[Sequence[float]] = []
    updates, next_snapshot = 0, 0.0

    def observe(agent: R2D2, steps: int):
      nonlocal updates, next_snapshot
      agent.learner.always_diagnose = True  # from the first learner step on
      if steps >= next_snapshot and agent.learner.num_steps > updates:
        updates = agent.learner.num_steps
        next_snapshot = steps + self.max_steps / _NUM_SNAPSHOTS
        metrics = agent.learner.last_metrics
        columns = [metrics[name] for name in _METRICS]
        items.extend((steps, updates, *row) for row in zip(*columns, strict=True))

    agent_lib.run_experiment(experiment, observe=observe)
    tables.write_csv(workdir / _ITEMS, ITEM_COLUMNS, items)


def add_flags(parser: argparse.ArgumentParser):
  curves.add_flags(parser, 'initial_state_study')


def make_study(args: argparse.Namespace) -> Study:
  """Makes the study that the flags describe; exits if they cannot work."""
  return curves.make_study(
    args,
    on_cue_recall=(make_cue_recall_configs(), 50_000),
    on_others=(_vary(config_lib.laptop(), burn_ins=(0, 20, 40)), 100_000),
    summarize=summarize,
    plots={'delta_q.png': plot_delta_q, 'returns.png': plot_returns},
    case_type=DeltaQCase,
  )


def make_cue_recall_configs() -> dict[str, R2D2Config]:
  """Returns the config of each case on cue recall.

  All lengths are a tenth of the paper's. Learner steps for each environment step are
  the same in all cases, and trained transitions for each learner step nearly so: an
  episode of 26 transitions is four windows of 8, or one of 26.
  """
  config = cue_recall.CONFIG
  trajectory = dataclasses.replace(
    config,
    state_strategy='zero',
    burn_in_length=0,
    trace_length=26,
    sequence_period=26,
    batch_size=10,
    samples_per_insert=10.0,
    max_replay_size=config.max_replay_size // 4,
    min_replay_size=config.min_replay_size // 4,
  )
  return {**_vary(config, burn_ins=(0, 2, 4)), _TRAJECTORY: trajectory}


def _vary(config: R2D2Config, burn_ins: Sequence[int]) -> dict[str, R2D2Config]:
  """Returns configs that differ in the state that replay starts from, and burn-in."""
  return {
    f'{state}_{burn_in}': dataclasses.replace(
      config, state_strategy=state, burn_in_length=burn_in
    )
    for state in ('zero', 'stored')
    for burn_in in burn_ins
  }


def summarize(runs: curves.Runs, max_steps: int) -> list[tuple]:
  """Returns rows of `curves.COLUMNS` with Delta-Q and returns.

  A seed's value in a bin of x is the median Delta-Q of its windows, or the mean of its
  returns. Delta-Q is a ratio whose denominator may be near 0, so that outliers would
  dominate its mean. Where a row is 'over' steps, x is environment steps; over 'age' it
  is the age of the actor's parameters in learner steps; over 'all' there is a single
  bin. The latter two are of the second half of training.
  """
  items = {
    case: [tables.read_csv(workdir / _ITEMS) for workdir in workdirs]
    for case, workdirs in runs.items()
  }
  oldest = max(
    run['parameter_age'].max(initial=0) for case in items for run in items[case]
  )
  age_width, step_width = (oldest + 1) / _NUM_AGE_BINS, max_steps / curves.NUM_BINS

  def reduce(run, over: str, name: str) -> dict[float, float]:
    if over == 'steps':
      return curves.in_bins(run['actor_steps'], run[name], step_width, np.median)
    late = run['actor_steps'] > max_steps / 2
    if over == 'age':
      ages, values = run['parameter_age'][late], run[name][late]
      return curves.in_bins(ages, values, age_width, np.median)
    return {0.0: float(np.median(run[name][late]))}

  rows: list[tuple] = []
  for case in runs:
    for over in ('steps', 'age', 'all'):
      for name in _DELTA_Q:
        seeds = [reduce(run, over, name) for run in items[case]]
        rows += curves.over_seeds(case, name, over, seeds)
  return rows + curves.summarize_returns(runs, max_steps)


def plot_delta_q(rows: Sequence[tuple], title: str, path: pathlib.Path):
  """Writes the paper's figure of Delta-Q: as bars, over training and over age."""
  styles, lines = _styles(rows), drawing.by_curve(rows)
  figure, axes = plotting.pyplot().subplots(3, 2, figsize=(9, 10), sharey='row')
  for column, (metric, end) in enumerate(zip(_DELTA_Q, ('first', 'last'), strict=True)):
    overall, steps, ages = axes[:, column]
    overall.set_title(f'at the {end} trained step', fontsize=10)
    for i, (case, style) in enumerate(styles.items()):
      ((_, mean, low, high),) = lines[metric, 'all'][case]
      error = np.maximum(0, [[mean - low], [high - mean]])  # rounding may go below
      overall.bar(i, mean, yerr=error, color=style['color'], capsize=3)
    overall.set_xticks(range(len(styles)), styles, rotation=30, fontsize=8)
    drawing.draw(steps, lines[metric, 'steps'], styles)
    drawing.draw(ages, lines[metric, 'age'], styles)
    for axis in (steps, ages):
      axis.set_yscale('log')
      axis.set_ylim(bottom=1e-2)  # what is 0 except for rounding is below
    steps.set_xlabel('environment steps')
    ages.set_xlabel("age of the actor's parameters, learner steps")
  for row, what in enumerate(('2nd half of training', 'over training', '2nd half')):
    axes[row, 0].set_ylabel(f'median Delta-Q, {what}')
  axes[1, 1].legend(fontsize=7)
  drawing.save(figure, path, title)


def plot_returns(rows: Sequence[tuple], title: str, path: pathlib.Path):
  """Writes the paper's figure of learning curves."""
  drawing.plot_returns(rows, _styles(rows), title, path)


def _styles(rows: Sequence[tuple]) -> dict[str, dict]:
  """Returns the style of each case's line.

  Zero states are orange and stored ones blue, darker with a longer burn-in.
  """
  cases = dict.fromkeys(row[0] for row in rows)
  burn_ins = sorted({int(case.split('_')[1]) for case in cases if case != _TRAJECTORY})
  styles = {}
  for case in cases:
    state, _, burn_in = case.partition('_')
    colormap = {'zero': 'Oranges', 'stored': 'Blues'}.get(state, 'Greys')
    shade = burn_ins.index(int(burn_in)) / len(burn_ins) if burn_in else 0.5
    styles[case] = {
      'color': plotting.pyplot().get_cmap(colormap)(0.4 + 0.5 * shade),
      'linestyle': '--' if case == _TRAJECTORY else '-',
    }
  return styles
