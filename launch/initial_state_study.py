"""The spec's two figures: Delta-Q and learning by the state that replay starts from.

python launch/initial_state_study.py                cue recall, half an hour on a core
python launch/initial_state_study.py --game=pong    hours; see --max_steps and --cases
"""

import argparse
import collections
import concurrent.futures
import csv
import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

try:
  from r2d2_acme import doctor
except ModuleNotFoundError:
  sys.exit('r2d2_acme is not in this Python: run `make install`, then .venv/bin/python')
doctor.check_installation()

import acme  # noqa: E402
import dm_env  # noqa: E402
import numpy as np  # noqa: E402
from acme.utils import counting  # noqa: E402

from r2d2_acme import builder as builder_lib  # noqa: E402
from r2d2_acme import config as config_lib  # noqa: E402
from r2d2_acme import environments, experiment, loggers, plotting, runtime  # noqa: E402
from r2d2_acme.actor import VectorEnvironmentLoop  # noqa: E402
from r2d2_acme.agent import R2D2  # noqa: E402
from r2d2_acme.config import R2D2Config  # noqa: E402

_ITEMS = 'items.csv'  # there once a run is finished
_NUM_SNAPSHOTS = 200  # batches a run whose items are kept
_NUM_BINS = 20  # points of a curve over training
_NUM_AGE_BINS = 6
_GREEDY = 0.05  # returns are those of environments with at most this epsilon
_TRAJECTORY = 'trajectory'

_DELTA_Q = ('delta_q_initial', 'delta_q_final')
_METRICS = ('parameter_age', *_DELTA_Q)
_ITEM_COLUMNS = ('actor_steps', 'learner_steps', *_METRICS)
_CURVE_COLUMNS = ('case', 'metric', 'over', 'x', 'mean', 'std', 'seeds')


@dataclasses.dataclass(frozen=True)
class Task:
  """An environment, and the strategies to compare on it.

  Attributes:
    name: of its figures.
    make_environment: from a seed.
    config: what all runs share.
    burn_ins: lengths to compare, in steps.
    trajectory: fields of the config for replay of whole episodes; empty where they are
      too long for it.
    max_steps: by default, environment steps.
  """

  name: str
  make_environment: Callable[[int], dm_env.Environment]
  config: R2D2Config
  burn_ins: Sequence[int]
  max_steps: int
  trajectory: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def cases(self) -> dict[str, R2D2Config]:
    """The config of each strategy, by its name."""
    cases = {
      f'{state}_{burn_in}': dataclasses.replace(
        self.config, state_strategy=state, burn_in_length=burn_in
      )
      for state in ('zero', 'stored')
      for burn_in in self.burn_ins
    }
    if self.trajectory:
      cases[_TRAJECTORY] = dataclasses.replace(
        self.config, state_strategy='zero', burn_in_length=0, **self.trajectory
      )
    return cases


def cue_recall() -> Task:
  """Windows of half an episode, so that the cue and its question share none.

  Lengths are a twentieth of the paper's. Updates for each step, and trained
  transitions for each update, are the same in all cases.
  """
  return Task(
    name='cue_recall',
    make_environment=lambda seed: environments.make_cue_recall(delay=6, seed=seed),
    config=R2D2Config(
      trace_length=4,
      sequence_period=2,
      n_step=3,
      discount=0.99,
      batch_size=32,
      learning_rate=1e-3,
      target_update_period=50,
      max_replay_size=4_000,
      min_replay_size=150,
      samples_per_insert=8.0,
      num_actors=1,
      envs_per_actor=8,
      variable_update_period=1,
      epsilon_alpha=5.0,
      torso_size=32,
      core_size=32,
      head_size=32,
    ),
    burn_ins=(0, 1, 2),
    max_steps=20_000,
    # An episode of 8 transitions is three windows of 4, or one of 8.
    trajectory={
      'trace_length': 8,
      'sequence_period': 8,
      'batch_size': 16,
      'samples_per_insert': 12.0,
      'max_replay_size': 1_333,
      'min_replay_size': 50,
    },
  )


def laptop(name: str, make_environment: Callable[[int], dm_env.Environment]) -> Task:
  """The laptop preset, with the paper's burn-ins."""
  return Task(
    name=name.replace('/', '_'),
    make_environment=make_environment,
    config=config_lib.laptop(),
    burn_ins=(0, 20, 40),
    max_steps=100_000,
  )


