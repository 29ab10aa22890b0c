"""Studies whose results are curves: their flags, arithmetic and files.

A curve has for each x the interquartile mean over the seeds of a case, and its 95 %
bootstrap interval.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from r2d2_acme import config as config_lib
from r2d2_acme.config import R2D2Config
from r2d2_acme.environments import EnvironmentFactory, NamedFactory
from r2d2_acme.results import aggregates, plotting, tables
from r2d2_acme.system import runtime
from r2d2_acme.workdir import paths, sittings
from studies import arguments, cue_recall, runner
from studies.runner import Case, Study

NUM_BINS = 20  # points of a curve over training
COLUMNS = ('case', 'metric', 'over', 'x', 'mean', 'low', 'high', 'seeds')

Configs = Mapping[str, R2D2Config]  # by case
Runs = Mapping[str, Sequence[pathlib.Path]]  # the workdirs of each case's runs


def add_flags(parser: argparse.ArgumentParser, results: str):
  """Adds the flags; `results` names the default folders in `runs/` and `results/`."""
  runner.add_flags(parser, results)
  parser.add_argument(
    '--seeds', type=arguments.positive_int, default=3, help='how many; by default 3'
  )
  parser.add_argument('--cases', help='such as one,another; by default all')
  parser.add_argument(
    '--out',
    type=paths.argument,
    default=f'results/{results}',
    help=f'where figures and CSV go; by default results/{results}',
  )
  parser.add_argument('--game', help='an Atari game instead of cue recall')
  for kind in ('env', 'environment'):
    parser.add_argument(
      f'--{kind}',
      help=f'instead of cue recall, as the --{kind} of atari_distributed.py',
    )


def named_environment(
  args: argparse.Namespace,
) -> tuple[str, EnvironmentFactory] | None:
  """Returns what the flags name, as a folder's name and a factory.

  Without `--game`, `--env` and `--environment` it is None. Exits if there is no such
  environment.
  """
  kinds = ('game', 'env', 'environment')
  given = {kind: getattr(args, kind) for kind in kinds if getattr(args, kind)}
  if not given:
    return None
  if len(given) > 1:
    flags = ' or '.join(f'--{kind}' for kind in given)
    runtime.exit_with_error(f'give {flags}, not both')
  ((kind, name),) = given.items()
  factory = NamedFactory(kind, name, config_lib.laptop().atari)
  try:
    made = factory(0)
  except ValueError as error:
    runtime.exit_with_error(str(error))
  if hasattr(made, 'close'):  # if it is no environment, a run will say so
    made.close()
  return name.replace('/', '_').replace(':', '_'), factory


def make_study(
  args: argparse.Namespace,
  on_cue_recall: tuple[Configs, int],
  on_others: tuple[Configs, int],
  summarize: Callable[[Runs, int], list[tuple]],
  plots: Mapping[str, Callable[[Sequence[tuple], str, pathlib.Path], None]],
  case_type: type[Case] = Case,
) -> Study:
  """Makes the study that the flags describe; exits if they cannot work.

  Args:
    args: the parsed flags, see `add_flags`.
    on_cue_recall: the config of each case, and the environment steps of a run unless
      the user says otherwise.
    on_others: the same where the user names an environment.
    summarize: returns rows of `COLUMNS`, from the runs and the steps of each.
    plots: what writes a figure of such rows, with a title, to a path; by file name.
    case_type: the class of the cases, which may override `train`.
  """
  named = named_environment(args)
  name, factory = named or ('cue_recall', cue_recall.make_cue_recall)
  configs, max_steps = on_others if named else on_cue_recall
  configs, max_steps = _choose(configs, args.cases), args.max_steps or max_steps
  _check_steps(configs.values(), max_steps)

  def report(runs: Runs) -> int:
    out = pathlib.Path(args.out, name)
    out.mkdir(parents=True, exist_ok=True)
    rows = summarize(runs, max_steps)
    tables.write_csv(out / 'curves.csv', COLUMNS, rows)
    spread = f'interquartile mean and 95 % interval of {args.seeds} seeds'
    title = f'{name}: {spread if args.seeds > 1 else "one seed"}'
    for file_name, plot in plots.items():
      plot(rows, title, out / file_name)
    _write_about(out, max_steps, runs)
    print(f'see {paths.shown(str(out))}')
    return 0

  cases = {
    case: case_type(config=config, environment_factory=factory, max_steps=max_steps)
    for case, config in configs.items()
  }
  workdir = pathlib.Path(args.workdir, f'{name}_{max_steps}')
  return Study(cases, range(args.seeds), workdir, report)


def in_bins(
  x: np.ndarray, y: np.ndarray, width: float, reduce: Callable[[np.ndarray], float]
) -> dict[float, float]:
  """Returns the reduced y of each bin of x that is not empty, by the bin's middle.

  The k-th bin is (k width, (k + 1) width], and x is positive; x and y are [N].
  """
  bins = np.ceil(x / width) - 1
  return {(k + 0.5) * width: float(reduce(y[bins == k])) for k in np.unique(bins)}


def returns_by_steps(workdir: pathlib.Path, max_steps: int) -> dict[float, float]:
  """Returns the mean return of nearly greedy episodes, in bins of a run's steps."""
  columns = ('epsilon', 'actor_steps', 'episode_return')
  epsilons, steps, returns = sittings.read_rows(str(workdir), 'actor', columns).T
  greedy = epsilons <= plotting.LOW_EPSILON
  if not greedy.any():
    runtime.exit_with_error(
      f'{paths.shown(str(workdir))}: no episode with epsilon <= '
      f'{plotting.LOW_EPSILON} ended; raise --max_steps'
    )
  return in_bins(steps[greedy], returns[greedy], max_steps / NUM_BINS, np.mean)


