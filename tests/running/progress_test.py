"""The block is whole, alone and last on a terminal, whatever happens to that."""

import io
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest
from rich import console

from r2d2_acme.running import progress
from r2d2_acme.workdir import status
from tests import helpers
from tests.running.terminals import Terminal

_TINY = pathlib.Path(__file__).with_name('tiny_program.py')
_LABELS = ('program', 'progress', 'actors', 'learner', 'replay', 'evaluator', 'nodes')
_TIMEOUT = 120  # seconds to start in
_ROW = re.compile(r'\[(Learner|Actor|Evaluator)\] (\w+( \w+)* = [-\d.]+( \| )?)+')

pytestmark = pytest.mark.timeout(600)


def make_status(**overrides) -> status.Status:
  """The status of a program in the middle of its run."""
  names = ['replay/0', 'learner/0', *(f'actor/{i}' for i in range(8)), 'evaluator/0']
  values = {
    'launch_type': 'local_mp',
    'started_at': time.time() - 5025,
    'written_at': time.time(),
    'exit_code': None,
    'message': '',
    'limits': {'actor_steps': 10_000_000, 'learner_steps': 500_000},
    'counts': {'actor_steps': 4e6, 'actor_frames': 16e6, 'learner_steps': 17e3},
    'rates': {'actor_steps': 1530.4, 'learner_steps': 6.71},
    'replay': {'size': 5e4, 'max_size': 100_000, 'sampled_to_inserted': 1.02},
    'evaluator_returns': [21.0, -3.5, 1234567.0],
    'nodes': {
      name: status.Node(100 + index, 'running', 0, 1.0)
      for index, name in enumerate(names)
    },
  }
  return status.Status(**{**values, **overrides})


def _drawn(made: status.Status, width: int = 80, is_running: bool = True) -> list[str]:
  file = io.StringIO()
  console.Console(file=file, width=width).print(
    progress.draw('/tmp/runs/pong', made, is_running)
  )
  return [line.rstrip() for line in file.getvalue().splitlines()]


def _joined(rows: Sequence[str]) -> str:
  """The words of rows, wherever they were wrapped."""
  return ' '.join(' '.join(rows).split())


def _blocks(rows) -> list[int]:
  """Where blocks begin."""
  return [index for index, row in enumerate(rows) if row.startswith('program  ')]


def test_block_at_80_columns():
  assert [re.sub('[━╸╺]+ *', '== ', line) for line in _drawn(make_status())] == [
    'program    running for 1:23:45 in /tmp/runs/pong',
    'progress   == 40% of 10,000,000 actor steps, ETA 1:05:20',
    'actors     1,530 steps/s, 4,000,000 steps, 16,000,000 frames',
    'learner    6.71 steps/s, 17,000 steps',
    'replay     50,000 of 100,000 windows (50%), sampled/inserted 1.02',
    'evaluator  mean return 411,528, last 21 -3.5 1,234,567',
    'nodes      replay/0 running, learner/0 running, actor/0 running, actor/1',
    '           running, actor/2 running, actor/3 running, actor/4 running, actor/5',
    '           running, actor/6 running, actor/7 running, evaluator/0 running',
  ]


def test_bar_shows_the_limit_that_is_reached_first():
  made = make_status(limits={'actor_steps': 10_000_000, 'learner_steps': 17_671})
  assert '96% of 17,671 learner steps, ETA 0:01:40' in _drawn(made)[1]
  made = make_status(rates={})
  assert _drawn(made)[1].endswith('40% of 10,000,000 actor steps')
  assert not any('progress' in line for line in _drawn(make_status(limits={})))


@pytest.mark.parametrize('width', [12, 20, 40, 79, 200])
def test_no_line_is_wider_than_the_terminal(width):
  lines = _drawn(make_status(), width)
  assert max(map(len, lines)) <= width
  squeezed = ''.join(line[10:].strip() for line in lines) if width > 12 else ''
  assert width <= 12 or '1,234,567' in squeezed


def test_block_says_what_is_not_known_yet():
  made = make_status(
    counts={}, rates={}, replay={'min_size': 500}, evaluator_returns=[]
  )
  lines = _drawn(made)
  assert 'actors     0 steps' in lines
  assert 'replay     filling: the learner starts at 500 windows' in lines
  assert 'evaluator  no episode yet' in lines


@pytest.mark.parametrize(
  ('overrides', 'is_running', 'expected'),
  [
    ({'exit_code': 0}, True, 'ended after 1:23:45'),
    ({'exit_code': 1}, False, 'failed after 1:23:45'),
    ({'exit_code': 130}, False, 'quit without saving after 1:23:45'),
    ({}, False, 'killed after 1:23:45'),
    ({'written_at': time.time() - 600}, True, 'suspended, or slow: silent for 0:'),
  ],
)
def test_block_says_how_the_program_is_or_ended(overrides, is_running, expected):
  first, *others = _drawn(make_status(**overrides), is_running=is_running)
  assert expected in first
  assert ('ETA' in others[0]) == (expected.startswith('suspended'))


def test_node_without_progress_is_said_to_be():
  nodes = {'actor/0': status.Node(1, 'running', 0, 125.0)}
  last = _drawn(make_status(nodes=nodes))[-1]
  assert last == 'nodes      actor/0 running (no progress for 0:02:05)'


