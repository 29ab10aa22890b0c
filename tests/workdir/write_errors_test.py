"""What cannot be written is said and lost, and nothing ends because of it."""

import contextlib
import csv
import multiprocessing
import os
import pathlib
import resource
import shutil
import subprocess

import pytest

from r2d2_acme.workdir import csv_files, loggers, sittings
from r2d2_acme.workdir import write_errors as write_errors_lib
from r2d2_acme.workdir.write_errors import WriteErrors
from tests.workdir.sittings_test import _points_in_python

_FULL = 'No space left on device'


@pytest.fixture
def disk(tmp_path):
  """A file system of 1 MiB."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  command = ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'none', str(folder)]
  if subprocess.run(command, capture_output=True).returncode:
    pytest.skip('may not mount')
  yield folder
  subprocess.run(['umount', '--lazy', str(folder)], check=True)


def _fill(disk: pathlib.Path):
  with (
    contextlib.suppress(OSError),
    open(disk / 'filler', 'ab', buffering=0) as file,
  ):
    while True:
      file.write(bytes(4096))


def _rows(workdir: pathlib.Path, label: str = 'learner') -> list[int]:
  with open(workdir / 'logs' / label / 'logs.csv') as file:
    rows = list(csv.DictReader(file))
  assert all(None not in row and None not in row.values() for row in rows)
  return [int(row['learner_steps']) for row in rows]


def _steps_in_tensorboard(workdir: pathlib.Path) -> list[int]:
  points = _points_in_python(workdir / 'tb' / 'learner')
  return [step for step, _ in points['learner/Loss']]


def _write_until_full(logger: loggers.loggers.Logger, capsys) -> int:
  """Writes rows until one is lost; returns its step."""
  step = 0
  while not capsys.readouterr().err:
    step += 1
    logger.write({'learner_steps': step})
  return step


def test_full_disk_loses_rows_and_no_others(disk, capsys):
  logger = loggers.make_logger(str(disk), 'learner')
  with open(disk / 'filler', 'wb') as file:
    file.write(bytes(900 << 10))
  lost = _write_until_full(logger, capsys)
  _fill(disk)
  for step in range(lost + 1, lost + 50):
    logger.write({'learner_steps': step})
  assert capsys.readouterr().err == ''  # one line a minute
  files = len(os.listdir(disk / 'tb' / 'learner'))
  assert files <= 2
  (disk / 'filler').unlink()
  for step in range(1000, 1005):
    logger.write({'learner_steps': step})
  logger.close()
  for steps in _rows(disk), _steps_in_tensorboard(disk):
    assert steps[-5:] == list(range(1000, 1005))
    assert steps == sorted(set(steps))
    assert set(range(1, lost)) <= set(steps)


def test_line_names_the_file_the_reason_and_what_it_means(disk, capsys):
  logger = loggers.make_logger(str(disk), 'learner')
  _fill(disk)
  logger.write({'learner_steps': 1})
  assert capsys.readouterr().err == (
    f'error: cannot write {disk}/logs/learner/logs.csv: {_FULL}; training goes on, '
    'rows are lost until it can be written\n'
  )


def test_line_comes_again_after_a_minute(monkeypatch, capsys):
  errors = WriteErrors('so it goes')
  for period, num_lines in ((60.0, 1), (0.0, 2)):
    monkeypatch.setattr(write_errors_lib, '_PERIOD', period)
    errors = WriteErrors('so it goes')
    for _ in range(2):
      with errors.reported():
        raise OSError(28, _FULL, 'a\nb')
    line = f'error: cannot write a\\nb: {_FULL}; so it goes'
    assert capsys.readouterr().err == f'{line}\n' * num_lines
    assert errors.last == line
  with errors.reported():
    pass
  assert errors.last == ''


def test_errors_of_other_kinds_are_not_swallowed():
  with pytest.raises(ValueError), WriteErrors('').reported():
    raise ValueError


def _write_with_a_limit(path: str, size: int):
  """Writes three rows; when it writes the second, the file may have `size` bytes."""
  logger = csv_files.CsvLogger(path, ['b', 'a'])
  logger.write({'a': 1, 'b': 2})
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
  with pytest.raises(OSError, match='File too large') as raised:
    logger.write({'a': 1234, 'b': 5678})
  assert raised.value.filename == path
  resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
  assert os.path.getsize(path) == size
  logger.write({'a': 3, 'b': 4})


@pytest.mark.parametrize('half', ['', '1', '1234,567', '1234,5678\r'])
def test_half_a_row_is_removed_before_the_next_one(tmp_path, half):
  """A disk may become full in the midst of a row."""
  path, whole = tmp_path / 'logs.csv', 'a,b\r\n1,2\r\n'
  process = multiprocessing.get_context('fork').Process(
    target=_write_with_a_limit, args=[str(path), len(whole + half)]
  )
  process.start()
  process.join()
  assert process.exitcode == 0
  assert path.read_bytes() == f'{whole}3,4\r\n'.encode()


@pytest.mark.parametrize('kind', ['vanished', 'read-only', 'a file'])
def test_folder_that_cannot_be_written_ends_nothing(disk, kind, capsys):
  workdir = disk / 'run'
  logger = loggers.make_logger(str(workdir), 'learner')
  logger.write({'learner_steps': 1})
  logger._to.close()  # else the disk is busy; the next row opens a new file
  if kind == 'read-only':
    subprocess.run(['mount', '-o', 'remount,ro', str(disk)], check=True)
  else:
    shutil.rmtree(workdir)
  if kind == 'a file':
    workdir.write_text('')
  for step in range(2, 10):
    logger.write({'learner_steps': step})
  logger.close()
  reason = {
    'vanished': 'No such file or directory',
    'read-only': 'Read-only file system',
    'a file': 'Not a directory',
  }[kind]
  (line,) = capsys.readouterr().err.splitlines()
  assert reason in line
  if kind == 'vanished':
    assert not workdir.exists()  # it may be a mount point


def test_node_starts_on_a_full_disk(disk, capsys):
  """It may have died of something else while the disk was full."""
  _fill(disk)
  for index in range(300):  # until there is no space for a folder either
    logger = loggers.make_logger(str(disk), 'actor', index)
    logger.write({'actor_steps': 1})
    logger.close()
  assert _FULL in capsys.readouterr().err


def test_start_on_a_full_disk_leaves_the_logs_as_they_are(disk, capsys):
  first = loggers.begin_sitting(str(disk), {})
  for role in ('learner', 'evaluator'):
    logger = loggers.make_logger(str(disk), role, sitting=first)
    for step in range(1, 6):
      logger.write({'learner_steps': step, 'actor_steps': step})
  before = (disk / 'logs/learner/logs.csv').read_bytes()
  _fill(disk)
  counts = {'learner_steps': 3, 'actor_steps': 3, 'wall_time': 9}
  second = loggers.begin_sitting(str(disk), counts)
  (line,) = capsys.readouterr().err.splitlines()
  assert 'abandoned.csv' in line
  assert _FULL in line
  assert (disk / 'logs/learner/logs.csv').read_bytes() == before
  assert not (disk / 'logs/learner/logs.csv.new').exists()
  read = sittings.read_rows(str(disk), 'learner', ['learner_steps'])
  assert read[:, 0].tolist() == [1, 2, 3]
  (disk / 'filler').unlink()
  logger = loggers.make_logger(str(disk), 'learner', sitting=second)
  logger.write({'learner_steps': 4})
  loggers.begin_sitting(str(disk), {**counts, 'learner_steps': 4})  # makes up for it
  assert _rows(disk) == [1, 2, 3, 4]


def test_lines_are_read_backwards_as_forwards(tmp_path, monkeypatch):
  path = tmp_path / 'lines'
  for block in (1, 2, 3, 7, 1000):
    monkeypatch.setattr(csv_files, '_BLOCK', block)
    for content in (b'', b'a', b'\n', b'a\n', b'\nab\n\nc\n', b'a,b\n1,2\nhalf'):
      path.write_bytes(content)
      forwards = list(csv_files.read_lines(path))
      assert list(csv_files.read_lines_backwards(path)) == forwards[::-1]
      csv_files.mend(path)
      assert path.read_bytes() == b''.join(forwards)
  assert not list(csv_files.read_lines_backwards(tmp_path / 'none'))
