"""Learning curves of runs, drawn from the rows that their loggers wrote."""

import dataclasses
import glob
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from r2d2_acme.results import aggregates
from r2d2_acme.workdir import description, paths, sittings

LOW_EPSILON = 0.05  # actors with at most this epsilon are drawn: nearly greedy
_NUM_POINTS = 200  # points of a curve
_SMOOTHING = 10  # a moving mean covers 1 / _SMOOTHING of a run's episodes
_AXES = {'actor_frames': (1e6, 'million frames'), 'wall_time': (3600, 'hours')}


class NoRun(ValueError):
  """A workdir holds no run, or there is no such workdir; the message is one line."""


class Episodes(NamedTuple):
  """N finished episodes in the order of their ends; each array is float64 [N]."""

  actor_frames: np.ndarray
  wall_time: np.ndarray  # seconds
  episode_return: np.ndarray


@dataclasses.dataclass(frozen=True)
class Run:
  """The run of one workdir.

  Attributes:
    workdir: its path.
    environment: the name of the environment.
    config: the fields of the run's `R2D2Config`.
    evaluator: the evaluator's episodes.
    actors: the actors' episodes in environments with an epsilon of at most
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
  """What several runs come to; each array is float64 [_NUM_POINTS].

  Attributes:
    x: positions on the x-axis.
    mean: interquartile mean of the returns of the runs that cover x; NaN where none
      does.
    low, high: its 95 % bootstrap interval; NaN where fewer than two runs cover x.
  """

  x: np.ndarray
  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray


def pyplot():
  """Imports and returns Matplotlib's pyplot, set up to draw to files only."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  return pyplot


def read_runs(patterns: Sequence[str]) -> list[Run]:
  """Reads the runs in these workdirs; each workdir is read once.

  Args:
    patterns: workdirs, or patterns of them such as `runs/pong_*`.

  Raises:
    NoRun: one of them does not exist or holds no run.
    BadWorkdir: one of them cannot be the path of a folder.
  """
  workdirs: list[str] = []
  for pattern in patterns:
    path = paths.resolve(pattern)
    found = [path] if os.path.exists(path) else _match(pattern)
    if not found:
      raise NoRun(f'there is no {paths.shown(pattern)}')
    workdirs += map(paths.resolve, found)
  unique: dict[str, str] = {}  # keys are real paths: a link is the same run
  for workdir in workdirs:
    unique.setdefault(os.path.realpath(workdir), workdir)
  return [_read_run(workdir) for workdir in unique.values()]


def group(runs: Sequence[Run], separate: bool = False) -> dict[str, list[Run]]:
  """Groups runs that differ in nothing but the seed.

  Args:
    runs: runs of any environments.
    separate: whether to make each run a group of its own.

  Returns:
    The groups by their labels in the legend.
  """
  groups: dict[str, list[Run]] = {}
  for run in runs:
    config = {name: value for name, value in run.config.items() if name != 'seed'}
    key = json.dumps([run.environment, config, run.workdir if separate else None])
    groups.setdefault(key, []).append(run)
  return {_label(members, runs): members for members in groups.values()}


def average(runs: Sequence[Episodes], axis: str) -> Curve:
  """Averages the runs' moving means.

  A run counts between its first and its last episode. Beyond the end of a shorter run
  the curve is that of the others.

  Args:
    runs: the episodes of each run, at least one each.
    axis: the x-axis, 'actor_frames' or 'wall_time'.
  """
  positions = [getattr(run, axis) for run in runs]
  x = np.linspace(
    min(position[0] for position in positions),
    max(position[-1] for position in positions),
    _NUM_POINTS,
  )
  values = [
    np.interp(x, position, smooth(run.episode_return), left=np.nan, right=np.nan)
    for run, position in zip(runs, positions, strict=True)
  ]
  points = [  # [_NUM_POINTS], each float64 [runs that cover it]
    column[np.isfinite(column)] for column in np.transpose(values)
  ]
  nothing = 3 * (np.nan,)
  estimates = [aggregates.estimate([y]) if len(y) else nothing for y in points]
  return Curve(x, *np.array(estimates).T)


def smooth(values: np.ndarray) -> np.ndarray:
  """Returns the mean of a window around each value, cut off at both ends."""
  half = len(values) // _SMOOTHING // 2
  sums = np.concatenate([[0.0], np.cumsum(values)])
  index = np.arange(len(values))
  first = np.maximum(index - half, 0)
  last = np.minimum(index + half + 1, len(values))
  return (sums[last] - sums[first]) / (last - first)


