"""Draws how a program is doing: one block, on a terminal below what it prints."""

import contextlib
import math
import os
import re
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TextIO, cast

from rich import console as rich_console
from rich import control, live, progress_bar, table, text

from r2d2_acme.system import stopping
from r2d2_acme.workdir import status as status_lib
from r2d2_acme.workdir.paths import shown

_PERIOD = 1.0  # seconds
_OLD = 10.0  # seconds after which the status of a running program is old
_LATE = 60.0  # seconds after which it is said how long a node made no progress
_DEFAULT_SIZE = (80, 25)  # columns, lines
# Rows of the nodes that the block sums up.
_SUMMED_UP = re.compile(r'\[(Learner|Actor)( \d+)?\] \w+( \w+)* = ')
_STYLES = {
  'starting': 'cyan',
  'running': 'green',
  'stopping': 'yellow',
  'ended': 'dim',
  'failed': 'bold red',
}


def draw(
  workdir: str, status: status_lib.Status, is_running: bool, error: str = ''
) -> rich_console.RenderableType:
  """Builds the block: six or seven lines, and more where they are long.

  Args:
    workdir: of the program.
    status: how it is doing.
    is_running: see `status.is_running`.
    error: a line to show at the end, if any.
  """
  is_running = is_running and status.exit_code is None
  grid = table.Table.grid(padding=(0, 2, 0, 0), expand=True)
  grid.add_column(no_wrap=True, style='bold')
  grid.add_column(overflow='fold', ratio=1)
  grid.add_row('program', _describe_program(workdir, status, is_running))
  if status.limits:
    grid.add_row('progress', _draw_bar(status, is_running))
  grid.add_row('actors', _describe_steps('actor_steps', status))
  grid.add_row('learner', _describe_steps('learner_steps', status))
  grid.add_row('replay', _describe_replay(status))
  grid.add_row('evaluator', _describe_returns(status.evaluator_returns))
  grid.add_row('nodes', _describe_nodes(status, is_running))
  if error:
    grid.add_row('disk', text.Text(error, 'bold red'))
  return grid


class Block:
  """A terminal with the block at its end, and above it the lines that are printed.

  The rows of the learner and the actors are left out, since the block sums them up.
  One thread uses it at a time. The cursor stays visible: this process may be suspended
  or killed at any moment.
  """

  def __init__(
    self, terminal: TextIO, make_block: Callable[[], rich_console.RenderableType]
  ):
    """Draws nothing before `with`.

    Args:
      terminal: prints on it.
      make_block: called once a second.
    """
    self._terminal = terminal
    self._make_block = make_block
    self._next_time = 0.0
    out = cast(TextIO, stopping.Forgiving(terminal))
    self._console = rich_console.Console(file=out, force_terminal=True, highlight=False)
    self._console.size = self._size()
    self._live = live.Live(
      console=self._console,
      auto_refresh=False,
      redirect_stdout=False,
      redirect_stderr=False,
    )

  def __enter__(self) -> 'Block':
    self._live.start()
    self._console.show_cursor(True)
    return self

  def __exit__(self, *unused_exception):
    self._fit()
    with contextlib.suppress(Exception):  # `show` has told of it
      self._live.update(self._make_block())
    self._live.stop()

  def show(self, lines: Sequence[str]):
    """Prints lines above the block, and draws it anew if it is a second old."""
    self._fit()
    lines = [line for line in lines if not _SUMMED_UP.match(line)]
    if lines:
      self._console.print(text.Text.from_ansi('\n'.join(lines)), soft_wrap=True)
    if time.monotonic() >= self._next_time:
      self._next_time = time.monotonic() + _PERIOD
      self._live.update(self._make_block(), refresh=True)

  def _fit(self):
    size = self._size()
    if size[0] < self._console.width:
      # Terminals wrap, or cut, what was drawn wider, each in its own manner.
      self._console.control(control.Control.clear(), control.Control.home())
    self._console.size = size

  def _size(self) -> tuple[int, int]:
    """Returns the terminal's columns and lines."""
    columns, lines = 0, 0
    with contextlib.suppress(OSError):  # it may be gone
      columns, lines = os.get_terminal_size(self._terminal.fileno())
    return columns or _DEFAULT_SIZE[0], lines or _DEFAULT_SIZE[1]