@pytest.mark.parametrize('size', [(80, 24), (30, 24), (80, 4), (9, 3)])
def test_block_is_redrawn_in_its_place_and_lines_scroll_above(size, monkeypatch):
  monkeypatch.setattr(progress, '_PERIOD', 0.0)
  monkeypatch.setenv('TERM', 'xterm-256color')
  terminal = Terminal(*size)
  rows = [f'[Evaluator] Episode Return = {i}' for i in range(30)]
  with (
    os.fdopen(os.dup(terminal.side), 'w') as file,
    progress.Block(file, lambda: progress.draw('/x', make_status(), True)) as block,
  ):
    for row in rows:
      block.show([row, '[Learner] Loss = 1.0', '[Actor 1] Actor Steps = 1'])
      block.show([])

  def shown() -> str:
    return ''.join(terminal.rows).replace(' ', '')

  # Each once, and no half block between them; the terminal reads on for a while.
  helpers.wait_until(lambda: shown().startswith(''.join(rows).replace(' ', '')))
  helpers.wait_until(lambda: shown().count('1,530steps/s') == 1 or size[0] < 10)
  assert terminal.is_cursor_visible


def test_terminal_that_is_gone_is_no_error(monkeypatch):
  monkeypatch.setattr(progress, '_PERIOD', 0.0)
  reader, writer = os.pipe()
  os.close(reader)
  file = os.fdopen(writer, 'w')
  with progress.Block(file, lambda: progress.draw('/x', make_status(), True)) as block:
    block.show(['a line'])


@pytest.fixture(scope='module')
def failing(tmp_path_factory):
  """A program on a terminal that is made narrower; then its actor fails."""
  workdir = tmp_path_factory.mktemp('failing')
  terminal = Terminal()
  program = terminal.start([sys.executable, _TINY, workdir, 'local_mp'])
  try:
    helpers.wait_until(
      lambda: 'evaluator/0 running' in _joined(terminal.rows), _TIMEOUT
    )
    time.sleep(5)
    running = terminal.visible
    terminal.resize(50, 24)
    time.sleep(4)
    narrow = terminal.visible
    (workdir / 'fail-actor').touch()
    yield workdir, running, narrow, terminal, program.wait(60)
  finally:
    program.kill()


def test_block_is_alone_and_last_on_the_terminal(failing):
  _, running, *_ = failing
  (start,) = _blocks(running)
  labels = [row.split()[0] for row in running[start:] if not row.startswith(' ')]
  assert labels == list(_LABELS)


def test_only_rows_of_the_evaluator_and_warnings_scroll_above_it(failing):
  _, running, _, terminal, _ = failing
  above = '\n'.join(running[: _blocks(running)[0]])
  assert '[Evaluator] ' in above
  # By now it may have scrolled off.
  all_rows = '\n'.join(terminal.rows)
  assert '[evaluator/0] a warning: the ball is \N{BLACK CIRCLE}' in all_rows
  assert '[Learner]' not in above
  assert '[Actor]' not in above


def test_terminal_that_is_made_narrower_shows_one_block(failing):
  _, _, narrow, *_ = failing
  assert len(_blocks(narrow)) == 1
  assert max(map(len, narrow)) <= 50


def test_error_is_the_last_thing_on_the_terminal(failing):
  workdir, _, _, terminal, code = failing
  assert code == 1
  text = ''.join(terminal.rows)
  _, said, rest = text.partition(
    f'RuntimeError: the ball is out of reach'
    f'actor/0 failed with exit code 1; full output: {workdir}/output/actor/0'
  )
  assert said
  assert rest.startswith('resume with: ')
  assert len(_blocks(terminal.visible)) <= 1
  assert 'actor/0 failed' in text[text.index('failed after') :]


def test_terminal_is_left_in_order(failing):
  *_, terminal, _ = failing
  assert terminal.column == 0
  assert terminal.is_cursor_visible


def test_threads_on_a_terminal_that_knows_ascii_only(tmp_path):
  terminal = Terminal()
  env = {'PYTHONIOENCODING': 'ascii'}
  program = terminal.start([sys.executable, _TINY, tmp_path, 'local_mt'], env)
  try:
    helpers.wait_until(
      lambda: 'evaluator/0 running' in _joined(terminal.rows), _TIMEOUT
    )
    time.sleep(3)
    os.killpg(program.pid, signal.SIGINT)
    assert program.wait(30) == 0
  finally:
    program.kill()
  rows = terminal.rows
  assert ''.join(rows).isascii()
  assert 'a warning: the ball is \\u25cf' in ''.join(rows)
  (start,) = _blocks(rows)
  assert 'Stopping: the program saves and ends.' in '\n'.join(rows[:start])
  assert '[Learner]' not in '\n'.join(rows)
  assert 'ended after' in rows[start]
  assert terminal.is_cursor_visible


@pytest.mark.parametrize('where', ['file', 'terminal'])
def test_plain_lines_without_a_terminal_or_with_noprogress(tmp_path, where):
  command = [sys.executable, _TINY, tmp_path, 'local_mp']
  terminal = Terminal(columns=400)
  if where == 'terminal':
    program = terminal.start([*command, '--noprogress'])
  else:
    with open(tmp_path / 'out', 'w') as file:
      program = subprocess.Popen(command, stdout=file)

  def rows():
    lines = (tmp_path / 'out').read_text() if where == 'file' else ''
    return lines.splitlines() or terminal.rows

  try:
    labels = {'[Learner]', '[Actor]', '[Evaluator]'}
    helpers.wait_until(lambda: {row.split()[0] for row in rows()} >= labels, _TIMEOUT)
    program.send_signal(signal.SIGTERM)
    assert program.wait(30) == 0
  finally:
    program.kill()
  others = [row for row in rows() if not _ROW.fullmatch(row)]
  said = ('[evaluator/0] a warning: ', 'Stopping: ')
  assert [row for row in others if not row.startswith(said)] == []
