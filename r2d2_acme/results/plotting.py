"""Learning curves of runs, from the rows that their loggers wrote."""

import dataclasses
import glob
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from r2d2_acme.workdir import description, paths, sittings

LOW_EPSILON = 0.05  # at most, of an environment that shows nearly what is learned
_NUM_POINTS = 200  # of a curve
_SMOOTHING = 10  # a moving mean goes over one in so many of a run's episodes
_AXES = {'actor_frames': (1e6, 'million frames'), 'wall_time': (3600, 'hours')}


class NoRun(ValueError):
  """What was given is no run, or has nothing to draw yet; one line."""


class Episodes(NamedTuple):
  """Float64 [N] each, in the order of their ends."""

  actor_frames: np.ndarray
  wall_time: np.ndarray  # seconds
  episode_return: np.ndarray


@dataclasses.dataclass(frozen=True)
class Run:
  """What one workdir holds.

  Attributes:
    evaluator: its episodes.
    actors: those of the actors' environments with an epsilon of at most
      `LOW_EPSILON`.
  """

  workdir: str
  environment: str
  config: Mapping[str, Any]
  evaluator: Episodes
  actors: Episodes

  @property
  def is_empty(self) -> bool:
    return not len(self.evaluator.episode_return) + len(self.actors.episode_return)


class Curve(NamedTuple):
  """Of several runs; float64 [_NUM_POINTS] each, NaN where no run has been."""

  x: np.ndarray
  mean: np.ndarray
  spread: np.ndarray  # standard deviation over the runs; NaN where there is but one


