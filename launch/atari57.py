"""Trains on one Atari game after the other and writes their scores into one table.

python launch/atari57.py --games=pong,breakout --max_actor_steps=1000000

If it is started again, it skips the games whose newest checkpoint has as many steps and
resumes the others. Flags that are not listed here, such as --num_actors=4, are passed
on to launch/atari_distributed.py.
"""

import preamble  # noqa: F401

import argparse
import multiprocessing
import os
import pathlib
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import TypeVar

from r2d2_acme.results import atari_scores, atari_table
from r2d2_acme.system import machine, processes, runtime, stopping
from r2d2_acme.workdir import paths

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
_OURS = ('game', 'env', 'environment', 'max_learner_steps', 'lp_launch_type')


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
    atari_table.print_table(rows, len(args.games))
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


def _collect(args: argparse.Namespace) -> tuple[list[atari_table.Row], list[str]]:
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
  known = {row.game: row for row in atari_table.read(path)}
  rows: list[atari_table.Row] = []
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
        row = atari_table.make_row(game, result, run.config.atari_protocol)
    except (experiment.BadInput, checkpointing.CheckpointError) as error:
      print(f'{game}: {error}', file=sys.stderr, flush=True)
      failed.append(game)
      continue
    known[game] = row
    rows.append(row)
    atari_table.write(path, [known[name] for name in sorted(known)])
  return rows, failed


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