def train(
  task: Task, config: R2D2Config, max_steps: int, workdir: pathlib.Path
) -> pathlib.Path:
  """One run, from nothing; returns the file that says it is finished."""
  shutil.rmtree(workdir, ignore_errors=True)
  spec = acme.make_environment_spec(task.make_environment(0))
  counter = loggers.WallTimeCounter()
  agent = R2D2(
    spec,
    config,
    counter=counter,
    logger=loggers.make_logger(str(workdir), 'learner'),
  )
  agent.learner.always_diagnose = True
  loop = VectorEnvironmentLoop(
    [
      task.make_environment(builder_lib.environment_seed(config, i))
      for i in range(config.envs_per_actor)
    ],
    agent,
    counting.Counter(counter, prefix='actor', time_delta=0.0),
    loggers.make_logger(str(workdir), 'actor'),
  )
  items: list[Sequence[float]] = []
  steps = updates = 0
  next_snapshot = 0.0
  while steps < max_steps:
    loop.run(num_steps=config.envs_per_actor)
    steps = counter.get_counts()['actor_steps']
    if steps >= next_snapshot and agent.learner.num_steps > updates:
      updates = agent.learner.num_steps
      next_snapshot = steps + max_steps / _NUM_SNAPSHOTS
      metrics = agent.learner.last_metrics
      columns = [metrics[name].numpy() for name in _METRICS]
      items += [(steps, updates, *row) for row in zip(*columns, strict=True)]
  unfinished = workdir / f'{_ITEMS}.part'
  _write_csv(unfinished, _ITEM_COLUMNS, items)
  return unfinished.rename(workdir / _ITEMS)


@dataclasses.dataclass(frozen=True)
class Run:
  """What a finished run left, as columns.

  Attributes:
    items: windows that were learned from, of `_ITEM_COLUMNS`.
    episodes: the actor's log.
  """

  items: Mapping[str, np.ndarray]
  episodes: Mapping[str, np.ndarray]

  @classmethod
  def read(cls, workdir: pathlib.Path) -> 'Run':
    actor_log = workdir / 'logs' / 'actor' / 'logs.csv'
    return cls(_read_csv(workdir / _ITEMS), _read_csv(actor_log))


def summarize(runs: Mapping[str, Sequence[Run]], max_steps: int) -> list[tuple]:
  """Rows of `_CURVE_COLUMNS` from each case's runs, one a seed.

  In each bin of x the median Delta-Q of a seed's windows, or the mean of its returns;
  then mean and standard deviation of these over the seeds. Not the mean Delta-Q: its
  denominator may be near 0. x is environment steps (over 'steps') or the parameters'
  age in learner steps ('age'); over 'all' there is no x but a single bin. The latter
  two are of the second half of training.
  """
  oldest = max(
    run.items['parameter_age'].max() for seeds in runs.values() for run in seeds
  )
  age_width = (oldest + 1) / _NUM_AGE_BINS
  step_width = max_steps / _NUM_BINS
  rows: list[tuple] = []
  for case, seeds in runs.items():
    # By metric and x-axis, for each seed, its value by x.
    curves = collections.defaultdict(list)
    for run in seeds:
      steps, ages = run.items['actor_steps'], run.items['parameter_age']
      late = steps > max_steps / 2
      for name in _DELTA_Q:
        values = run.items[name]
        curves[name, 'steps'].append(in_bins(steps, values, step_width, np.median))
        curves[name, 'age'].append(
          in_bins(ages[late], values[late], age_width, np.median)
        )
        curves[name, 'all'].append({0.0: np.median(values[late])})
      greedy = run.episodes['epsilon'] <= _GREEDY
      steps, returns = (
        run.episodes[name][greedy] for name in ('actor_steps', 'episode_return')
      )
      curves['episode_return', 'steps'].append(
        in_bins(steps, returns, step_width, np.mean)
      )
    for (metric, over), by_seed in curves.items():
      for x in sorted(set().union(*by_seed)):
        ys = [seed[x] for seed in by_seed if x in seed]
        rows.append((case, metric, over, x, np.mean(ys), np.std(ys), len(ys)))
  return rows


def in_bins(
  x: np.ndarray, y: np.ndarray, width: float, reduce: Callable[[np.ndarray], float]
) -> dict[float, float]:
  """y by the middle of the bins (k width, (k + 1) width] of x > 0."""
  bins = np.ceil(x / width) - 1
  return {(k + 0.5) * width: float(reduce(y[bins == k])) for k in np.unique(bins)}


