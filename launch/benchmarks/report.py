"""What was measured, as tables and as JSON."""

import dataclasses
import datetime
import importlib.metadata
import platform
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import psutil
from rich import console, table

from benchmarks import measuring
from r2d2_acme.results import plotting
from r2d2_acme.workdir import description

# Sides; the ratios are to the first two.
ACME = 'Acme'
LIMIT = 'limit'
OURS = 'ours'
ACME_OWN = 'Acme, own network'

_VERSIONS = (
  'dm-acme',
  'dm-launchpad',
  'dm-reverb',
  'tensorflow',
  'dm-sonnet',
  'numpy',
  'ale-py',
  'gymnasium',
)


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Samples of several sides, of one quantity.

  Attributes:
    case: what was measured.
    unit: of the samples. Of seconds, ratios are of speeds: reference over side.
    samples: by side.
    goal: that ours must reach.
    note: what one must know to read it.
    points: by side, where it lies if the sides are points of a curve.
  """

  case: str
  unit: str
  samples: Mapping[str, Sequence[float]]
  goal: str = ''
  note: str = ''
  points: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def median(self, side: str) -> float:
    return statistics.median(self.samples[side])

  def ratio(self, side: str, reference: str) -> float | None:
    """The median over the rounds that both have: a machine's speed drifts.

    None where there is no such reference.
    """
    if self.points or reference not in self.samples or side in (reference, LIMIT):
      return None
    rounds = zip(self.samples[side], self.samples[reference], strict=False)
    if self.unit.startswith('s/'):
      return statistics.median(b / a for a, b in rounds)
    return statistics.median(a / b for a, b in rounds)

  @property
  def exponent(self) -> float | None:
    """k of the samples' medians ~ x^k."""
    if not self.points:
      return None
    return fit_exponent(
      list(self.points.values()), [self.median(side) for side in self.points]
    )

  def to_json(self) -> dict[str, Any]:
    return {
      'case': self.case,
      'unit': self.unit,
      'goal': self.goal,
      'note': self.note,
      'exponent': self.exponent,
      'sides': {
        side: {
          'samples': list(samples),
          'median': self.median(side),
          'to_limit': self.ratio(side, LIMIT),
          'to_acme': self.ratio(side, ACME),
          'x': self.points.get(side),
        }
        for side, samples in self.samples.items()
      },
    }


def compare(
  case: str,
  unit: str,
  sides: Mapping[str, measuring.Side],
  rounds: int,
  goal: str = '',
  note: str = '',
) -> Comparison:
  """Measures the sides in turn."""
  return Comparison(case, unit, measuring.alternate(case, sides, rounds), goal, note)


def fit_exponent(x: Sequence[float], y: Sequence[float]) -> float:
  """k of y ~ x^k: the slope of log y over log x, by least squares."""
  return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def print_tables(part: str, comparisons: Sequence[Comparison]):
  """Prints one table for a part."""
  grid = table.Table(title=part, title_justify='left', title_style='bold')
  for header in ('case', 'side', 'median', 'min-max', 'x limit', 'x Acme', 'goal'):
    grid.add_column(header, justify='left' if header in _TEXTS else 'right')
  for comparison in comparisons:
    case = f'{comparison.case} [{comparison.unit}]'
    goal = comparison.goal
    if comparison.exponent is not None:
      goal = f'exponent {comparison.exponent:.2f}'
    for side, samples in comparison.samples.items():
      grid.add_row(
        case,
        side,
        _number(comparison.median(side)),
        f'{_number(min(samples))}-{_number(max(samples))}',
        _ratio(comparison.ratio(side, LIMIT)),
        _ratio(comparison.ratio(side, ACME)),
        goal,
      )
      case = goal = ''
    grid.add_section()
  terminal = console.Console()
  if not terminal.is_terminal:
    terminal = console.Console(width=140)
  terminal.print(grid)
  for comparison in comparisons:
    if comparison.note:
      terminal.print(f'{comparison.case}: {comparison.note}', highlight=False)
  terminal.print()


def plot(curves: Sequence[Comparison], path: str):
  """Writes a PNG: a log-log panel for each curve, with its exponent."""
  pyplot = plotting.pyplot()
  figure, axes = pyplot.subplots(1, len(curves), figsize=(4 * len(curves), 3.5))
  for curve, axis in zip(curves, np.atleast_1d(axes), strict=True):
    x = list(curve.points.values())
    y = [curve.median(side) for side in curve.points]
    axis.loglog(x, y, 'o-')
    axis.minorticks_off()
    axis.set_xticks(x, map(_number, x), rotation=30)
    axis.set_yticks(y, map(_number, y))
    axis.set_title(f'{curve.case}: exponent {curve.exponent:.2f}', fontsize=9)
    axis.set_xlabel(curve.case.rsplit(' ', 1)[-1])
    axis.set_ylabel(curve.unit)
    axis.grid(True, alpha=0.3)
  figure.tight_layout()
  figure.savefig(path, dpi=120)
  pyplot.close(figure)


def describe_run() -> dict[str, Any]:
  """The machine, the date and the code."""
  return {
    'machine': {
      'cpu': _cpu_model(),
      'cores': len(measuring.all_cores()),
      'memory_gib': round(psutil.virtual_memory().total / 2**30, 1),
      'system': platform.platform(),
    },
    'date': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
    'revision': description.revision(),
    'versions': {
      'python': platform.python_version(),
      **{name: importlib.metadata.version(name) for name in _VERSIONS},
    },
  }


def _cpu_model() -> str:
  with open('/proc/cpuinfo') as file:
    models = [line.split(':')[1].strip() for line in file if 'model name' in line]
  return models[0] if models else platform.machine()


_TEXTS = ('case', 'side', 'goal')


def _number(value: float) -> str:
  """Three digits, or all before the point."""
  return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'


def _ratio(value: float | None) -> str:
  return '' if value is None else f'{value:.2f}'
