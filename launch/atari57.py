"""Trains on one Atari game after the other and writes their scores into one table.

python launch/atari57.py --games=pong,breakout --max_actor_steps=1000000

If it is started again, it skips the games whose newest checkpoint has as many steps and
resumes the others. Flags that are not listed here, such as --num_actors=4, are passed
on to launch/atari_distributed.py.
"""

import preamble  # noqa: F401

import argparse
import csv
import dataclasses
import multiprocessing
import os
import pathlib
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import TYPE_CHECKING, TypeVar, get_type_hints

from rich import console, table

from r2d2_acme.results import atari_scores
from r2d2_acme.system import machine, processes, runtime, stopping
from r2d2_acme.workdir import paths

if TYPE_CHECKING:
  from r2d2_acme.results import evaluation

_T = TypeVar('_T')
_U = TypeVar('_U')
_STOPPED = 'stopped: start again with the same --workdir to continue'
_PROGRAM = pathlib.Path(__file__).parent / 'atari_distributed.py'
_TABLE = 'scores.csv'
_PATIENCE = 25.0  # seconds that a game's program may take to stop if this one is killed
_POLL_PERIOD = 0.1  # seconds
_BAD_INPUT = 2  # a program's exit code
# Flags of atari_distributed.py that are refused here, because this program sets them
# for each game, or because they limit something else than --max_actor_steps.
_OURS = ('game', 'env', 'max_learner_steps', 'lp_launch_type')


@dataclasses.dataclass(frozen=True)
class Row:
  """One game's result, a row of the CSV.

  Attributes:
    game: the game's name.
    mean_return: the mean return of `episodes` episodes.
    human_normalized, paper_human_normalized: 0 for random play, 1 for the human.
    paper_return: the return of R2D2 in Kapturowski et al. (2019), table 4.
    checkpoint, learner_steps, actor_frames: of the network that played.
  """

  game: str
  mean_return: float
  human_normalized: float
  paper_return: float
  paper_human_normalized: float
  episodes: int
  checkpoint: str
  learner_steps: int
  actor_frames: int


class _Stopped(Exception):
  """The user stopped this program, by Ctrl-C, SIGTERM or SIGHUP.

  Attributes:
    code: the exit code.
  """

  def __init__(self, code: int):
    super().__init__()
    self.code = code


def main(argv: Sequence[str] | None = None) -> int:
  args, others = _parse(argv)
  try:
    paths.check_writable(args.workdir, folders=[], files=[_TABLE])
  except OSError as error:
    runtime.exit_with_error(
      f'cannot write in {paths.shown(error.filename)} ({error.strerror}): move '
      'it away, or give another --workdir'
    )
  failed = []
  try:
    if not args.collect:
      steps = _count_steps([os.path.join(args.workdir, game) for game in args.games])
      failed = [
        game
        for game, before in zip(args.games, steps, strict=True)
        if not _train(game, args, others, before)
      ]
  except _Stopped as stopped:
    print(_STOPPED, flush=True)
    return stopped.code
  rows, unplayed = _collect(args)
  failed += [game for game in unplayed if game not in failed]
  if rows:
    _print_table(rows, len(args.games))
    print(paths.shown(os.path.join(args.workdir, _TABLE)))
  if failed:
    print(f'error: failed: {", ".join(failed)}', file=sys.stderr, flush=True)
    return 1
  if not rows:
    runtime.exit_with_error(
      f'no game in {paths.shown(args.workdir)} has a checkpoint yet'
    )
  return 0


