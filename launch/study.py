"""Trains the cases of a study, each with several seeds, and compares them.

python launch/study.py ablation         minutes for each run
python launch/study.py initial_states   half an hour on a core
python launch/study.py memory_tasks     half an hour on a core
python launch/study.py popgym           hours on a core

`python launch/study.py ablation --help` shows the flags of that study. Finished runs
stay in --workdir and are not trained again, unless their config has changed.
"""

import preamble  # noqa: F401

import argparse

from studies import ablation, initial_states, memory_tasks, popgym, runner

from r2d2_acme.system import runtime, stopping

_STUDIES = {
  'ablation': ablation,
  'initial_states': initial_states,
  'memory_tasks': memory_tasks,
  'popgym': popgym,
}


class _Parser(argparse.ArgumentParser):
  """Prints one line where the flags cannot work."""

  def error(self, message: str):
    runtime.exit_with_error(message)


def main() -> int:
  args = make_parser().parse_args()
  return runner.main(args.make_study(args), args)


def make_parser() -> argparse.ArgumentParser:
  layout = argparse.RawTextHelpFormatter
  parser = _Parser('study.py', description=__doc__, formatter_class=layout)
  subparsers = parser.add_subparsers(
    required=True, metavar='STUDY', help=', '.join(_STUDIES)
  )
  for name, study in _STUDIES.items():
    flags = subparsers.add_parser(
      name, description=study.__doc__, formatter_class=layout
    )
    flags.set_defaults(make_study=study.make_study)
    study.add_flags(flags)
  return parser


if __name__ == '__main__':
  stopping.end_at_once(
    message='Stopped. Start again to go on after the last finished run.\n'
  )
  code = main()
  runtime.exit_now(code)
