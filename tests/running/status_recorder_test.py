"""The status counts what nodes add to their logs, and goes on from before."""

import math
import os
import time

import pytest
from rich import console as rich_console

from r2d2_acme.running import outputs, progress, status_recorder, workers
from r2d2_acme.system import heartbeats, processes
from r2d2_acme.workdir import loggers, status
from tests import helpers

_NAMES = ('replay/0', 'learner/0', 'actor/0', 'actor/1', 'evaluator/0')


@pytest.fixture
def nodes(tmp_path):
  """Nodes that sleep, by name."""
  with processes.Family(1.0) as family:

    def make(name: str) -> workers.ProcessWorker:
      def start(env):
        return processes.Child(family.start(name, ['sleep', '1000'], env=env).pid)

      return workers.ProcessWorker(
        name,
        start,
        family,
        outputs.Output(str(tmp_path / 'output' / name)),
        heartbeats.Watched(str(tmp_path / 'beats' / name)),
      )

    yield {name: make(name) for name in _NAMES}


@pytest.fixture
def start(nodes, tmp_path):
  """`start(**limits)` returns a recorder of nodes that have started."""

  def make(**limits):
    for node in nodes.values():
      node.start()
    return status_recorder.Recorder(
      str(tmp_path),
      str(tmp_path / 'output'),
      'local_mp',
      limits,
      list(nodes.values()),
    )

  return make


def _update(recorder: status_recorder.Recorder) -> status.Status:
  recorder._next_time = 0.0
  recorder.update()
  assert status.read(recorder.workdir) == recorder.status
  return recorder.status


def _states(found: status.Status) -> dict[str, str]:
  return {name: node.state for name, node in found.nodes.items()}


def test_nodes_run_once_their_logs_grow_and_servers_once_any_does(start, tmp_path):
  recorder = start(actor_steps=10, learner_steps=None)
  assert recorder.status.limits == {'actor_steps': 10}
  assert _states(recorder.status) == dict.fromkeys(_NAMES, 'starting')
  logger = loggers.make_logger(str(tmp_path), 'actor', 1)
  assert _states(_update(recorder)) == dict.fromkeys(_NAMES, 'starting')
  logger.write({'actor_steps': 5, 'wall_time': 0.5})
  states = dict.fromkeys(_NAMES, 'starting')
  found = _update(recorder)
  assert _states(found) == {**states, 'actor/1': 'running', 'replay/0': 'running'}
  assert found.counts['actor_steps'] == 5


def test_time_since_progress_is_that_since_the_log_or_the_output_grew(start, tmp_path):
  recorder = start()
  logger = loggers.make_logger(str(tmp_path), 'learner')
  time.sleep(0.5)
  logger.write({})
  nodes = _update(recorder).nodes
  assert nodes['learner/0'].seconds_since_progress < 0.4
  assert nodes['replay/0'].seconds_since_progress < 0.4
  assert nodes['actor/0'].seconds_since_progress >= 0.5
  with open(tmp_path / 'output' / 'actor' / '0', 'a') as file:
    file.write('a warning\n')
  assert _update(recorder).nodes['actor/0'].seconds_since_progress < 0.4


def test_rows_of_earlier_starts_do_not_count_but_their_returns_and_counts_do(
  start, tmp_path
):
  loggers.begin_sitting(str(tmp_path), {})
  for role in ('learner', 'evaluator'):
    logger = loggers.make_logger(str(tmp_path), role)
    for i in range(12):
      logger.write({'learner_steps': 890 + i, 'actor_steps': i, 'episode_return': i})
  path = tmp_path / 'logs' / 'learner' / 'logs.csv'
  with path.open('a') as file:
    file.write('7,7')  # of a process that was killed
  sitting = loggers.begin_sitting(
    str(tmp_path), {'learner_steps': 900, 'actor_steps': 9}
  )
  recorder = start()
  assert recorder.status.counts == {'learner_steps': 900, 'actor_steps': 9}
  assert recorder.status.evaluator_returns == list(range(10))
  logger = loggers.make_logger(str(tmp_path), 'learner', sitting=sitting)
  logger.write({'learner_steps': 901, 'replay_size': math.nan})
  found = _update(recorder)
  assert found.counts['learner_steps'] == 901
  assert 'size' not in found.replay
  logger = loggers.make_logger(str(tmp_path), 'evaluator', sitting=sitting)
  logger.write({'episode_return': 50.5, 'learner_steps': 901, 'actor_steps': 10})
  assert _update(recorder).evaluator_returns == [*range(1, 10), 50.5]


