"""Figures of the studies."""

import collections
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from r2d2_acme.results import plotting

# By metric and x-axis, then by case: (x, mean, low, high).
Curves = Mapping[tuple[str, str], Mapping[str, Sequence[tuple[float, ...]]]]


def by_curve(rows: Iterable[tuple]) -> Curves:
  """Groups rows of `curves.COLUMNS` by what is drawn as one line."""
  curves: dict = collections.defaultdict(lambda: collections.defaultdict(list))
  for case, metric, over, *point, _ in rows:
    curves[metric, over][case].append(tuple(point))
  return curves


def draw(
  axis, curves: Mapping[str, Sequence[tuple]], styles: Mapping[str, Mapping[str, Any]]
):
  """Draws a line for each case, in its style, and a band of its interval."""
  for case, points in curves.items():
    x, mean, low, high = np.array(points).T
    (line,) = axis.plot(x, mean, label=case, **styles[case])
    color = line.get_color()
    axis.fill_between(x, low, high, color=color, alpha=0.12, lw=0)
  axis.grid(True, alpha=0.3)


def plot_returns(
  rows: Iterable[tuple],
  styles: Mapping[str, Mapping[str, Any]],
  title: str,
  path: pathlib.Path,
):
  """Writes a figure of return against steps, with a line for each case."""
  figure, axis = plotting.pyplot().subplots(figsize=(8, 5))
  draw(axis, by_curve(rows)['episode_return', 'steps'], styles)
  axis.set_xlabel('environment steps')
  axis.set_ylabel(f'return of environments with epsilon <= {plotting.LOW_EPSILON}')
  axis.legend(fontsize=8)
  save(figure, path, title)


def save(figure, path: pathlib.Path, title: str | None = None):
  """Writes a figure to a file and closes it."""
  figure.suptitle(title, fontsize=10)
  figure.tight_layout()
  figure.savefig(path, dpi=110)
  plotting.pyplot().close(figure)
