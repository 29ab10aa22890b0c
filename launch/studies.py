"""What the studies share: a task, runs of several configs on it, and their curves.

A study trains each of its cases with several seeds, each run in a process of its own
(`--run=<case>/<seed>`, which the program gives itself). Finished runs stay in the
workdir and are not run again, unless their config has changed.
"""

import argparse
import collections
import concurrent.futures
import csv
import dataclasses
import json
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import acme
import dm_env
import numpy as np
from acme.utils import counting

from r2d2_acme import builder as builder_lib
from r2d2_acme import config as config_lib
from r2d2_acme import environments
from r2d2_acme.acting.loop import VectorEnvironmentLoop
from r2d2_acme.agent import R2D2
from r2d2_acme.config import R2D2Config
from r2d2_acme.results import plotting
from r2d2_acme.system import machine, processes, runtime
from r2d2_acme.workdir import description, loggers, paths, sittings

NUM_BINS = 20  # points of a curve over training
CURVE_COLUMNS = ('case', 'metric', 'over', 'x', 'mean', 'std', 'seeds')

_FINISHED = 'finished.json'  # written last: config and revision

# By metric and x-axis, then by case: (x, mean, std).
Curves = Mapping[tuple[str, str], Mapping[str, Sequence[tuple[float, float, float]]]]


@dataclasses.dataclass(frozen=True)
class Study:
  """Configs to compare on one environment.

  Attributes:
    name: of its workdir and its figures.
    make_environment: from a seed.
    cases: by name.
    max_steps: environment steps of each run, unless the user says otherwise.
  """

  name: str
  make_environment: Callable[[int], dm_env.Environment]
  cases: Mapping[str, R2D2Config]
  max_steps: int


def make_cue_recall(seed: int) -> dm_env.Environment:
  """Five questions about one cue, in episodes of 26 steps: see `CUE_RECALL`."""
  return environments.make_cue_recall(delay=4, num_questions=5, seed=seed)


# For `make_cue_recall`, at a tenth of the paper's lengths. An episode's windows train
# [0, 8), [6, 14), [12, 20) and [18, 26): all have a question, but only the first has
# the cue. No other's burn-in reaches back to it.
CUE_RECALL = R2D2Config(
  burn_in_length=4,
  trace_length=8,
  sequence_period=6,
  n_step=3,
  discount=0.99,
  batch_size=32,
  learning_rate=1e-3,
  adam_epsilon=1e-6,
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
)


def train(
  study: Study,
  case: str,
  seed: int,
  max_steps: int,
  workdir: pathlib.Path,
  observe: Callable[[int, R2D2], None] = lambda steps, agent: None,
):
  """One run, from nothing, in this process.

  Args:
    study: what to train on.
    case: one of the study's.
    seed: of the run.
    max_steps: environment steps.
    workdir: for its logs, and `observe`'s files; what it held is lost.
    observe: called with the steps so far, at the start and after each of all
      environments.
  """
  shutil.rmtree(workdir, ignore_errors=True)
  config = dataclasses.replace(study.cases[case], seed=seed)
  counter = loggers.WallTimeCounter()
  seeds = [
    builder_lib.environment_seed(config, i) for i in range(config.envs_per_actor)
  ]
  with environments.opened(study.make_environment, seeds) as fleet:
    agent = R2D2(
      acme.make_environment_spec(fleet[0]),
      config,
      counter=counter,
      logger=loggers.make_logger(str(workdir), 'learner'),
    )
    loop = VectorEnvironmentLoop(
      fleet,
      agent,
      counting.Counter(counter, prefix='actor', time_delta=0.0),
      loggers.make_logger(str(workdir), 'actor'),
    )
    observe(0, agent)
    steps = 0
    while steps < max_steps:
      loop.run(num_steps=config.envs_per_actor)
      steps = counter.get_counts()['actor_steps']
      observe(steps, agent)