def test_log_that_is_begun_anew_is_followed(start, tmp_path):
  path = tmp_path / 'logs' / 'actor' / 'logs.csv'
  path.parent.mkdir(parents=True)
  path.write_text('other,columns\n' + '1,2\n' * 1000)
  recorder = start()
  logger = loggers.make_logger(str(tmp_path), 'actor')  # sets the file aside
  logger.write({'actor_steps': 1})
  _update(recorder)
  logger.write({'actor_steps': 2})
  assert _update(recorder).counts['actor_steps'] == 2


def test_rates_are_those_of_the_learners_rows(start, tmp_path):
  recorder = start()
  actor = loggers.make_logger(str(tmp_path), 'actor')
  for i in range(3):
    actor.write({'actor_steps': 1000 * i, 'learner_steps': 0, 'wall_time': 2.0 * i})
  assert _update(recorder).rates == {'actor_steps': 500, 'learner_steps': 0}
  learner = loggers.make_logger(str(tmp_path), 'learner')
  for i in range(3):
    learner.write({'actor_steps': 50 * i, 'learner_steps': 30 * i, 'wall_time': 5 * i})
  assert _update(recorder).rates == {'actor_steps': 10, 'learner_steps': 6}


def test_end_is_recorded(start):
  recorder = start()
  recorder.close(1, 'actor/0 failed')
  ended = status.read(recorder.workdir)
  assert (ended.exit_code, ended.message) == (1, 'actor/0 failed')


def test_status_that_cannot_be_written_is_said_once_and_ends_nothing(
  start, tmp_path, capsys
):
  recorder = start()
  (tmp_path / 'status.json.new').mkdir()  # also root cannot write there
  for _ in range(3):
    recorder._next_time = 0.0
    recorder.update()
  line = recorder.write_error
  assert line == (
    f'error: cannot write {tmp_path}/status.json: Is a directory; training goes on, '
    'the file is no longer up to date'
  )
  assert capsys.readouterr().err == f'{line}\n'
  block = progress.draw(str(tmp_path), recorder.status, True, line)
  assert 'Is a directory' in _text(block)
  (tmp_path / 'status.json.new').rmdir()
  _update(recorder)
  assert recorder.write_error == ''


def _text(block: rich_console.RenderableType) -> str:
  console = rich_console.Console(width=200)
  with console.capture() as capture:
    console.print(block)
  return capture.get()


def test_nodes_that_beat_run_from_their_first_beat_on(nodes, start):
  beating = nodes['actor/0']
  recorder = start()
  beats = beating.heartbeat
  os.utime(beats.path, ns=(heartbeats._ANNOUNCED, heartbeats._ANNOUNCED))
  beats.look()
  loggers.make_logger(recorder.workdir, 'actor').write({})  # of an earlier start
  assert _states(_update(recorder))['actor/0'] == 'starting'
  os.utime(beats.path)
  beats.look()
  time.sleep(0.3)
  node = _update(recorder).nodes['actor/0']
  assert node.state == 'running'
  assert 0.3 <= node.seconds_since_progress < 2.0
  beating.kill()
  beating.start()
  assert _update(recorder).nodes['actor/0'].restarts == 1


def test_restarts_are_logged_with_the_counts(nodes, start, tmp_path):
  loggers.begin_sitting(str(tmp_path), {})
  recorder = start()
  logger = loggers.make_logger(str(tmp_path), 'actor')
  logger.write({'actor_steps': 50, 'actor_frames': 200, 'wall_time': 2.0})
  _update(recorder)
  for name in ('actor/0', 'actor/1', 'learner/0'):
    nodes[name].kill()
    nodes[name].start()
    recorder.record_restart(nodes[name])
  rows = helpers.read_rows(tmp_path / 'logs' / 'supervisor' / 'logs.csv')
  assert [(row['actor_restarts'], row['learner_restarts']) for row in rows] == [
    (1, 0),
    (2, 0),
    (2, 1),
  ]
  assert {row['actor_steps'] for row in rows} == {50}
  found = _update(recorder).nodes
  assert {name: node.restarts for name, node in found.items()} == {
    **dict.fromkeys(_NAMES, 0),
    **dict.fromkeys(('actor/0', 'actor/1', 'learner/0'), 1),
  }
