"""Rows reach the terminal, the CSV file and TensorBoard, also in a second sitting."""

import csv
import glob
import itertools
import math
import os
import threading
import time

import pytest
import tensorflow as tf
from acme.utils import counting

from r2d2_acme.workdir import loggers

_ROLES = ('learner', 'actor', 'evaluator')


def _read_csv(workdir, label: str) -> list[dict[str, str]]:
  with open(os.path.join(workdir, 'logs', label, 'logs.csv')) as file:
    return list(csv.DictReader(file))


def _read_scalars(workdir, label: str) -> dict[str, list[tuple[int, float]]]:
  """Returns pairs of step and value by tag."""
  scalars: dict[str, list[tuple[int, float]]] = {}
  for path in sorted(glob.glob(os.path.join(workdir, 'tb', label, 'events.*'))):
    for event in tf.compat.v1.train.summary_iterator(path):
      for value in event.summary.value:
        pair = event.step, float(tf.make_ndarray(value.tensor))
        scalars.setdefault(value.tag, []).append(pair)
  return scalars


@pytest.mark.parametrize('role', _ROLES)
def test_csv_has_the_roles_columns_whatever_a_row_lacks(tmp_path, role):
  logger = loggers.make_logger(str(tmp_path), role)
  logger.write({'learner_steps': 3, 'unheard_of': 1})
  (row,) = _read_csv(tmp_path, role)
  assert row.keys() == set(loggers.COLUMNS[role])
  assert row['learner_steps'] == '3'
  assert row['actor_steps'] == '0'


def test_row_is_on_disk_as_soon_as_it_is_written(tmp_path):
  logger = loggers.make_logger(str(tmp_path), 'learner')
  for step in (1, 2, 3):
    logger.write({'learner_steps': step})
    assert len(_read_csv(tmp_path, 'learner')) == step


def test_second_sitting_appends_in_the_same_columns(tmp_path):
  first = loggers.make_logger(str(tmp_path), 'actor')
  first.write({'episode_return': 1.5, 'actor_steps': 10, 'actor_episodes': 1})
  first.close()
  second = loggers.make_logger(str(tmp_path), 'actor')
  second.write({'actor_steps': 20})  # the other counts are not known yet
  second.close()
  rows = _read_csv(tmp_path, 'actor')
  assert [row['actor_steps'] for row in rows] == ['10', '20']
  assert [float(row['episode_return']) for row in rows] == [1.5, 0]


def test_rows_have_the_number_of_the_newest_sitting(tmp_path):
  for number in range(3):
    assert loggers.begin_sitting(str(tmp_path), {}) == number
    loggers.make_logger(str(tmp_path), 'actor').write({})
  assert [row['sitting'] for row in _read_csv(tmp_path, 'actor')] == ['0', '1', '2']


def test_each_node_has_its_own_files(tmp_path):
  for index in range(3):
    loggers.make_logger(str(tmp_path), 'actor', index).write({'actor_steps': index})
  labels = ['actor', 'actor_1', 'actor_2']
  assert sorted(os.listdir(tmp_path / 'logs')) == labels
  assert sorted(os.listdir(tmp_path / 'tb')) == labels
  rows = [row for label in labels for row in _read_csv(tmp_path, label)]
  assert [row['actor_steps'] for row in rows] == ['0', '1', '2']


@pytest.mark.parametrize(
  ('role', 'step'),
  [
    ('learner', 'learner_steps'),
    ('actor', 'actor_steps'),
    ('evaluator', 'actor_steps'),
  ],
)
def test_tensorboard_counts_in_the_roles_steps(tmp_path, role, step):
  counts = {
    'learner_steps': 2**24 + 1,
    'actor_steps': 2**33 + 1,
  }  # float32 cannot hold them
  logger = loggers.make_logger(str(tmp_path), role)
  logger.write({**counts, 'wall_time': 0.5})
  logger.close()
  scalars = _read_scalars(tmp_path, role)
  assert scalars[f'{role}/WallTime'] == [(counts[step], 0.5)]
  assert len(scalars) == len(loggers.COLUMNS[role]) - 1  # the steps are the x-axis


def test_terminal_gets_a_line_every_ten_seconds_and_files_get_all(tmp_path, capsys):
  logger = loggers.make_logger(str(tmp_path), 'learner')
  started = time.time()
  for step in range(20):
    logger.write({'learner_steps': step})
  seconds = time.time() - started
  lines = capsys.readouterr().out.splitlines()
  assert 1 <= len(lines) <= 1 + seconds / 10
  assert lines[0].startswith('[Learner] ')
  assert len(_read_csv(tmp_path, 'learner')) == 20
  logger.close()
  assert len(_read_scalars(tmp_path, 'learner')['learner/Loss']) == 20


def test_terminal_gets_all_rows_of_the_evaluator(tmp_path, capsys):
  logger = loggers.make_logger(str(tmp_path), 'evaluator')
  for step in range(3):
    time.sleep(0.01)
    logger.write({'episode_return': step})
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 3
  assert all(line.startswith('[Evaluator] ') for line in lines)


def test_tensors_are_logged_as_numbers(tmp_path):
  logger = loggers.make_logger(str(tmp_path), 'learner')
  logger.write({'loss': tf.constant(0.25), 'max_q': float('nan')})
  logger.close()
  (row,) = _read_csv(tmp_path, 'learner')
  assert float(row['loss']) == 0.25
  assert math.isnan(float(row['max_q']))


