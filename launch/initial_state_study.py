"""The spec's two figures: Delta-Q and learning by the state that replay starts from.

python launch/initial_state_study.py                cue recall, half an hour on a core
python launch/initial_state_study.py --game=pong    hours; see --max_steps and --cases

Cases are zero_<burn-in>, stored_<burn-in> and, on cue recall, trajectory. Burn-ins are
0, 20 and 40; on cue recall 0, 2 and 4.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence

try:
  from r2d2_acme.system import doctor, stopping
except ModuleNotFoundError:
  sys.exit('r2d2_acme is not in this Python: run `make install`, then .venv/bin/python')
if __name__ == '__main__':
  stopping.end_at_once(
    message='Stopped. Start again to go on after the last finished run.\n'
  )
doctor.check_installation()

import dm_env  # noqa: E402
import numpy as np  # noqa: E402
import studies  # noqa: E402

from r2d2_acme import config as config_lib  # noqa: E402
from r2d2_acme.agent import R2D2  # noqa: E402
from r2d2_acme.config import R2D2Config  # noqa: E402
from r2d2_acme.results import plotting  # noqa: E402
from r2d2_acme.system import runtime  # noqa: E402

_ITEMS = 'items.csv'
_NUM_SNAPSHOTS = 200  # batches a run whose items are kept
_NUM_AGE_BINS = 6
_TRAJECTORY = 'trajectory'

_DELTA_Q = ('delta_q_initial', 'delta_q_final')
_METRICS = ('parameter_age', *_DELTA_Q)
_ITEM_COLUMNS = ('actor_steps', 'learner_steps', *_METRICS)


def cue_recall() -> studies.Study:
  """Lengths are a tenth of the paper's, burn-ins too.

  Updates for each step are the same in all cases, and trained transitions for each
  update nearly so: an episode of 26 transitions is four windows of 8, or one of 26.
  """
  config = studies.CUE_RECALL
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
  return studies.Study(
    'cue_recall',
    studies.make_cue_recall,
    {**_state_cases(config, burn_ins=(0, 2, 4)), _TRAJECTORY: trajectory},
    max_steps=50_000,
  )


def laptop(
  name: str, make_environment: Callable[[int], dm_env.Environment]
) -> studies.Study:
  """The laptop preset, with the paper's burn-ins."""
  return studies.Study(
    name,
    make_environment,
    _state_cases(config_lib.laptop(), burn_ins=(0, 20, 40)),
    max_steps=100_000,
  )


def _state_cases(config: R2D2Config, burn_ins: Sequence[int]) -> dict[str, R2D2Config]:
  return {
    f'{state}_{burn_in}': dataclasses.replace(
      config, state_strategy=state, burn_in_length=burn_in
    )
    for state in ('zero', 'stored')
    for burn_in in burn_ins
  }


def train(
  study: studies.Study, case: str, seed: int, max_steps: int, workdir: pathlib.Path
):
  """One run that also keeps what Delta-Q and age its windows had."""
  items: list[Sequence[float]] = []
  updates, next_snapshot = 0, 0.0

  def observe(steps: int, agent: R2D2):
    nonlocal updates, next_snapshot
    agent.learner.always_diagnose = True  # from the start
    if steps >= next_snapshot and agent.learner.num_steps > updates:
      updates = agent.learner.num_steps
      next_snapshot = steps + max_steps / _NUM_SNAPSHOTS
      metrics = agent.learner.last_metrics
      columns = [metrics[name] for name in _METRICS]
      items.extend((steps, updates, *row) for row in zip(*columns, strict=True))

  studies.train(study, case, seed, max_steps, workdir, observe)
  studies.write_csv(workdir / _ITEMS, _ITEM_COLUMNS, items)