def pyplot():
  """Matplotlib's, which draws to files only; imported when first needed."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  return pyplot


def read_runs(patterns: Sequence[str]) -> list[Run]:
  """The runs in these workdirs, which may be patterns such as `runs/pong_*`.

  Raises:
    NoRun: one of them is not the workdir of a run.
    BadWorkdir: no folder can have one of these paths.
  """
  workdirs: list[str] = []
  for pattern in patterns:
    path = paths.resolve(pattern)
    found = [path] if os.path.exists(path) else _match(pattern)
    if not found:
      raise NoRun(f'there is no {paths.shown(pattern)}')
    workdirs += map(paths.resolve, found)
  unique: dict[str, str] = {}  # by where links lead
  for workdir in workdirs:
    unique.setdefault(os.path.realpath(workdir), workdir)
  return [_read_run(workdir) for workdir in unique.values()]


def group(runs: Sequence[Run], separate: bool = False) -> dict[str, list[Run]]:
  """Puts runs together that differ in their seeds only; by what to call them.

  Args:
    runs: any.
    separate: whether to leave each on its own.
  """
  groups: dict[str, list[Run]] = {}
  for run in runs:
    config = {name: value for name, value in run.config.items() if name != 'seed'}
    key = json.dumps([run.environment, config, run.workdir if separate else None])
    groups.setdefault(key, []).append(run)
  return {_label(members, runs): members for members in groups.values()}


def average(runs: Sequence[Episodes], axis: str) -> Curve:
  """The mean over runs of each run's moving mean.

  A run counts from its first episode to its last: where some are over, the mean is of
  the others.

  Args:
    runs: each with an episode at least.
    axis: 'actor_frames' or 'wall_time'.
  """
  positions = [getattr(run, axis) for run in runs]
  x = np.linspace(
    min(position[0] for position in positions),
    max(position[-1] for position in positions),
    _NUM_POINTS,
  )
  values = np.stack(
    [
      np.interp(x, position, smooth(run.episode_return), left=np.nan, right=np.nan)
      for run, position in zip(runs, positions, strict=True)
    ]
  )
  there = ~np.isnan(values)
  num = there.sum(axis=0)
  total = np.where(there, values, 0.0).sum(axis=0)
  mean = np.divide(total, num, out=np.full(len(x), np.nan), where=num > 0)
  squares = np.where(there, (values - mean) ** 2, 0.0).sum(axis=0)
  variance = np.divide(squares, num - 1, out=np.full(len(x), np.nan), where=num > 1)
  return Curve(x, mean, np.sqrt(variance))


def smooth(values: np.ndarray) -> np.ndarray:
  """The mean over a window around each value, cut off at both ends."""
  half = len(values) // _SMOOTHING // 2
  sums = np.concatenate([[0.0], np.cumsum(values)])
  index = np.arange(len(values))
  first = np.maximum(index - half, 0)
  last = np.minimum(index + half + 1, len(values))
  return (sums[last] - sums[first]) / (last - first)


def draw(groups: Mapping[str, Sequence[Run]], path: str) -> str:
  """Writes a picture: a row for each environment, against frames and wall time.

  Returns:
    Its path: where the one given has no extension, it is a PNG.

  Raises:
    OSError: it cannot be written.
  """
  if not os.path.splitext(path)[1].strip('.'):
    path = f'{path.rstrip(".")}.png'
  plt = pyplot()
  environments = list(dict.fromkeys(runs[0].environment for runs in groups.values()))
  figure, rows = plt.subplots(
    len(environments),
    len(_AXES),
    figsize=(11, 0.6 + 3.6 * len(environments)),
    squeeze=False,
    sharey='row',
    constrained_layout=True,
  )
  for environment, row in zip(environments, rows, strict=True):
    for axes, (axis, (unit, name)) in zip(row, _AXES.items(), strict=True):
      for i, (label, runs) in enumerate(groups.items()):
        if runs[0].environment == environment:
          _draw_group(axes, runs, axis, unit, _literally(label), f'C{i % 10}')
      axes.set_xlabel(name)
      axes.grid(alpha=0.3)
    row[0].set_ylabel('return')
    row[0].set_title(_literally(environment), loc='left')
    row[0].legend(fontsize='small')
  try:
    figure.savefig(path, dpi=120)
  finally:
    plt.close(figure)
  return path


def _draw_group(axes, runs, axis: str, unit: float, label: str, color: str):
  evaluated = [run.evaluator for run in runs if len(run.evaluator.episode_return)]
  acted = [run.actors for run in runs if len(run.actors.episode_return)]
  if evaluated:
    curve = average(evaluated, axis)
    x = curve.x / unit
    axes.plot(x, curve.mean, color=color, linewidth=2, label=label)
    low, high = curve.mean - curve.spread, curve.mean + curve.spread
    axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
    if len(evaluated) == 1:
      position = getattr(evaluated[0], axis) / unit
      points = evaluated[0].episode_return
      axes.plot(position, points, '.', color=color, alpha=0.3, markersize=4)
  if acted:
    curve = average(acted, axis)
    what = f'{label}, actors with ε ≤ {LOW_EPSILON}'
    axes.plot(
      curve.x / unit, curve.mean, color=color, linewidth=0.7, alpha=0.7, label=what
    )


def _label(members: Sequence[Run], runs: Sequence[Run]) -> str:
  """In what these differ from the others; a single run is called by its workdir."""
  if len(members) == 1:
    return paths.shown(_short(members[0].workdir))
  first = members[0]
  differing = [
    f'{name}={value}'
    for name, value in first.config.items()
    if name != 'seed' and any(run.config.get(name) != value for run in runs)
  ]
  return f'{", ".join([first.environment, *differing])} ({len(members)} runs)'


def _match(pattern: str) -> list[str]:
  """What a pattern stands for; the name of a home folder is none."""
  start, slash, rest = pattern.partition('/')
  if start.startswith('~'):
    start = glob.escape(paths.resolve(start))
  return sorted(glob.glob(start + slash + rest))


def _short(path: str) -> str:
  """The path from the current folder, for what lies below it."""
  relative = os.path.relpath(path)
  return path if relative.split('/')[0] == '..' else relative


def _literally(text: str) -> str:
  """What Matplotlib shows as `text`: it hides `_x`, and `$x$` is a formula."""
  text = text.replace('$', r'\$')
  return f' {text}' if text.startswith('_') else text


def _read_run(workdir: str) -> Run:
  try:
    stored = description.read(workdir)
  except description.BadDescription as error:
    raise NoRun(str(error)) from error
  if not stored:
    raise NoRun(
      f'{paths.shown(workdir)} is not the workdir of a run: it has no config.json'
    )
  (environment,) = stored['environment'].values()
  actors = [name for name in sittings.read_labels(workdir) if name.startswith('actor')]
  return Run(
    workdir,
    environment,
    stored['config'],
    _read_episodes(workdir, ['evaluator']),
    _read_episodes(workdir, actors, LOW_EPSILON),
  )


def _read_episodes(
  workdir: str, labels: Sequence[str], max_epsilon: float | None = None
) -> Episodes:
  """The rows of these nodes together, of environments with at most this epsilon."""
  columns = [*Episodes._fields, *([] if max_epsilon is None else ['epsilon'])]
  rows = [sittings.read_rows(workdir, label, columns) for label in labels]
  episodes = np.concatenate([np.zeros([0, len(columns)]), *rows])
  # One that is not finite would spoil every mean that it is in.
  episodes = episodes[np.isfinite(episodes).all(axis=1)]
  if max_epsilon is not None:
    episodes = episodes[episodes[:, -1] <= max_epsilon]
  frames, seconds, returns = episodes[:, : len(Episodes._fields)].T
  order = np.argsort(seconds, kind='stable')
  return Episodes(frames[order], seconds[order], returns[order])