def main(
  study: Study,
  args: argparse.Namespace,
  train_one: Callable[[Study, str, int, int, pathlib.Path], None],
  summarize: Callable[[Mapping[str, Sequence[pathlib.Path]], int], list[tuple]],
  plots: Mapping[str, Callable[[Sequence[tuple], str, pathlib.Path], None]],
) -> int:
  """Trains what is not finished, then writes curves and figures; the exit code.

  Args:
    study: its cases are all that `--cases` may name.
    args: of `make_parser`.
    train_one: as `train`, in the run's own process.
    summarize: rows of `CURVE_COLUMNS` from each case's workdirs, one a seed, and the
      steps of a run.
    plots: each writes the file of its name from the rows and a title.
  """
  max_steps = args.max_steps or study.max_steps
  workdir = pathlib.Path(args.workdir) / f'{study.name}_{max_steps}'
  if args.run:
    case, seed = args.run.split('/')
    runtime.limit_threads(max(1, machine.num_cores() // args.processes))
    train_one(study, case, int(seed), max_steps, workdir / args.run)
    finish(study, args.run, workdir)
    return 0
  cases = _chosen_cases(study, args)
  _check_steps(study, cases, max_steps)
  # Seed by seed: what there is after an interruption compares all cases.
  names = [f'{case}/{seed}' for seed in range(args.seeds) for case in cases]
  if not _train_all(study, names, workdir, args.processes):
    return 1
  runs = {c: [workdir / c / str(s) for s in range(args.seeds)] for c in cases}
  rows = summarize(runs, max_steps)
  out = pathlib.Path(args.out) / study.name
  out.mkdir(parents=True, exist_ok=True)
  write_csv(out / 'curves.csv', CURVE_COLUMNS, rows)
  spread = f'mean and standard deviation of {args.seeds} seeds'
  title = f'{study.name}: {spread if args.seeds > 1 else "one seed"}'
  for name, plot in plots.items():
    plot(rows, title, out / name)
  about = {
    # Not the folders: they are this machine's.
    'command': [x for x in sys.argv if not x.startswith(('--workdir', '--out'))],
    'max_steps': max_steps,
    'runs': {name: read_finished(workdir / name) for name in names},
  }
  (out / 'about.json').write_text(json.dumps(about, indent=1) + '\n')
  print(f'see {paths.shown(str(out))}')
  return 0


def finish(study: Study, name: str, workdir: pathlib.Path):
  """Marks the run `<case>/<seed>` as finished, and by what."""
  finished = {'revision': description.revision(), 'config': _config(study, name)}
  (workdir / name / _FINISHED).write_text(json.dumps(finished))


def read_finished(workdir: pathlib.Path) -> dict[str, Any]:
  """What `finish` wrote; empty for a run that is not, or if it is damaged."""
  try:
    finished = json.loads((workdir / _FINISHED).read_text())
  except (OSError, ValueError, RecursionError):
    return {}
  return finished if isinstance(finished, dict) else {}


def _config(study: Study, name: str) -> dict[str, Any]:
  """That of the run `<case>/<seed>`, as JSON has it."""
  case, seed = name.split('/')
  config = dataclasses.replace(study.cases[case], seed=int(seed))
  return json.loads(json.dumps(dataclasses.asdict(config)))


def _chosen_cases(study: Study, args: argparse.Namespace) -> list[str]:
  """Exits if one is unknown."""
  cases = args.cases.split(',') if args.cases else study.cases
  for case in cases:
    if case not in study.cases:
      runtime.exit_with_error(
        f'{case!r} is not a case: give some of {", ".join(study.cases)}'
      )
  return list(dict.fromkeys(cases))


def _check_steps(study: Study, cases: Sequence[str], max_steps: int):
  """Exits if one of them would learn for less than about half of its run."""
  fill = max(
    study.cases[case].min_replay_size * study.cases[case].sequence_period
    for case in cases
  )
  if max_steps < 2 * fill:
    runtime.exit_with_error(
      f'--max_steps={max_steps} is too few: learning begins after some {fill}; give at '
      f'least {2 * fill}'
    )


def _train_all(
  study: Study, names: Sequence[str], workdir: pathlib.Path, num_processes: int
) -> bool:
  """Whether all of it worked."""

  def run_one(name: str) -> bool:
    if read_finished(workdir / name).get('config') == _config(study, name):
      return True
    output = workdir / f'{name.replace("/", "_")}.txt'
    with open(output, 'w') as file:
      command = [sys.executable, *sys.argv, f'--run={name}']
      code = family.run(name, command, stdout=file, stderr=file)
    where = paths.shown(str(output))
    print(f'{name}: code {code}, see {where}' if code else f'{name}: finished')
    return code == 0

  workdir.mkdir(parents=True, exist_ok=True)
  with (
    processes.Family(patience=0.0) as family,  # a run keeps nothing but its end
    concurrent.futures.ThreadPoolExecutor(num_processes) as pool,
  ):
    return all(list(pool.map(run_one, names)))


def in_bins(
  x: np.ndarray, y: np.ndarray, width: float, reduce: Callable[[np.ndarray], float]
) -> dict[float, float]:
  """y by the middle of the bins (k width, (k + 1) width] of x > 0."""
  bins = np.ceil(x / width) - 1
  return {(k + 0.5) * width: float(reduce(y[bins == k])) for k in np.unique(bins)}


def returns_by_steps(workdir: pathlib.Path, max_steps: int) -> dict[float, float]:
  """The mean return of nearly greedy episodes, in bins of a run's steps."""
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
  """Rows of `CURVE_COLUMNS`: mean and standard deviation of the seeds that have x.

  Where only one has, there is no deviation: NaN.
  """
  rows = []
  for x in sorted(set().union(*seeds)):
    ys = [seed[x] for seed in seeds if x in seed]
    std = np.std(ys, ddof=1) if len(ys) > 1 else np.nan
    rows.append((case, metric, over, x, np.mean(ys), std, len(ys)))
  return rows


def return_rows(
  case: str, workdirs: Sequence[pathlib.Path], max_steps: int
) -> list[tuple]:
  """Rows of `CURVE_COLUMNS`: a case's returns over steps; a workdir is a seed."""
  seeds = [returns_by_steps(workdir, max_steps) for workdir in workdirs]
  return over_seeds(case, 'episode_return', 'steps', seeds)


def by_curve(rows: Iterable[tuple]) -> Curves:
  """Rows of `CURVE_COLUMNS`, as they are drawn."""
  curves: dict = collections.defaultdict(lambda: collections.defaultdict(list))
  for case, metric, over, x, mean, std, _ in rows:
    curves[metric, over][case].append((x, mean, std))
  return curves


def draw(
  axis, curves: Mapping[str, Sequence[tuple]], styles: Mapping[str, Mapping[str, Any]]
):
  """A line for each case, in its style, and a band of one standard deviation."""
  for case, points in curves.items():
    x, mean, std = np.array(points).T
    (line,) = axis.plot(x, mean, label=case, **styles[case])
    color = line.get_color()
    axis.fill_between(x, mean - std, mean + std, color=color, alpha=0.12, lw=0)
  axis.grid(True, alpha=0.3)


def draw_returns(axis, rows: Iterable[tuple], styles: Mapping[str, Mapping[str, Any]]):
  """The curves of all `return_rows`, with the axes' labels."""
  draw(axis, by_curve(rows)['episode_return', 'steps'], styles)
  axis.set_xlabel('environment steps')
  axis.set_ylabel(f'return of environments with epsilon <= {plotting.LOW_EPSILON}')


def save(figure, title: str, path: pathlib.Path):
  figure.suptitle(title, fontsize=10)
  figure.tight_layout()
  figure.savefig(path, dpi=110)
  plotting.pyplot().close(figure)


def write_csv(path: pathlib.Path, columns: Sequence[str], rows: Iterable[Sequence]):
  with open(path, 'w', newline='') as file:
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(columns)
    for row in rows:
      writer.writerow(x if isinstance(x, str) else f'{x:.6g}' for x in row)


def read_csv(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Columns of numbers by their name; all of them empty if there is no row."""
  with open(path, newline='') as file:
    names, *rows = [*csv.reader(file)] or [[]]
  columns = np.array(rows, float).reshape(len(rows), len(names)).T
  return collections.defaultdict(lambda: np.zeros(0), zip(names, columns, strict=True))


def make_environment_from(
  args: argparse.Namespace,
) -> tuple[str, Callable[[int], dm_env.Environment]] | None:
  """What `--game` or `--env` name, and how it is made; None without either.

  Exits if there is no such environment.
  """
  if args.game and args.env:
    runtime.exit_with_error('give --game or --env, not both')
  name = args.game or args.env
  if not name:
    return None
  make = environments.make_atari if args.game else environments.make
  try:
    make(name).close()
  except ValueError as error:
    runtime.exit_with_error(str(error))
  full = config_lib.laptop().full_action_space
  return name.replace('/', '_'), lambda seed: make(
    name, seed=seed, full_action_space=full
  )


def make_parser(name: str, description: str | None, results: str):
  """The flags of every study; `results` is where its figures go by default."""
  parser = argparse.ArgumentParser(
    name,
    description=description,
    formatter_class=argparse.RawTextHelpFormatter,
  )
  parser.error = runtime.exit_with_error  # type: ignore[method-assign]
  positive = _positive_int
  parser.add_argument(
    '--seeds', type=positive, default=3, help='so many, from 0 on; by default 3'
  )
  parser.add_argument('--cases', help='such as one,another; by default all')
  parser.add_argument('--max_steps', type=positive, help='of each run, in steps')
  parser.add_argument(
    '--processes', type=positive, default=1, help='runs at once; by default 1'
  )
  parser.add_argument(
    '--workdir',
    type=paths.argument,
    default=f'runs/{results}',
    help='finished runs stay there',
  )
  parser.add_argument(
    '--out',
    type=paths.argument,
    default=f'results/{results}',
    help='figures and CSV',
  )
  parser.add_argument('--game', help='an Atari game instead of cue recall')
  parser.add_argument('--env', help='instead of cue recall, as --env elsewhere')
  parser.add_argument('--run', help=argparse.SUPPRESS)  # one run, in this process
  return parser


def _positive_int(text: str) -> int:
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError('must be a number, at least 1')
  return int(text)
