"""Scores of the runs of a sweep: checkpoints play, tables and a figure follow."""

import os
import pathlib
import sys
from collections.abc import Sequence

from r2d2_acme.results import score_table
from r2d2_acme.system import machine, processes, runtime
from r2d2_acme.workdir import paths
from studies.sweeping import Run

SCORES, _SUMMARY, _PROFILES = 'scores.csv', 'summary.csv', 'profiles.png'
FILES = (SCORES, _SUMMARY, _PROFILES)


def play(
  runs: Sequence[Run], root: pathlib.Path, num_episodes: int, checkpoint: str | None
) -> tuple[list[score_table.Row], list[str]]:
  """Plays with each run's checkpoint, unless the table has its score already.

  Args:
    runs: of the sweep.
    root: the workdir of the sweep, where the table is.
    num_episodes: for each run.
    checkpoint: 'best', or None for the newest.

  Returns:
    The rows of the runs that have a checkpoint, and the names of those whose checkpoint
    or config cannot be used. The reason has been printed.
  """
  # Imported here, because TensorFlow's memory is needed while runs train.
  from r2d2_acme import environments, experiment
  from r2d2_acme.results import evaluation
  from r2d2_acme.workdir import checkpointing

  processes.guard_children()
  runtime.hide_gpu()
  runtime.limit_threads(machine.num_cores())
  path = root / SCORES
  known = {(row.task, row.setting, row.seed): row for row in score_table.read(path)}
  rows: list[score_table.Row] = []
  failed: list[str] = []
  for run in runs:
    key = (run.task, run.label, run.seed)
    try:
      if not checkpointing.find(run.workdir):
        continue
      prefix = checkpointing.choose(run.workdir, checkpoint)
      # A run that went back to an earlier checkpoint uses the later names again.
      learner_steps = checkpointing.read_counts(prefix).get('learner_steps', 0)
      chosen = (os.path.basename(prefix), learner_steps, num_episodes)
      row = known.get(key)
      if row is None or (row.checkpoint, row.learner_steps, row.episodes) != chosen:
        print(f'{run.name}: playing {num_episodes} episodes', flush=True)
        stored = experiment.from_workdir(run.workdir)
        result = evaluation.evaluate(
          stored.config,
          stored.environment_factory,
          stored.environment_spec,
          run.workdir,
          num_episodes=num_episodes,
          seed=stored.config.seed,
          checkpoint=checkpoint,
        )
        is_atari = environments.is_atari(stored.environment_factory)
        protocol = stored.config.atari_protocol if is_atari else ''
        row = score_table.make_row(*key, result, protocol)
    except (
      experiment.BadInput,
      checkpointing.CheckpointError,
      environments.EnvironmentFailed,
    ) as error:
      print(f'{run.name}: {error}', file=sys.stderr, flush=True)
      failed.append(run.name)
      continue
    known[key] = row
    rows.append(row)
    score_table.write(path, [known[key] for key in sorted(known)])
  return rows, failed


def report(rows: Sequence[score_table.Row], root: pathlib.Path, num_runs: int):
  """Prints the tables, and writes the aggregates and their figure."""
  statistics = score_table.summarize(rows)
  score_table.print_tables(rows, statistics, num_runs)
  names = [SCORES]
  if statistics:
    score_table.write_summary(root / _SUMMARY, statistics)
    score_table.draw_profiles(root / _PROFILES, rows)
    names = list(FILES)
  print(', '.join(paths.shown(str(root / name)) for name in names))
