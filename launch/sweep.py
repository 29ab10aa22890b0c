"""Trains on several tasks with several seeds and settings; one table has the scores.

python launch/sweep.py --games=pong,breakout --seeds=3 --max_actor_steps=1000000 \\
  --set config.learning_rate=1e-4,3e-4 --jobs=2

If it is started again, it skips the runs whose newest checkpoint has as many steps and
resumes the others. Flags that are not listed here, such as --num_actors=4, are passed
on to the program of each run.
"""

import preamble  # noqa: F401

import os
import pathlib
import sys
from collections.abc import Sequence

from studies import scoring, sweep_flags, sweeping

from r2d2_acme.system import runtime, stopping
from r2d2_acme.workdir import paths

STOPPED = 'stopped: start again with the same --workdir to continue'


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
  args, flags = sweep_flags.parse(argv, name, description, suite)
  runs = sweeping.make_runs(args.tasks, args.set, args.seeds, args.workdir)
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


if __name__ == '__main__':
  stopping.end_at_once(0, f'{STOPPED}\n')
  sys.exit(main())
