"""Faults that befall a running program one after the other, and what came of them."""

import collections
import itertools
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from faults import checks, kinds
from faults.program import Program

_MAX_PAUSE = 10.0  # seconds between faults


class Campaign:
  """Lets faults befall a program, prints a row for each, and keeps what did not hold.

  Attributes:
    violations: what did not hold, each in a line.
  """

  def __init__(
    self, program: Program, names: Sequence[str], rng: random.Random, in_turn: bool
  ):
    """Does nothing before `run`.

    Args:
      program: that has not been started.
      names: of the faults.
      rng: decides what is left to chance.
      in_turn: whether the faults come in this order, rather than at random.
    """
    self.violations: list[str] = []
    self._program = program
    self._rng = rng
    turns = itertools.cycle(names)
    self._choose = lambda: next(turns) if in_turn else rng.choice(names)
    self._seconds: dict[str, list[float]] = collections.defaultdict(list)
    # Of the program, when it had recovered from the fault before. What that one has
    # cost is no loss of the next one.
    self._num_samples = 0

  def run(self, seconds: float):
    """Starts the program, lets faults befall it for so long, and ends it."""
    self._start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
      if self._program.poll() is not None:  # a violation, which the table has
        self._start()
      self._befall(self._choose())
      self._num_samples = len(self._program.samples)
      time.sleep(self._rng.uniform(0, _MAX_PAUSE))
    self._let(lambda: checks.check_end(self._program))
    self._let(lambda: checks.check_rows(self._program))
    self._let(lambda: checks.check_replay(self._program.workdir))
    self._let(lambda: checks.check_memory(self._program.samples))

  def report(self):
    """Prints how long recoveries took, and all violations."""
    _print_seconds('from a fault until all act and learn', self._seconds)
    _print_seconds(
      'from the death of a node until it makes progress', self._program.recovered()
    )
    print(f'\n{len(self.violations)} violations', *self.violations, sep='\n')

  def _start(self):
    self._program.start()
    self._let(lambda: checks.wait_for_progress(self._program))
    self._num_samples = len(self._program.samples)

  def _befall(self, name: str):
    """Lets a fault happen, waits until the program has recovered, and prints a row."""
    start, rows = time.monotonic(), self._program.rows('learner')
    before = self._program.samples[self._num_samples :]
    outcome = what = ''
    try:
      what = (kinds.KINDS | kinds.ON_RAY)[name](self._program, self._rng)
      recovery = checks.wait_for_progress(self._program)
      self._seconds[name].append(recovery)
      outcome = f'progress after {recovery:.1f} s'
      known = set(map(str, rows))  # as text, in which NaN equals NaN
      new = [row for row in self._program.rows('learner') if str(row) not in known]
      if new and rows:
        steps = rows[-1]['learner_steps'], new[0]['learner_steps']
        checks.check_steps(before, start, steps[1])
        outcome += f', learner steps {steps[0]:.0f} -> {steps[1]:.0f}'
    except (checks.Violation, AssertionError) as error:
      self.violations.append(f'{name} ({what}): {error}')
      outcome = f'VIOLATION: {error}'
    now = time.strftime('%H:%M:%S')
    print(f'{now}  {name:<28} {what:<50} {outcome}', flush=True)

  def _let(self, check: Callable[[], object]):
    """Keeps what a check finds violated."""
    try:
      check()
    except checks.Violation as error:
      self.violations.append(str(error))
      print(f'VIOLATION: {error}', flush=True)


def _print_seconds(what: str, seconds: Mapping[str, Sequence[float]]):
  print(f'\n{"seconds " + what:<52} {"number":>6} {"median":>8} {"worst":>8}')
  for name, values in sorted(seconds.items()):
    print(
      f'{name:<52} {len(values):>6} {statistics.median(values):>8.1f} '
      f'{max(values):>8.1f}'
    )
