"""`launch/studies/popgym.py`: what counts as a score, and what is written."""

import csv
import importlib.util
import math

import pytest
from studies import memory_tasks, popgym

from tests.launch.studies import study_helpers

_TASK = 'popgym:popgym-RepeatFirstEasy-v0'


def _curve(*returns, **of_run):
  return study_helpers.make_curve(_TASK, math.inf, *returns, **of_run)


_CURVES = (
  _curve(-0.5, 0.75, 0.5),
  _curve(-0.5, -0.25, -0.75, recurrent=False),
  _curve(-0.5, 0.25, 0.25, seed=1),
)


def test_no_return_ends_a_run_early():
  cases = memory_tasks.make_cases(popgym.TASKS[0])
  assert {case.max_steps for case in cases.values()} == {popgym.TASKS[0].max_steps}
  assert _curve(1e9, 1e9).solved_at is None


def test_table_has_the_highest_evaluation_and_the_last_two():
  lines = study_helpers.read_cells(popgym.make_table(_CURVES))
  name = 'popgym-RepeatFirstEasy-v0'
  highest, last = '0.50 [0.25, 0.75]', '0.44 [0.25, 0.62]'
  assert lines == [
    [name, '3,000', 'memory', highest, last],
    [name, '3,000', 'memoryless', '-0.25', '-0.50'],
  ]


def test_scores_have_a_row_for_each_run(tmp_path):
  path = tmp_path / 'scores.csv'
  popgym.write_scores(_CURVES, path)
  rows = list(csv.DictReader(path.open()))
  assert [(row['agent'], row['seed'], row['highest_return']) for row in rows] == [
    ('memory', '0', '0.75'),
    ('memoryless', '0', '-0.25'),
    ('memory', '1', '0.25'),
  ]


@pytest.mark.slow
def test_it_all_comes_together(tmp_path):
  if importlib.util.find_spec('popgym') is None:
    pytest.skip('popgym is not installed: make install EXTRAS=envs')
  ended = study_helpers.run_program(
    *('popgym', f'--tasks={_TASK}', '--seeds=0', '--max_steps=1'),
    *('--workdir=work', '--out=out/curves.png'),
    cwd=tmp_path,
  )
  assert ended.returncode == 0, ended.stderr
  assert (tmp_path / 'out' / 'curves.png').exists()
  rows = list(csv.DictReader((tmp_path / 'out' / 'scores.csv').open()))
  assert [row['agent'] for row in rows] == ['memory', 'memoryless']