def plot_delta_q(rows: Sequence[tuple], title: str, path: pathlib.Path):
  """Writes the spec's figure of Delta-Q: bars, over training, over age."""
  pyplot, colors, curves = plotting.pyplot(), _colors(rows), _by_curve(rows)
  figure, axes = pyplot.subplots(3, 2, figsize=(9, 10), sharey='row')
  for column, (metric, end) in enumerate(zip(_DELTA_Q, ('first', 'last'), strict=True)):
    bars, lines, ages = axes[:, column]
    bars.set_title(f'at the {end} trained step', fontsize=10)
    for i, (case, color) in enumerate(colors.items()):
      ((_, mean, std),) = curves[metric, 'all'][case]
      bars.bar(i, mean, yerr=std, color=color, capsize=3)
    bars.set_xticks(range(len(colors)), colors, rotation=30, fontsize=8)
    _draw(lines, curves[metric, 'steps'], colors)
    _draw(ages, curves[metric, 'age'], colors)
    for axis in (lines, ages):
      axis.set_yscale('log')
      axis.set_ylim(bottom=1e-2)  # what is 0 but for rounding is below
    lines.set_xlabel('environment steps')
    ages.set_xlabel("age of the actor's parameters, learner steps")
  for row, what in enumerate(('2nd half of training', 'over training', '2nd half')):
    axes[row, 0].set_ylabel(f'median Delta-Q, {what}')
  axes[1, 1].legend(fontsize=7)
  _save(figure, title, path)


def plot_returns(rows: Sequence[tuple], title: str, path: pathlib.Path):
  """Writes the spec's figure of learning curves."""
  figure, axis = plotting.pyplot().subplots(figsize=(6, 4))
  _draw(axis, _by_curve(rows)['episode_return', 'steps'], _colors(rows))
  axis.set_xlabel('environment steps')
  axis.set_ylabel(f'return of environments with epsilon <= {_GREEDY}')
  axis.legend(fontsize=7)
  _save(figure, title, path)


def _draw(axis, curves: Mapping[str, Sequence[tuple]], colors: Mapping):
  """A line for each case, and a band of one standard deviation."""
  for case, points in curves.items():
    x, mean, std = np.array(points).T
    style = '--' if case == _TRAJECTORY else '-'
    axis.plot(x, mean, style, color=colors[case], label=case)
    axis.fill_between(x, mean - std, mean + std, color=colors[case], alpha=0.12, lw=0)
  axis.grid(True, alpha=0.3)


def _by_curve(rows: Sequence[tuple]) -> dict[tuple, dict[str, list[tuple]]]:
  """(x, mean, std) by metric and x-axis, then by case."""
  curves: dict[tuple, dict[str, list[tuple]]] = {}
  for case, metric, over, x, mean, std, _ in rows:
    points = curves.setdefault((metric, over), {}).setdefault(case, [])
    points.append((x, mean, std))
  return curves


def _colors(rows: Sequence[tuple]) -> dict[str, tuple]:
  """By case: zero states are orange, stored ones blue, darker with a longer burn-in."""
  cases = dict.fromkeys(row[0] for row in rows)
  burn_ins = sorted({int(case.split('_')[1]) for case in cases if case != _TRAJECTORY})
  colors = {}
  for case in cases:
    state, _, burn_in = case.partition('_')
    colormap = {'zero': 'Oranges', 'stored': 'Blues'}.get(state, 'Greys')
    shade = burn_ins.index(int(burn_in)) / len(burn_ins) if burn_in else 0.5
    colors[case] = plotting.pyplot().get_cmap(colormap)(0.4 + 0.5 * shade)
  return colors


def _save(figure, title: str, path: pathlib.Path):
  figure.suptitle(title, fontsize=10)
  figure.tight_layout()
  figure.savefig(path, dpi=110)
  plotting.pyplot().close(figure)