def _train(
  game: str, args: argparse.Namespace, others: Sequence[str], steps: int
) -> bool:
  """Trains on a game that has `steps` steps; returns whether it reached the limit.

  If the game's program refuses its flags, this program ends, too. If it refuses only
  the game's workdir, the game is left out.
  """
  workdir = os.path.join(args.workdir, game)
  if steps >= args.max_actor_steps:
    print(f'{game}: already has {args.max_actor_steps:,} steps', flush=True)
    return True
  number = args.games.index(game) + 1
  print(
    f'{game}: {number} of {len(args.games)}, in {paths.shown(workdir)}',
    flush=True,
  )
  code = _run(
    [
      sys.executable,
      str(_PROGRAM),
      '--lp_launch_type=local_mp',
      f'--game={game}',
      f'--workdir={workdir}',
      f'--max_actor_steps={args.max_actor_steps}',
      *others,
    ]
  )
  if code == _BAD_INPUT:  # the game's program has printed the reason
    if not _in_process(_is_refused, workdir):
      sys.exit(code)
    command = ['python', 'launch/atari_distributed.py', f'--workdir={workdir}']
    print(
      f'{game}: left out. Apply the cure above with '
      f'{paths.shown(shlex.join(command))}, then start this program again',
      file=sys.stderr,
      flush=True,
    )
    return False
  (steps,) = _count_steps([workdir])
  if code == 0 and steps < args.max_actor_steps:
    print(f'{game}: was stopped after {steps:,} steps', file=sys.stderr, flush=True)
  return steps >= args.max_actor_steps


def _count_steps(workdirs: Sequence[str]) -> list[int]:
  """Returns the actor steps of each workdir's newest checkpoint; 0 without one."""
  if not any(os.path.isdir(os.path.join(w, 'checkpoints')) for w in workdirs):
    return [0 for _ in workdirs]
  return _in_process(_read_steps, workdirs)


def _in_process(function: Callable[[_T], _U], argument: _T) -> _U:
  """Calls a function that imports TensorFlow in another process; returns its result.

  TensorFlow's memory is thus free again when a game trains.
  """
  with (
    processes.Family(patience=0.0) as family,
    family.marking('reader'),
    futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool,
  ):
    return pool.submit(function, argument).result()


def _is_refused(workdir: str) -> bool:
  """Returns whether a program would refuse a workdir, whatever its flags."""
  from r2d2_acme import experiment
  from r2d2_acme.workdir import checkpointing

  try:
    experiment.check_workdir(workdir)
  except (experiment.BadInput, checkpointing.CheckpointError):
    return True
  return False


def _read_steps(workdirs: Sequence[str]) -> list[int]:
  """Is `_count_steps` in the process that imports TensorFlow."""
  from r2d2_acme.workdir import checkpointing

  def read(workdir: str) -> int:
    try:
      prefixes = checkpointing.find(workdir)
      counts = checkpointing.read_counts(prefixes[-1]) if prefixes else {}
    except checkpointing.CheckpointError:
      return 0  # the game's program will refuse the workdir and print the reason
    return int(counts.get('actor_steps', 0))

  return [read(workdir) for workdir in workdirs]


def _run(command: Sequence[str]) -> int:
  """Runs a program to its end, passes requests to stop on to it, returns its exit code.

  Raises:
    _Stopped: the user asked to stop.
  """
  with processes.Family(_PATIENCE) as family, stopping.Requests(message='') as requests:
    program = family.start('program', command)
    passed_on = 0
    while program.poll() is None:
      if requests.num > passed_on:
        processes.ask(program.pid)
        passed_on += 1
      time.sleep(_POLL_PERIOD)
  if requests.stop:
    raise _Stopped(stopping.QUIT_CODE if requests.quit else 0)
  return program.returncode