def over_seeds(
  case: str, metric: str, over: str, seeds: Sequence[Mapping[float, float]]
) -> list[tuple]:
  """Returns rows of `COLUMNS`: mean and interval of the seeds that have x.

  Where only one has it, the interval is NaN.
  """
  rows = []
  for x in sorted(set().union(*seeds)):
    ys = np.array([seed[x] for seed in seeds if x in seed])
    rows.append((case, metric, over, x, *aggregates.estimate([ys]), len(ys)))
  return rows


def summarize_returns(runs: Runs, max_steps: int) -> list[tuple]:
  """Returns rows of `COLUMNS` with the returns of each case over environment steps."""
  rows: list[tuple] = []
  for case, workdirs in runs.items():
    seeds = [returns_by_steps(workdir, max_steps) for workdir in workdirs]
    rows += over_seeds(case, 'episode_return', 'steps', seeds)
  return rows


def _choose(configs: Configs, names: str | None) -> Configs:
  """Returns the cases that the user named; exits if one is unknown."""
  chosen = names.split(',') if names else configs
  for name in chosen:
    if name not in configs:
      runtime.exit_with_error(
        f'{name!r} is not a case: give some of {", ".join(configs)}'
      )
  return {name: configs[name] for name in chosen}


def _check_steps(configs: Iterable[R2D2Config], max_steps: int):
  """Exits if one of the cases would learn for less than about half of its run."""
  fill = max(config.min_replay_size * config.sequence_period for config in configs)
  if max_steps < 2 * fill:
    runtime.exit_with_error(
      f'--max_steps={max_steps} is too few: learning begins after some {fill}; give at '
      f'least {2 * fill}'
    )


def _write_about(folder: pathlib.Path, max_steps: int, runs: Runs):
  """Writes `about.json`: the command and the config of each run."""
  about = {
    # Without the folders, which are those of this machine.
    'command': [x for x in sys.argv if not x.startswith(('--workdir', '--out'))],
    'max_steps': max_steps,
    'runs': {
      f'{case}/{workdir.name}': runner.read_finished(workdir)
      for case, workdirs in runs.items()
      for workdir in workdirs
    },
  }
  (folder / 'about.json').write_text(json.dumps(about, indent=1) + '\n')
