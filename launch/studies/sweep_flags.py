"""The flags of a sweep: what it trains, and what it passes on to each run."""

import argparse
import re
from collections.abc import Sequence

from r2d2_acme.results import atari_scores
from r2d2_acme.system import runtime
from r2d2_acme.workdir import paths
from studies.arguments import positive_int

# Flags of the runs' program that this one sets, or that limit something else.
_OURS = (
  *('game', 'env', 'environment', 'seed', 'workdir', 'checkpoint'),
  *('max_actor_steps', 'max_learner_steps', 'lp_launch_type'),
)


def parse(
  argv: Sequence[str] | None, name: str, description: str | None, suite: str | None
) -> tuple[argparse.Namespace, list[str]]:
  """Parses the arguments of a program that sweeps; exits if they cannot work.

  Args:
    argv: the arguments; those of the process if None.
    name: of the program, and of its default workdir in `runs/`.
    description: for --help.
    suite: the games, unless the arguments name tasks.

  Returns:
    The arguments, in which `tasks` has the kind and the name of each task and `set` the
    values of each flag that varies; and the flags that are passed on to each run.
  """
  args, flags = _make_parser(name, description).parse_known_args(argv)
  _check(args, flags)
  args.tasks = _tasks(args, suite)
  return args, flags


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
