"""Sittings: their numbers, which rows of a log count, and what TensorBoard shows."""

import csv
import multiprocessing
import os
import pathlib
import resource
import signal

import pytest
import tensorflow as tf
from acme.utils.loggers import tf_summary
from tensorboard import context
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.data import server_ingester
from tensorboard.util import grpc_util

from r2d2_acme.workdir import loggers, sittings


def _counts(steps: int) -> dict[str, float]:
  """Returns plausible counts after so many environment steps."""
  return {
    'wall_time': steps / 10 + 0.5,
    'actor_steps': steps,
    'actor_frames': 4 * steps,
    'learner_steps': steps // 5,
  }


def _write(workdir, sitting, steps, role='evaluator', index=0):
  """Writes a row at each of these steps, whose return or loss equals the steps."""
  logger = loggers.make_logger(str(workdir), role, index, sitting=sitting)
  for step in steps:
    value = {'loss' if role == 'learner' else 'episode_return': float(step)}
    logger.write({**value, **_counts(step)})
  logger.close()


def _read(workdir, label='evaluator') -> list[float]:
  """Reads the returns or losses of the rows that count."""
  column = 'loss' if label == 'learner' else 'episode_return'
  return sittings.read_rows(str(workdir), label, [column])[:, 0].tolist()


def _log(workdir, label='evaluator', name='logs.csv') -> pathlib.Path:
  return pathlib.Path(workdir, 'logs', label, name)


def _returns_in(path: pathlib.Path) -> list[float]:
  with open(path) as file:
    return [float(row['episode_return']) for row in csv.DictReader(file)]


# Numbers.


def test_sittings_are_numbered_from_0_and_keep_where_they_started(tmp_path):
  starts = [{}, _counts(100), _counts(50), _counts(50)]
  begun = [sittings.begin(str(tmp_path), counts) for counts in starts]
  assert [sitting.number for sitting in begun] == [0, 1, 2, 3]
  assert sittings.read(str(tmp_path)) == begun
  assert begun[0].counts == dict.fromkeys(_counts(0), 0)
  assert [sitting.counts for sitting in begun[1:]] == starts[1:]
  lines = (tmp_path / 'logs' / 'sittings.csv').read_text().splitlines()
  header = 'sitting,started_at,wall_time,actor_steps,actor_frames,learner_steps'
  assert lines[0] == header
  assert len(lines) == 5


@pytest.mark.parametrize('line', [f'1,then{",nan" * 4}', f'{10**20},then{",0" * 4}'])
def test_damaged_line_of_the_list_hinders_nothing(tmp_path, line):
  first = sittings.begin(str(tmp_path), {})
  _write(tmp_path, first.number, [10, 20])
  with open(tmp_path / 'logs/sittings.csv', 'a') as file:
    file.write(f'{line}\n')
  assert _read(tmp_path) == [10, 20]
  second = sittings.begin(str(tmp_path), _counts(10))
  assert 0 < second.number < 10
  assert sittings.read(str(tmp_path)) == [first, second]
  _write(tmp_path, second.number, [15])
  assert _read(tmp_path) == [10, 15]


