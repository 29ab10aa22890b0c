"""Trains on several tasks with several seeds and settings; one table has the scores.

python launch/sweep.py --games=pong,breakout --seeds=3 --max_actor_steps=1000000 \\
  --set config.learning_rate=1e-4,3e-4 --jobs=2

If it is started again, it skips the runs whose newest checkpoint has as many steps and
resumes the others. Flags that are not listed here, such as --num_actors=4, are passed
on to the program of each run.
"""

import preamble  # noqa: F401

import argparse
import os
import pathlib
import re
import sys
from collections.abc import Sequence

from studies import scoring, sweeping
from studies.arguments import positive_int

from r2d2_acme.results import atari_scores
from r2d2_acme.system import runtime, stopping
from r2d2_acme.workdir import paths

STOPPED = 'stopped: start again with the same --workdir to continue'
# Flags of the runs' program that this one sets, or that limit something else.
_OURS = (
  *('game', 'env', 'environment', 'seed', 'workdir', 'checkpoint'),
  *('max_actor_steps', 'max_learner_steps', 'lp_launch_type'),
)


def main(
  argv: Sequence[str] | None = None,
  *,
  name: str = 'sweep',
  description: str | None = __doc__,
  suite: str | None = None,
) -> int:
  """Trains and scores the runs that the arguments describe; returns the exit code.

  Args:
    argv: the arguments; by default those of the process.
    name: of the program, and of its default workdir in `runs/`.
    description: for --help.
    suite: the games, unless the arguments name tasks.
  """
  args, flags = _make_parser(name, description).parse_known_args(argv)
  _check(args, flags)
  runs = sweeping.make_runs(_tasks(args, suite), args.set, args.seeds, args.workdir)
  for folder in {os.path.dirname(run.workdir) for run in runs}:
    if os.path.exists(os.path.join(folder, 'config.json')):
      runtime.exit_with_error(
        f'{paths.shown(folder)} is a run, and not a folder of one run for each seed: '
        'move what is in it to a folder 0 in it, or give another --workdir'
      )
  root = pathlib.Path(args.workdir)
  try:
    paths.check_writable(args.workdir, folders=[], files=scoring.FILES)
    if not args.collect:
      root.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    runtime.exit_with_error(
      f'cannot write in {paths.shown(error.filename)} ({error.strerror}): move '
      'it away, or give another --workdir'
    )
  failed: list[str] = []
  if not args.collect:
    training = sweeping.Training(args.program, args.max_actor_steps, flags)
    code = sweeping.check(runs, training)
    if code:
      return code
    with stopping.Requests(message='') as requests:
      failed = sweeping.train(runs, training, args.jobs, requests)
    if requests.stop:
      print(STOPPED, flush=True)
      return stopping.QUIT_CODE if requests.quit else 0
  rows, unplayed = scoring.play(runs, root, args.episodes, args.checkpoint)
  if rows:
    scoring.report(rows, root, len(runs))
  failed += [run for run in unplayed if run not in failed]
  if failed:
    runtime.exit_with_error(f'failed: {", ".join(failed)}', code=1)
  if not rows:
    runtime.exit_with_error(
      f'no run in {paths.shown(args.workdir)} has a checkpoint yet'
    )
  return 0


def _make_parser(name: str, description: str | None) -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    f'{name}.py',
    description=description,
    formatter_class=argparse.RawTextHelpFormatter,
    allow_abbrev=False,
  )
  parser.error = runtime.exit_with_error  # type: ignore[method-assign]
  tasks = parser.add_mutually_exclusive_group()
  tasks.add_argument('--games', metavar='A,B,…', help='such as pong,ms_pacman')
  tasks.add_argument('--suite', choices=atari_scores.SUITES, help='a set of games')
  tasks.add_argument('--env', metavar='A,B,…', help='environments instead of games')
  tasks.add_argument('--environment', metavar='A,B,…', help='functions of yours')
  parser.add_argument(
    '--seeds', type=positive_int, default=1, help='runs of each; by default 1'
  )
  parser.add_argument(
    '--set',
    action='append',
    default=[],
    metavar='FLAG=A,B,…',
    help='a flag of the runs to vary, such as config.n_step=3,5;\n'
    'given several times, all combinations train',
  )
  parser.add_argument(
    '--jobs', type=positive_int, default=1, help='runs at once; by default 1'
  )
  parser.add_argument(
    '--single_process',
    dest='program',
    action='store_const',
    const='single_process.py',
    default='atari_distributed.py',
    help='train each run in one process: for small environments',
  )
  parser.add_argument(
    '--workdir',
    type=paths.argument,
    default=f'runs/{name}',
    help=f"folder of the table and of the runs' workdirs; by default runs/{name}",
  )
  parser.add_argument(
    '--max_actor_steps', type=positive_int, help='steps of each run, in total'
  )
  parser.add_argument(
    '--episodes', type=positive_int, default=10, help='to score a run; by default 10'
  )
  parser.add_argument(
    '--checkpoint',
    choices=['best'],
    help="score each run's best checkpoint; by default its newest",
  )
  parser.add_argument(
    '--collect', action='store_true', help='do not train; score existing checkpoints'
  )
  return parser


def _check(args: argparse.Namespace, flags: list[str]):
  """Parses `--set` and completes the runs' flags; exits if they cannot work."""
  if not args.collect and args.max_actor_steps is None:
    runtime.exit_with_error(
      'give --max_actor_steps= to train each run, or --collect to only score them'
    )
  for flag in [*flags, *args.set]:
    if (args.collect and flag in flags) or _field(flag) in _OURS:
      runtime.exit_with_error(f'{flag!r} cannot be used here: see --help')
  values = {}
  given_flags = {_field(flag) for flag in flags}
  for text in args.set:
    flag, _, given = text.lstrip('-').partition('=')
    if _field(flag) in given_flags:
      runtime.exit_with_error(
        f'{flag} is given twice: give all its values in one --set'
      )
    given_flags.add(_field(flag))
    # Not at the commas of a tuple.
    values[flag] = list(dict.fromkeys(re.split(r',(?![^(]*\))', given)))
    if not all(values[flag]):
      runtime.exit_with_error(f'--set {text}: give values, such as {flag}=1,2')
  args.set = values
  if args.program == 'atari_distributed.py':
    flags.insert(0, '--lp_launch_type=local_mp')


def _field(flag: str) -> str:
  """Returns what a flag sets: --num_actors=2 is short for --config.num_actors=2."""
  return flag.lstrip('-').partition('=')[0].removeprefix('config.')


def _tasks(args: argparse.Namespace, suite: str | None) -> list[tuple[str, str]]:
  """Returns the kind and the name of each task."""
  for kind in ('env', 'environment'):
    if getattr(args, kind):
      names = [name.strip() for name in getattr(args, kind).split(',')]
      if not all(names):
        runtime.exit_with_error(f'--{kind} has an empty name: give names such as A,B')
      return [(kind, name) for name in dict.fromkeys(names)]
  chosen = args.suite or (None if args.games else suite)
  if chosen:
    return [('game', game) for game in atari_scores.SUITES[chosen]]
  if not args.games:
    runtime.exit_with_error('give --games=, --suite=, --env= or --environment=')
  games: dict[tuple[str, str], None] = {}
  for name in args.games.split(','):
    game = atari_scores.find_game(name.strip())
    if game is None:
      runtime.exit_with_error(
        f'{name!r} is not one of the 57 games: {", ".join(atari_scores.GAMES)}'
      )
    games['game', game] = None
  return list(games)


if __name__ == '__main__':
  stopping.end_at_once(0, f'{STOPPED}\n')
  sys.exit(main())