def _write_csv(path: pathlib.Path, columns: Sequence[str], rows: Iterable[Sequence]):
  with open(path, 'w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(columns)
    for row in rows:
      writer.writerow(x if isinstance(x, str) else f'{x:.6g}' for x in row)


def _read_csv(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Columns of numbers by their name."""
  with open(path, newline='') as file:
    names, *rows = csv.reader(file)
  columns = np.array(rows, float).reshape(-1, len(names)).T
  return dict(zip(names, columns, strict=True))


def main() -> int:
  args = _parse()
  task = _make_task(args)
  max_steps = args.max_steps or task.max_steps
  workdir = pathlib.Path(args.workdir) / f'{task.name}_{max_steps}'
  if args.run:
    case, seed = args.run.split('/')
    runtime.limit_threads(max(1, runtime.num_cores() // args.processes))
    config = dataclasses.replace(task.cases[case], seed=int(seed))
    train(task, config, max_steps, workdir / args.run)
    return 0

  cases = args.cases.split(',') if args.cases else list(task.cases)
  for case in cases:
    if case not in task.cases:
      runtime.exit_with_error(
        f'{case!r} is not a case: give some of {", ".join(task.cases)}'
      )
  # Seed by seed: what there is after an interruption compares all cases.
  if not train_all(
    [f'{c}/{s}' for s in range(args.seeds) for c in cases], workdir, args
  ):
    return 1
  runs = {c: [Run.read(workdir / c / str(s)) for s in range(args.seeds)] for c in cases}
  rows = summarize(runs, max_steps)
  out = pathlib.Path(args.out) / task.name
  out.mkdir(parents=True, exist_ok=True)
  _write_csv(out / 'curves.csv', _CURVE_COLUMNS, rows)
  title = f'{task.name}: mean and standard deviation of {args.seeds} seeds'
  plot_delta_q(rows, title, out / 'delta_q.png')
  plot_returns(rows, title, out / 'returns.png')
  about = {
    'command': sys.argv,
    'revision': experiment.revision(),
    'max_steps': max_steps,
    'seeds': args.seeds,
    'cases': {case: dataclasses.asdict(task.cases[case]) for case in cases},
  }
  (out / 'about.json').write_text(json.dumps(about, indent=2) + '\n')
  print(f'see {out}')
  return 0


def train_all(
  names: Sequence[str], workdir: pathlib.Path, args: argparse.Namespace
) -> bool:
  """Trains what is not finished, each in a process; whether all of it worked."""

  def run(name: str) -> bool:
    if (workdir / name / _ITEMS).exists():
      return True
    output = workdir / f'{name.replace("/", "_")}.txt'
    with open(output, 'w') as file:
      command = [sys.executable, *sys.argv, f'--run={name}']
      code = subprocess.run(command, stdout=file, stderr=file).returncode
    print(f'{name}: code {code}, see {output}' if code else f'{name}: finished')
    return code == 0

  workdir.mkdir(parents=True, exist_ok=True)
  with concurrent.futures.ThreadPoolExecutor(args.processes) as pool:
    return all(list(pool.map(run, names)))


def _make_task(args: argparse.Namespace) -> Task:
  """Exits if there is no such environment."""
  if not args.game and not args.env:
    return cue_recall()
  make = environments.make_atari if args.game else environments.make
  name = args.game or args.env
  try:
    make(name).close()
  except ValueError as error:
    runtime.exit_with_error(str(error))
  return laptop(name, lambda seed: make(name, seed=seed))


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    'initial_state_study.py',
    description=__doc__,
    formatter_class=argparse.RawTextHelpFormatter,
  )
  parser.error = runtime.exit_with_error  # type: ignore[method-assign]
  parser.add_argument('--game', help='an Atari game instead of cue recall')
  parser.add_argument('--env', help='instead of cue recall, as --env elsewhere')
  parser.add_argument('--seeds', type=int, default=3, help='so many, from 0 on')
  parser.add_argument(
    '--cases', help='of zero_<burn-in>, stored_<burn-in>, trajectory; by default all'
  )
  parser.add_argument('--max_steps', type=int, help='environment steps of each run')
  parser.add_argument(
    '--processes', type=int, default=1, choices=(1, 2), help='runs at once'
  )
  parser.add_argument(
    '--workdir', default='runs/initial_state_study', help='finished runs stay there'
  )
  parser.add_argument(
    '--out', default='results/initial_state_study', help='figures and CSV'
  )
  parser.add_argument('--run', help=argparse.SUPPRESS)  # one run, in this process
  args = parser.parse_args()
  if args.game and args.env:
    runtime.exit_with_error('give --game or --env, not both')
  if args.seeds < 1:
    runtime.exit_with_error('--seeds must be at least 1')
  if args.max_steps is not None and args.max_steps < 1:
    runtime.exit_with_error('--max_steps must be at least 1')
  return args


if __name__ == '__main__':
  code = main()
  runtime.exit_now(code)