def _collect(args: argparse.Namespace) -> tuple[list[Row], list[str]]:
  """Plays with each game's newest or best checkpoint if the table does not have it yet.

  Returns:
    The rows of the games that have a checkpoint, and the names of the games whose
    checkpoint or config cannot be used. The reason has been printed.
  """
  # Imported here, because TensorFlow's memory is needed while games train.
  from r2d2_acme import experiment
  from r2d2_acme.results import evaluation
  from r2d2_acme.workdir import checkpointing

  processes.guard_children()
  runtime.hide_gpu()
  runtime.limit_threads(machine.num_cores())
  path = os.path.join(args.workdir, _TABLE)
  known = {row.game: row for row in _read_table(path)}
  rows: list[Row] = []
  failed: list[str] = []
  for game in args.games:
    workdir = os.path.join(args.workdir, game)
    try:
      if not checkpointing.find(workdir):
        continue
      prefix = checkpointing.choose(workdir, args.checkpoint)
      # A run that went back to an earlier checkpoint uses the later names again.
      learner_steps = checkpointing.read_counts(prefix).get('learner_steps', 0)
      chosen = (os.path.basename(prefix), learner_steps, args.episodes)
      row = known.get(game)
      if row is None or (row.checkpoint, row.learner_steps, row.episodes) != chosen:
        print(f'{game}: playing {args.episodes} episodes', flush=True)
        run = experiment.from_workdir(workdir)
        result = evaluation.evaluate(
          run.config,
          run.environment_factory,
          run.environment_spec,
          workdir,
          num_episodes=args.episodes,
          seed=run.config.seed,
          checkpoint=args.checkpoint,
        )
        row = make_row(game, result)
    except (experiment.BadInput, checkpointing.CheckpointError) as error:
      print(f'{game}: {error}', file=sys.stderr, flush=True)
      failed.append(game)
      continue
    known[game] = row
    rows.append(row)
    _write_table(path, [known[name] for name in sorted(known)])
  return rows, failed


def make_row(game: str, result: 'evaluation.Evaluation') -> Row:
  """Returns the table's row for an evaluation in a game."""
  mean = float(result.returns.mean())
  paper = atari_scores.GAMES[game].paper
  return Row(
    game,
    mean,
    atari_scores.human_normalized(game, mean),
    paper,
    atari_scores.human_normalized(game, paper),
    len(result.episodes),
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


def _read_table(path: str) -> list[Row]:
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


def _write_table(path: str, rows: Sequence[Row]):
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


def _print_table(rows: Sequence[Row], num_games: int):
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
  for row in rows:
    printed.add_row(
      row.game,
      f'{row.mean_return:,.1f}',
      f'{100 * row.human_normalized:,.1f} %',
      f'{row.paper_return:,.1f}',
      f'{100 * row.paper_human_normalized:,.1f} %',
      f'{row.actor_frames / 1e6:,.1f}',
    )
  console.Console().print(printed)


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
  parser = argparse.ArgumentParser(
    'atari57.py',
    description=__doc__,
    formatter_class=argparse.RawTextHelpFormatter,
    allow_abbrev=False,
  )
  parser.error = runtime.exit_with_error  # type: ignore[method-assign]
  parser.add_argument(
    '--games', metavar='A,B,…', help='such as pong,ms_pacman; by default all 57'
  )
  parser.add_argument(
    '--workdir',
    type=paths.argument,
    default='runs/atari57',
    help='folder of the table and of a workdir per game; by default runs/atari57',
  )
  parser.add_argument(
    '--max_actor_steps', type=int, help='steps to train each game for, in total'
  )
  parser.add_argument(
    '--episodes', type=int, default=10, help='episodes per game; by default 10'
  )
  parser.add_argument(
    '--checkpoint',
    choices=['best'],
    help="play with each game's best checkpoint; by default with its newest",
  )
  parser.add_argument(
    '--collect', action='store_true', help='do not train; play existing checkpoints'
  )
  args, others = parser.parse_known_args(argv)
  args.games = _parse_games(args.games)
  if args.episodes < 1:
    runtime.exit_with_error('--episodes must be at least 1')
  if not args.collect and (args.max_actor_steps or 0) < 1:
    runtime.exit_with_error(
      'give --max_actor_steps= to train each game, or --collect to only play'
    )
  for flag in others:
    if args.collect or flag.split('=')[0].lstrip('-') in _OURS:
      runtime.exit_with_error(f'{flag!r} cannot be used here: see --help')
  return args, others


def _parse_games(given: str | None) -> list[str]:
  if given is None:
    return list(atari_scores.GAMES)
  games = []
  for name in given.split(','):
    game = atari_scores.find_game(name.strip())
    if game is None:
      runtime.exit_with_error(
        f'{name!r} is not one of the 57 games: {", ".join(atari_scores.GAMES)}'
      )
    games.append(game)
  return list(dict.fromkeys(games))


if __name__ == '__main__':
  stopping.end_at_once(0, f'{_STOPPED}\n')
  sys.exit(main())