def summarize(
  runs: Mapping[str, Sequence[pathlib.Path]], max_steps: int
) -> list[tuple]:
  """Rows of `CURVE_COLUMNS` from each case's workdirs, one a seed.

  In each bin of x the median Delta-Q of a seed's windows, or the mean of its returns;
  then mean and standard deviation of these over the seeds. Not the mean Delta-Q: its
  denominator may be near 0. x is environment steps (over 'steps') or the parameters'
  age in learner steps ('age'); over 'all' there is no x but a single bin. The latter
  two are of the second half of training.
  """
  items = {
    case: [studies.read_csv(workdir / _ITEMS) for workdir in workdirs]
    for case, workdirs in runs.items()
  }
  oldest = max(
    run['parameter_age'].max(initial=0) for case in items for run in items[case]
  )
  age_width, step_width = (oldest + 1) / _NUM_AGE_BINS, max_steps / studies.NUM_BINS

  def by_steps(run, name: str):
    return studies.in_bins(run['actor_steps'], run[name], step_width, np.median)

  def by_age(run, name: str):
    late = run['actor_steps'] > max_steps / 2
    ages, values = run['parameter_age'][late], run[name][late]
    return studies.in_bins(ages, values, age_width, np.median)

  def overall(run, name: str):
    return {0.0: float(np.median(run[name][run['actor_steps'] > max_steps / 2]))}

  rows: list[tuple] = []
  for case in runs:
    for over, reduce in (('steps', by_steps), ('age', by_age), ('all', overall)):
      for name in _DELTA_Q:
        seeds = [reduce(run, name) for run in items[case]]
        rows += studies.over_seeds(case, name, over, seeds)
    rows += studies.return_rows(case, runs[case], max_steps)
  return rows


def plot_delta_q(rows: Sequence[tuple], title: str, path: pathlib.Path):
  """Writes the spec's figure of Delta-Q: bars, over training, over age."""
  styles, curves = _styles(rows), studies.by_curve(rows)
  figure, axes = plotting.pyplot().subplots(3, 2, figsize=(9, 10), sharey='row')
  for column, (metric, end) in enumerate(zip(_DELTA_Q, ('first', 'last'), strict=True)):
    bars, lines, ages = axes[:, column]
    bars.set_title(f'at the {end} trained step', fontsize=10)
    for i, (case, style) in enumerate(styles.items()):
      ((_, mean, std),) = curves[metric, 'all'][case]
      bars.bar(i, mean, yerr=std, color=style['color'], capsize=3)
    bars.set_xticks(range(len(styles)), styles, rotation=30, fontsize=8)
    studies.draw(lines, curves[metric, 'steps'], styles)
    studies.draw(ages, curves[metric, 'age'], styles)
    for axis in (lines, ages):
      axis.set_yscale('log')
      axis.set_ylim(bottom=1e-2)  # what is 0 but for rounding is below
    lines.set_xlabel('environment steps')
    ages.set_xlabel("age of the actor's parameters, learner steps")
  for row, what in enumerate(('2nd half of training', 'over training', '2nd half')):
    axes[row, 0].set_ylabel(f'median Delta-Q, {what}')
  axes[1, 1].legend(fontsize=7)
  studies.save(figure, title, path)


def plot_returns(rows: Sequence[tuple], title: str, path: pathlib.Path):
  """Writes the spec's figure of learning curves."""
  figure, axis = plotting.pyplot().subplots(figsize=(6, 4))
  studies.draw_returns(axis, rows, _styles(rows))
  axis.legend(fontsize=7)
  studies.save(figure, title, path)


def _styles(rows: Sequence[tuple]) -> dict[str, dict]:
  """By case: zero states are orange, stored ones blue, darker with a longer burn-in."""
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


def main() -> int:
  args = studies.make_parser(
    'initial_state_study.py', __doc__, 'initial_state_study'
  ).parse_args()
  environment = studies.make_environment_from(args)
  study = laptop(*environment) if environment else cue_recall()
  plots = {'delta_q.png': plot_delta_q, 'returns.png': plot_returns}
  return studies.main(study, args, train, summarize, plots)


if __name__ == '__main__':
  code = main()
  runtime.exit_now(code)