def _describe_program(
  workdir: str, status: status_lib.Status, is_running: bool
) -> text.Text:
  duration = _format_duration(status.written_at - status.started_at)
  age = time.time() - status.written_at
  if status.exit_code == 0:
    how, style = f'ended after {duration}', 'green'
  elif status.exit_code == stopping.QUIT_CODE:
    how, style = f'quit without saving after {duration}', 'yellow'
  elif status.exit_code is not None:
    how, style = f'failed after {duration}', 'bold red'
  elif not is_running:
    how, style = f'killed after {duration}', 'bold red'
  elif age > _OLD:
    how, style = f'suspended, or slow: silent for {_format_duration(age)}', 'yellow'
  else:
    how, style = f'running for {duration}', 'green'
  return text.Text.assemble((how, style), f' in {shown(workdir)}')


def _draw_bar(
  status: status_lib.Status, is_running: bool
) -> rich_console.RenderableType:
  """Builds a bar up to the limit that will be reached first."""

  def done(name: str) -> float:
    return min(1.0, status.counts.get(name, 0) / status.limits[name])

  def seconds_left(name: str) -> float:
    todo = max(0.0, status.limits[name] - status.counts.get(name, 0))
    rate = status.rates.get(name, 0)
    return todo / rate if rate > 0 else math.inf

  name = min(status.limits, key=lambda name: (seconds_left(name), -done(name)))
  count = name.replace('_', ' ')
  label = f'{int(100 * done(name))}% of {status.limits[name]:,} {count}'
  if is_running and math.isfinite(seconds_left(name)):
    label += f', ETA {_format_duration(seconds_left(name))}'
  grid = table.Table.grid(padding=(0, 1, 0, 0), expand=True)
  grid.add_column(ratio=1)
  grid.add_column()
  grid.add_row(progress_bar.ProgressBar(total=1.0, completed=done(name)), label)
  return grid


def _describe_steps(name: str, status: status_lib.Status) -> str:
  parts = [f'{status.counts.get(name, 0):,.0f} steps']
  if name in status.rates:
    parts.insert(0, f'{_format_number(status.rates[name])} steps/s')
  if name == 'actor_steps' and 'actor_frames' in status.counts:
    parts.append(f'{status.counts["actor_frames"]:,.0f} frames')
  return ', '.join(parts)


def _describe_replay(status: status_lib.Status) -> str:
  replay = status.replay
  if 'size' not in replay:
    if 'min_size' in replay:
      return f'filling: the learner starts at {replay["min_size"]:,} windows'
    return 'filling'
  fill = f'{replay["size"]:,.0f} windows'
  if 'max_size' in replay:
    fill = (
      f'{replay["size"]:,.0f} of {replay["max_size"]:,} windows '
      f'({replay["size"] / replay["max_size"]:.0%})'
    )
  return f'{fill}, sampled/inserted {replay.get("sampled_to_inserted", 0):.2f}'


def _describe_returns(returns: Sequence[float]) -> str:
  if not returns:
    return 'no episode yet'
  last = ' '.join(map(_format_number, returns))
  return f'mean return {_format_number(statistics.fmean(returns))}, last {last}'


def _describe_nodes(status: status_lib.Status, is_running: bool) -> text.Text:
  line = text.Text()
  for name, node in status.nodes.items():
    state, late = node.state, ''
    if status.exit_code is None and not is_running:
      state = 'failed'
    elif is_running and node.seconds_since_progress > _LATE:
      late = f' (no progress for {_format_duration(node.seconds_since_progress)})'
    if line:
      line.append(', ')
    line.append(f'{name} ').append(state, _STYLES.get(state)).append(late)
  return line


def _format_number(value: float) -> str:
  """Formats with three digits, or all those of a whole number."""
  return f'{value:,.0f}' if abs(value) >= 100 or value == int(value) else f'{value:.3g}'


def _format_duration(seconds: float) -> str:
  minutes, seconds = divmod(int(max(0.0, seconds)), 60)
  return f'{minutes // 60}:{minutes % 60:02}:{seconds:02}'