def test_without_a_workdir_the_number_is_0_and_there_is_no_file(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert [sittings.begin(None, _counts(3)).number for _ in range(2)] == [0, 0]
  assert not os.listdir(tmp_path)
  assert sittings.read(str(tmp_path)) == []


@pytest.mark.parametrize('length', [1, 2, 10, 40])
def test_line_that_was_cut_short_breaks_nothing_and_is_not_believed(tmp_path, length):
  for steps in (0, 12345):
    sittings.begin(str(tmp_path), _counts(steps))
  path = tmp_path / 'logs' / 'sittings.csv'
  path.write_bytes(path.read_bytes()[:-length])
  (first,) = sittings.read(str(tmp_path))
  assert first.number == 0
  third = sittings.begin(str(tmp_path), _counts(10))
  assert third.number == 2
  assert sittings.read(str(tmp_path)) == [first, third]


def test_list_whose_header_was_cut_short_is_begun_anew(tmp_path):
  (tmp_path / 'logs').mkdir()
  (tmp_path / 'logs' / 'sittings.csv').write_text('sitting,start')
  assert sittings.begin(str(tmp_path), {}).number == 0
  assert [sitting.number for sitting in sittings.read(str(tmp_path))] == [0]


def test_garbage_in_the_list_is_passed_over(tmp_path):
  sittings.begin(str(tmp_path), {})
  path = tmp_path / 'logs' / 'sittings.csv'
  path.write_bytes(path.read_bytes() + b'\0\0\xff\n\n7,x\n')
  assert sittings.begin(str(tmp_path), {}).number == 8
  assert [sitting.number for sitting in sittings.read(str(tmp_path))] == [0, 8]


def _begin_many(workdir):
  for _ in range(20):
    sittings.begin(workdir, {})


def test_starts_at_the_same_time_have_different_numbers(tmp_path):
  spawn = multiprocessing.get_context('fork')
  processes = [spawn.Process(target=_begin_many, args=[str(tmp_path)]) for _ in '123']
  for process in processes:
    process.start()
  for process in processes:
    process.join()
  numbers = [sitting.number for sitting in sittings.read(str(tmp_path))]
  assert numbers == list(range(60))


# Rows.


def test_rows_of_an_abandoned_timeline_do_not_count(tmp_path):
  """They are left out even before the new sitting has written anything."""
  workdir = str(tmp_path)
  first = loggers.begin_sitting(workdir, {})
  _write(tmp_path, first, [10, 20, 30, 40])
  second = loggers.begin_sitting(workdir, _counts(25))
  assert _read(tmp_path) == [10, 20]
  _write(tmp_path, second, [28, 50])
  assert _read(tmp_path) == [10, 20, 28, 50]
  loggers.begin_sitting(workdir, _counts(55))  # abandons nothing
  assert _read(tmp_path) == [10, 20, 28, 50]
  last = loggers.begin_sitting(workdir, _counts(15))  # abandons rows of both
  _write(tmp_path, last, [16])
  assert _read(tmp_path) == [10, 16]
  assert _returns_in(_log(tmp_path)) == [10, 16]
  abandoned = _log(tmp_path, name='abandoned.csv')
  assert _returns_in(abandoned) == [30, 40, 20, 28, 50]


def _peak_of_begin(workdir: str) -> int:
  """Begins a sitting in a process of its own; returns the bytes that this needs."""

  def begin(pipe):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loggers.begin_sitting(workdir, _counts(20))
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

  reader, writer = multiprocessing.Pipe()
  process = multiprocessing.get_context('fork').Process(target=begin, args=[writer])
  process.start()
  process.join()
  return reader.recv() << 10


def test_start_needs_no_more_memory_for_a_huge_log(tmp_path, monkeypatch):
  monkeypatch.setattr(sittings, '_MAX_SEARCH', 1 << 20)
  first = loggers.begin_sitting(str(tmp_path), {})
  _write(tmp_path, first, [10], 'learner')
  header, row = _log(tmp_path, 'learner').read_bytes().splitlines(keepends=True)
  with open(_log(tmp_path, 'learner'), 'ab') as file:
    file.write(row * ((100 << 20) // len(row)))
  _write(tmp_path, first, [20, 30], 'learner')
  assert _peak_of_begin(str(tmp_path)) < 32 << 20
  assert _log(tmp_path, 'learner').stat().st_size > 100 << 20
  last = sittings.read_last_row(str(tmp_path), 'learner')
  assert last['loss'] == 20
  abandoned = _log(tmp_path, 'learner', 'abandoned.csv').read_bytes().splitlines()
  assert len(abandoned) == 2
  assert abandoned[0] + b'\r\n' == header


def test_log_stays_whole_if_the_process_is_killed_while_it_moves_rows(tmp_path):
  workdir = str(tmp_path)
  _write(tmp_path, loggers.begin_sitting(workdir, {}), [10, 20, 30, 40])
  whole = _log(tmp_path).read_bytes()
  sittings.begin(workdir, _counts(20))

  def move_until_killed():
    os.replace = lambda *unused: os.kill(os.getpid(), signal.SIGKILL)
    sittings.abandon_rows(workdir, 'evaluator')

  process = multiprocessing.get_context('fork').Process(target=move_until_killed)
  process.start()
  process.join()
  assert process.exitcode == -signal.SIGKILL
  assert _log(tmp_path).read_bytes() == whole
  assert _read(tmp_path) == [10, 20]
  sittings.abandon_rows(workdir, 'evaluator')
  assert _returns_in(_log(tmp_path)) == [10, 20]
  assert set(_returns_in(_log(tmp_path, name='abandoned.csv'))) == {30, 40}


def test_logs_of_earlier_versions_are_put_in_order_too(tmp_path):
  """These left rows that do not count in the midst of the file."""
  workdir = str(tmp_path)
  for counts, steps in ((0, [10, 20, 30]), (20, [25, 40]), (25, [26])):
    sitting = sittings.begin(workdir, _counts(counts) if counts else {})
    with open(_log_of_old_version(tmp_path), 'a') as file:
      for step in steps:
        row = {**_counts(step), 'episode_return': step, 'sitting': sitting.number}
        file.write(','.join(str(row[name]) for name in _OLD_COLUMNS) + '\n')
  loggers.begin_sitting(workdir, _counts(30))
  assert _returns_in(_log(tmp_path)) == [10, 20, 25, 26]
  assert _returns_in(_log(tmp_path, name='abandoned.csv')) == [30, 40]


_OLD_COLUMNS = ('actor_steps', 'episode_return', 'sitting', 'wall_time')


def _log_of_old_version(workdir) -> pathlib.Path:
  path = _log(workdir)
  if not path.exists():
    path.parent.mkdir(parents=True)
    path.write_text(','.join(_OLD_COLUMNS) + '\n')
  return path


def test_everything_is_abandoned_where_there_was_no_checkpoint(tmp_path):
  _write(tmp_path, loggers.begin_sitting(str(tmp_path), {}), [10, 20])
  second = loggers.begin_sitting(str(tmp_path), {})
  assert _read(tmp_path) == []
  _write(tmp_path, second, [5])
  assert _read(tmp_path) == [5]


def test_learner_rows_are_cut_at_its_own_steps(tmp_path):
  """The other counts in a checkpoint may be a second older than its weights."""
  _write(tmp_path, loggers.begin_sitting(str(tmp_path), {}), [50, 55, 60], 'learner')
  loggers.begin_sitting(str(tmp_path), {**_counts(52), 'learner_steps': 11})
  assert _read(tmp_path, 'learner') == [50, 55]


def test_what_the_checkpoint_had_not_counted_cuts_nothing(tmp_path):
  """Such a checkpoint comes from an agent that does not share the loop's counter."""
  _write(tmp_path, loggers.begin_sitting(str(tmp_path), {}), [10, 20])
  loggers.begin_sitting(str(tmp_path), {'wall_time': 9.0, 'learner_steps': 9})
  assert _read(tmp_path) == [10, 20]
  loggers.begin_sitting(str(tmp_path), {'wall_time': 2.0, 'learner_steps': 9})
  assert _read(tmp_path) == [10]


def test_logs_of_actors_that_are_no_longer_there_are_cut_too(tmp_path):
  first = loggers.begin_sitting(str(tmp_path), {})
  for index in (0, 1):
    _write(tmp_path, first, [10, 20], 'actor', index)
  _write(tmp_path, loggers.begin_sitting(str(tmp_path), _counts(15)), [18], 'actor')
  assert sittings.read_labels(str(tmp_path)) == ['actor', 'actor_1']
  assert _read(tmp_path, 'actor_1') == [10]
  points = _points_in_python(tmp_path / 'tb' / 'actor_1')
  assert points['actor_1/EpisodeReturn'] == [(10, 10.0)]


def test_rows_without_sittings_keep_their_order_rule_and_are_cut_too(tmp_path):
  path = _log(tmp_path)
  path.parent.mkdir(parents=True)
  columns = ('actor_frames', 'actor_steps', 'episode_return', 'wall_time')
  with open(path, 'w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(columns)
    for steps in (10, 20, 30, 15, 25, 40):  # the run went back after 30
      row = {**_counts(steps), 'episode_return': float(steps)}
      writer.writerow([row[column] for column in columns])
  *kept, last = path.read_bytes().splitlines(keepends=True)
  assert _read(tmp_path) == [10, 15, 25, 40]
  _write(tmp_path, loggers.begin_sitting(str(tmp_path), _counts(30)), [35])
  assert _read(tmp_path) == [10, 15, 25, 35]
  assert _log(tmp_path, name='logs.0.csv').read_bytes() == b''.join(kept)
  assert _log(tmp_path, name='abandoned.0.csv').read_bytes() == kept[0] + last
  assert sittings.read_last_row(str(tmp_path), 'evaluator')['episode_return'] == 35


def test_logs_with_other_columns_are_set_aside_one_after_the_other(tmp_path):
  for i, steps in enumerate((10, 20, 30)):
    path = _log(tmp_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'actor_steps,episode_return,old_{i}\n{steps},{steps},1\n')
    loggers.make_logger(str(tmp_path), 'evaluator').close()
  assert _read(tmp_path) == [10, 20, 30]
  _write(tmp_path, 0, [40])
  assert _read(tmp_path) == [10, 20, 30, 40]


def _write_until_killed(workdir):
  logger = loggers.make_logger(workdir, 'evaluator', sitting=0)
  logger.write({'episode_return': 1.0, **_counts(10)})
  with open(_log(workdir), 'a') as file:
    file.write('4321,80,20')  # the beginning of a row
  os.kill(os.getpid(), signal.SIGKILL)


def test_row_of_a_killed_process_does_not_swallow_the_next_sittings_first(tmp_path):
  process = multiprocessing.get_context('fork').Process(
    target=_write_until_killed, args=[str(tmp_path)]
  )
  process.start()
  process.join()
  assert process.exitcode == -signal.SIGKILL
  _write(tmp_path, 1, [20, 30])
  assert _read(tmp_path) == [1, 20, 30]
  assert '4321' not in _log(tmp_path).read_text()


@pytest.mark.parametrize(
  'tail',
  ['1', '0' * 200_000, '\0' * 5000, '1,2,3\r', 'x\n\0\0\0'],
  ids=['a figure', 'long', 'zeros', 'carriage return', 'a line and zeros'],
)
def test_whatever_is_at_the_end_of_a_log_the_next_row_is_whole(tmp_path, tail):
  _write(tmp_path, 0, [10])
  with open(_log(tmp_path), 'a', newline='') as file:
    file.write(tail)
  _write(tmp_path, 1, [20])
  assert _read(tmp_path) == [10, 20]


@pytest.mark.parametrize('header', ['', 'actor_fra', 'actor_frames,episode_return'])
def test_log_whose_header_was_cut_short_begins_anew(tmp_path, header):
  path = _log(tmp_path)
  path.parent.mkdir(parents=True)
  path.write_text(header)
  _write(tmp_path, 0, [10])
  assert _read(tmp_path) == [10]
  assert os.listdir(path.parent) == ['logs.csv']


def test_row_without_a_number_in_some_column_is_left_out(tmp_path):
  _write(tmp_path, 0, [10])
  text = _log(tmp_path).read_text()
  _log(tmp_path).write_text(text.replace('10.0', 'ten') + text.splitlines()[-1] + '\n')
  assert _read(tmp_path) == [10]


# TensorBoard.


def _points_in_python(folder: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
  accumulator = plugin_event_accumulator.EventAccumulator(str(folder)).Reload()
  return {
    tag: [
      (event.step, float(tf.make_ndarray(event.tensor_proto)))
      for event in accumulator.Tensors(tag)
    ]
    for tag in accumulator.Tags()['tensors']
  }


def _points_in_rust(folder: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
  """Reads with TensorBoard's data server, its default reader."""
  ingester = server_ingester.SubprocessServerDataIngester(
    server_binary=server_ingester.get_server_binary(),
    logdir=str(folder.parent),
    reload_interval=1,
    channel_creds_type=grpc_util.ChannelCredsType.LOCAL,
    samples_per_plugin={},
    extra_flags=[],
  )
  ingester.start()  # returns after it has read everything once
  try:
    tags = ingester.data_provider.read_scalars(
      context.RequestContext(),
      experiment_id='',
      plugin_name='scalars',
      downsample=1000,
    )[folder.name]
    return {
      tag: [(point.step, point.value) for point in points]
      for tag, points in tags.items()
    }
  finally:
    ingester._stdin_handle.close()  # ends the server


_READERS = {'python': _points_in_python, 'rust': _points_in_rust}


@pytest.mark.parametrize('reader', _READERS)
@pytest.mark.parametrize('role', ['learner', 'actor', 'evaluator'])
def test_tensorboard_forgets_what_was_abandoned(tmp_path, role, reader):
  """This also holds before the new sitting reaches those steps, and a second time."""
  points = _READERS[reader]
  tag = f'{role}/Loss' if role == 'learner' else f'{role}/EpisodeReturn'
  step = (lambda steps: steps // 5) if role == 'learner' else (lambda steps: steps)

  def expected(*steps):
    return [(step(x), float(x)) for x in steps]

  workdir, folder = str(tmp_path), tmp_path / 'tb' / role
  _write(tmp_path, loggers.begin_sitting(workdir, {}), [10, 20, 30, 40, 50], role)
  second = loggers.begin_sitting(workdir, _counts(25))
  assert points(folder)[tag] == expected(10, 20)
  _write(tmp_path, second, [45, 60], role)
  assert points(folder)[tag] == expected(10, 20, 45, 60)
  third = loggers.begin_sitting(workdir, _counts(50))
  _write(tmp_path, third, [55], role)
  found = points(folder)
  assert found[tag] == expected(10, 20, 45, 55)
  assert (
    len({len(of_tag) for of_tag in found.values()}) == 1
  )  # all curves have the same length


@pytest.mark.parametrize('reader', _READERS)
def test_tensorboard_forgets_everything_where_nothing_was_saved(tmp_path, reader):
  folder = tmp_path / 'tb' / 'actor'
  _write(tmp_path, loggers.begin_sitting(str(tmp_path), {}), [0, 10, 20], 'actor')
  second = loggers.begin_sitting(str(tmp_path), {})
  _write(tmp_path, second, [15], 'actor')
  assert _READERS[reader](folder)['actor/EpisodeReturn'] == [(15, 15.0)]


def test_tensorboard_that_watches_sees_the_same(tmp_path):
  folder = tmp_path / 'tb' / 'actor'
  first = loggers.begin_sitting(str(tmp_path), {})
  _write(tmp_path, first, [10, 20, 30], 'actor')
  watching = plugin_event_accumulator.EventAccumulator(str(folder)).Reload()
  second = loggers.begin_sitting(str(tmp_path), _counts(20))
  logger = loggers.make_logger(str(tmp_path), 'actor', sitting=second)
  for step in (25, 35):
    logger.write(_counts(step))
    watching.Reload()
  steps = [event.step for event in watching.Tensors('actor/EpisodeReturn')]
  assert steps == [10, 20, 25, 35]
  logger.close()


@pytest.mark.parametrize('reader', _READERS)
def test_tensorboard_forgets_in_folders_of_earlier_versions(tmp_path, reader):
  """Older versions wrote no session start and left the file names to TensorFlow."""
  folder = tmp_path / 'tb' / 'evaluator'
  _write(
    tmp_path, loggers.begin_sitting(str(tmp_path), {}), [10, 20, 30]
  )  # the CSV log
  for path in folder.iterdir():
    path.unlink()
  logger = tf_summary.TFSummaryLogger(str(folder), 'evaluator', steps_key='actor_steps')
  for steps in (10, 20, 30):
    logger.write({'episode_return': float(steps), 'actor_steps': steps})
  logger.close()
  assert _READERS[reader](folder)['evaluator/EpisodeReturn'][-1] == (30, 30.0)
  _write(tmp_path, loggers.begin_sitting(str(tmp_path), _counts(25)), [26])
  assert _READERS[reader](folder)['evaluator/EpisodeReturn'] == [
    (10, 10.0),
    (20, 20.0),
    (26, 26.0),
  ]