def draw(groups: Mapping[str, Sequence[Run]], path: str) -> str:
  """Draws a row of axes for each environment, against frames and against wall time.

  Args:
    groups: runs by their labels, see `group`.
    path: the picture's file. Without an extension it becomes a PNG.

  Returns:
    The path of the file, with its extension.

  Raises:
    OSError: the file cannot be written.
  """
  if not os.path.splitext(path)[1].strip('.'):
    path = f'{path.rstrip(".")}.png'
  plt = pyplot()
  environments = list(dict.fromkeys(runs[0].environment for runs in groups.values()))
  figure, rows = plt.subplots(
    *(len(environments), len(_AXES)),
    figsize=(11, 0.6 + 3.6 * len(environments)),
    squeeze=False,
    sharey='row',
    constrained_layout=True,
  )
  for environment, row in zip(environments, rows, strict=True):
    for axes, (axis, (unit, name)) in zip(row, _AXES.items(), strict=True):
      for i, (label, runs) in enumerate(groups.items()):
        if runs[0].environment == environment:
          draw_group(axes, runs, axis, unit, escape(label), f'C{i % 10}')
      axes.set_xlabel(name)
      axes.grid(alpha=0.3)
    row[0].set_ylabel('return')
    row[0].set_title(escape(environment), loc='left')
    row[0].legend(fontsize='small')
  try:
    figure.savefig(path, dpi=120)
  finally:
    plt.close(figure)
  return path


def draw_group(
  axes, runs: Sequence[Run], axis: str, unit: float, label: str, color: str
):
  """Draws the curves of one group of runs: the evaluators' and, thinner, the actors'.

  A single run's evaluation episodes are drawn as points, too.

  Args:
    axes: Matplotlib's.
    runs: the group.
    axis: the x-axis, 'actor_frames' or 'wall_time'.
    unit: what to divide the x-axis by.
    label: the group's name in the legend.
    color: of the curves.
  """
  evaluated = [run.evaluator for run in runs if len(run.evaluator.episode_return)]
  acted = [run.actors for run in runs if len(run.actors.episode_return)]
  if evaluated:
    curve = average(evaluated, axis)
    x = curve.x / unit
    axes.plot(x, curve.mean, color=color, linewidth=2, label=label)
    axes.fill_between(x, curve.low, curve.high, color=color, alpha=0.2, linewidth=0)
    if len(evaluated) == 1:
      position = getattr(evaluated[0], axis) / unit
      points = evaluated[0].episode_return
      axes.plot(position, points, '.', color=color, alpha=0.3, markersize=4)
  if acted:
    curve = average(acted, axis)
    label = f'{label}, actors with ε ≤ {LOW_EPSILON}'
    style = {'color': color, 'linewidth': 0.7, 'alpha': 0.7}
    axes.plot(curve.x / unit, curve.mean, label=label, **style)


def _label(members: Sequence[Run], runs: Sequence[Run]) -> str:
  """Returns a group's label: a single run's workdir, or what the group differs in."""
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
  """Returns the paths that match a pattern, sorted."""
  start, slash, rest = pattern.partition('/')  # `~user` is a name, not a pattern
  if start.startswith('~'):
    start = glob.escape(paths.resolve(start))
  return sorted(glob.glob(start + slash + rest))


def _short(path: str) -> str:
  """Returns a path below the current folder as a relative one, others unchanged."""
  relative = os.path.relpath(path)
  return path if relative.split('/')[0] == '..' else relative


def escape(text: str) -> str:
  """Escapes a label: Matplotlib hides `_x` and reads `$x$` as a formula."""
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
  if stored.get('env_kwargs'):
    environment += f' {json.dumps(stored["env_kwargs"])}'
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
  """Reads and joins the logged episodes of several nodes.

  Args:
    workdir: of the run.
    labels: the nodes, such as 'evaluator' or 'actor_1'.
    max_epsilon: leaves out environments with a larger epsilon.
  """
  columns = [*Episodes._fields, *([] if max_epsilon is None else ['epsilon'])]
  rows = [sittings.read_rows(workdir, label, columns) for label in labels]
  episodes = np.concatenate([np.zeros([0, len(columns)]), *rows])
  # A return that is not finite would make every mean over it not finite.
  episodes = episodes[np.isfinite(episodes).all(axis=1)]
  if max_epsilon is not None:
    episodes = episodes[episodes[:, -1] <= max_epsilon]
  frames, seconds, returns = episodes[:, : len(Episodes._fields)].T
  order = np.argsort(seconds, kind='stable')
  return Episodes(frames[order], seconds[order], returns[order])