def test_without_a_workdir_there_is_the_terminal_only(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path))
  logger = loggers.make_logger(None, 'learner')
  logger.write({'learner_steps': 7})
  logger.close()
  assert 'Learner Steps = 7' in capsys.readouterr().out
  assert not os.listdir(tmp_path)


def test_wall_time_goes_on_where_the_last_sitting_ended():
  counts = {'wall_time': 1000.0, 'actor_steps': 5}
  started = time.time()
  root = loggers.WallTimeCounter(counts)
  child = counting.Counter(root, prefix='actor', time_delta=0.0)
  before = child.increment(steps=2)
  time.sleep(0.01)
  after = root.get_counts()
  assert before['actor_steps'] == after['actor_steps'] == 7
  assert 1000 <= before['wall_time'] < after['wall_time']
  assert after['wall_time'] <= 1000 + time.time() - started
  assert counts == {'wall_time': 1000.0, 'actor_steps': 5}


def test_new_counter_starts_at_nothing():
  counts = loggers.WallTimeCounter().get_counts()
  assert counts.keys() == {'wall_time'}
  assert 0 <= counts['wall_time'] < 60


def _steps(workdir, label: str) -> list[tuple[int, int]]:
  rows = _read_csv(workdir, label)
  return [(int(row['learner_steps']), int(row['actor_steps'])) for row in rows]


_BEFORE = [(1, 10), (5, 20), (9, 30)]


@pytest.mark.parametrize(
  ('role', 'again', 'logged', 'unit'),
  [
    # A learner that starts again logs no step twice.
    ('learner', [(4, 31), (9, 33), (10, 40)], [(10, 40)], 'learner step 9'),
    # The parameters that the evaluator plays with go back.
    ('evaluator', [(4, 31), (9, 33), (9, 33)], [(9, 33)] * 2, 'learner step 9'),
    ('evaluator', [(10, 29), (10, 30)], [(10, 30)], 'actor step 30'),
    (
      'actor',
      [(9, 28), (9, 29), (9, 30), (9, 31)],
      [(9, 30), (9, 31)],
      'actor step 30',
    ),
    ('actor', [(8, 31), (9, 32)], [(9, 32)], 'learner step 9'),
  ],
)
@pytest.mark.parametrize('is_new', [False, True], ids=['same node', 'new node'])
def test_rows_that_repeat_steps_are_dropped_with_one_line(
  tmp_path, capsys, role, again, logged, unit, is_new
):
  logger = loggers.make_logger(str(tmp_path), role)

  def write(rows):
    for learner_steps, actor_steps in rows:
      logger.write({'learner_steps': learner_steps, 'actor_steps': actor_steps})

  write(_BEFORE)
  if is_new:
    logger = loggers.make_logger(str(tmp_path), role)
  capsys.readouterr()
  write(again)
  assert _steps(tmp_path, role) == _BEFORE + logged
  lines = capsys.readouterr().out.splitlines()
  assert [line for line in lines if not line.startswith('[')] == [
    f'{role} repeats steps after a restart; rows are logged again from {unit} on'
  ]
  logger.close()
  tag = f'{role}/WallTime'
  steps = [step for step, _ in _read_scalars(tmp_path, role)[tag]]
  assert steps == sorted(steps)


def test_only_rows_that_count_are_caught_up_with(tmp_path):
  """A start goes back to a checkpoint: what was logged after it is logged again."""
  for counts in ({}, {'learner_steps': 5, 'actor_steps': 20}):
    sitting = loggers.begin_sitting(str(tmp_path), counts)
    for role in _ROLES:
      logger = loggers.make_logger(str(tmp_path), role, sitting=sitting)
      for learner_steps, actor_steps in [*_BEFORE, (12, 40)]:
        logger.write({'learner_steps': learner_steps, 'actor_steps': actor_steps})
  for role in _ROLES:
    steps = [learner_steps for learner_steps, _ in _steps(tmp_path, role)]
    repeated = {'learner': [], 'evaluator': [5], 'actor': [5]}[role]
    assert steps == [1, 5, *repeated, 9, 12]


def test_failures_are_counted_over_all_starts_of_a_node(tmp_path):
  step = itertools.count()
  for failures in ((0, 2), (0, 1), (0,)):
    logger = loggers.make_logger(str(tmp_path), 'actor')
    for count in failures:
      logger.write({'actor_steps': next(step), 'environment_failures': count})
  rows = _read_csv(tmp_path, loggers.label('actor', 0))
  assert [int(row['environment_failures']) for row in rows] == [0, 2, 2, 3, 3]


def test_rows_that_come_after_the_end_are_dropped_in_silence(tmp_path, capfd):
  """At a stop a thread may still act while another one closes its log."""
  logger = loggers.make_logger(str(tmp_path), 'actor')

  def write():
    for step in itertools.count():
      logger.write({'actor_steps': step, 'learner_steps': step})
      if is_over.is_set():
        break

  is_over = threading.Event()
  thread = threading.Thread(target=write)
  thread.start()
  time.sleep(0.3)
  logger.close()
  files = sorted(tmp_path.rglob('*'))
  size = os.path.getsize(tmp_path / 'logs' / 'actor' / 'logs.csv')
  time.sleep(0.2)
  is_over.set()
  thread.join()
  assert sorted(tmp_path.rglob('*')) == files
  assert os.path.getsize(tmp_path / 'logs' / 'actor' / 'logs.csv') == size
  assert capfd.readouterr().err == ''
