"""`launch/plot.py`: which rows count, how curves are made, and what is drawn."""

import csv
import json
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from r2d2_acme import config as config_lib
from r2d2_acme.acting import exploration
from r2d2_acme.results import plotting
from r2d2_acme.workdir import loggers
from tests import helpers

_PLOT = helpers.LAUNCH / 'plot.py'
_COLUMNS = ('actor_frames', 'actor_steps', 'episode_return', 'epsilon', 'wall_time')


def _write_run(
  workdir, returns, frames=None, environment='pong', label='evaluator', **config
):
  """Writes a run whose episodes end every 100 s and, by default, million frames."""
  folder = workdir / 'logs' / label
  folder.mkdir(parents=True)
  config = {'seed': 0, 'n_step': 5, **config}
  stored = {'environment': {'game': environment}, 'config': config}
  (workdir / 'config.json').write_text(json.dumps(stored))
  with open(folder / 'logs.csv', 'w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(_COLUMNS)
    for i, value in enumerate(returns):
      now = 1e6 * (i + 1) if frames is None else frames[i]
      writer.writerow([now, now / 4, value, 0.001 if i % 2 else 0.4, 100 * (i + 1)])
  return workdir


def _read(workdir) -> plotting.Run:
  (run,) = plotting.read_runs([str(workdir)])
  return run


def _episodes(returns, frames) -> plotting.Episodes:
  frames = np.array(frames, np.float64)
  return plotting.Episodes(frames, frames / 100, np.array(returns, np.float64))


# Rows.


def test_row_that_is_being_written_is_left_for_later(tmp_path):
  workdir = _write_run(tmp_path / 'run', [1, 2])
  path = workdir / 'logs' / 'evaluator' / 'logs.csv'
  path.write_text(path.read_text() + '3000000,750000,-1')
  assert _read(workdir).evaluator.episode_return.tolist() == [1, 2]


def test_what_followed_the_checkpoint_that_a_run_went_back_to_is_forgotten(tmp_path):
  frames = [1e6, 2e6, 3e6, 1.5e6, 2.5e6]
  run = _read(_write_run(tmp_path / 'run', [1, 2, 3, 4, 5], frames))
  assert run.evaluator.actor_frames.tolist() == [1e6, 1.5e6, 2.5e6]
  assert run.evaluator.episode_return.tolist() == [1, 4, 5]


def test_what_a_later_sitting_abandoned_is_left_out_of_both_curves(tmp_path):
  _write_run(tmp_path, [])
  for start, steps in ((0, [10, 20, 30]), (25, [28]), (15, [16, 17])):
    counts = {'actor_steps': start, 'actor_frames': 4 * start, 'wall_time': start}
    sitting = loggers.begin_sitting(str(tmp_path), counts)
    for role in ('evaluator', 'actor'):
      logger = loggers.make_logger(str(tmp_path), role, sitting=sitting)
      for step in steps:
        counts = {'actor_steps': step, 'actor_frames': 4 * step, 'wall_time': step}
        logger.write({'episode_return': step, 'epsilon': 0.01, **counts})
      logger.close()
  run = _read(tmp_path)
  for episodes in (run.evaluator, run.actors):
    assert episodes.episode_return.tolist() == [10, 16, 17]
    assert episodes.actor_frames.tolist() == [40, 64, 68]


def test_return_that_is_not_finite_is_left_out(tmp_path):
  run = _read(_write_run(tmp_path, [1, float('nan'), float('inf'), *range(30)]))
  assert run.evaluator.episode_return.tolist() == [1, *range(30)]
  assert np.isfinite(plotting.average([run.evaluator], 'wall_time').mean).all()


def test_run_and_a_link_to_it_are_one(tmp_path):
  _write_run(tmp_path / 'run', [1])
  (tmp_path / 'link').symlink_to('run')
  runs = plotting.read_runs([f'{tmp_path}/link', f'{tmp_path}/*'])
  assert [run.workdir for run in runs] == [f'{tmp_path}/link']


def test_path_of_the_picture_is_that_of_its_file(tmp_path):
  groups = plotting.group([_read(_write_run(tmp_path / 'run', [1, 2]))])
  for name, written in (('a', 'a.png'), ('b.', 'b.png'), ('c.svg', 'c.svg')):
    assert plotting.draw(groups, f'{tmp_path}/{name}') == f'{tmp_path}/{written}'
    assert (tmp_path / written).exists()


def test_of_the_actors_only_low_epsilons_count_and_all_files(tmp_path):
  workdir = _write_run(tmp_path, [1, 2, 3, 4], label='actor')
  _write_run(tmp_path, [5, 6], [0.5e6, 2.5e6], label='actor_1')
  run = _read(workdir)
  assert run.actors.episode_return.tolist() == [2, 6, 4]
  assert run.actors.actor_frames.tolist() == [2e6, 2.5e6, 4e6]
  assert not len(run.evaluator.episode_return)
  assert not run.is_empty


@pytest.mark.parametrize('preset', sorted(config_lib.PRESETS))
def test_each_preset_has_actors_that_are_drawn(preset):
  epsilons = exploration.epsilon_ladder(config_lib.PRESETS[preset]())
  assert epsilons.min() <= plotting.LOW_EPSILON < epsilons.max()


# Curves.


def test_mean_and_interval_over_seeds():
  runs = [_episodes([0, 2, 4], [1, 2, 3]), _episodes([2, 4, 6], [1, 2, 3])]
  curve = plotting.average(runs, 'actor_frames')
  assert (curve.x[0], curve.x[-1]) == (1, 3)
  # Lines from 0 to 4 and from 2 to 6; a quarter of the resamples has one of them twice.
  np.testing.assert_allclose(curve.mean, np.linspace(1, 5, len(curve.x)))
  np.testing.assert_allclose(curve.low, np.linspace(0, 4, len(curve.x)))
  np.testing.assert_allclose(curve.high, np.linspace(2, 6, len(curve.x)))


def test_where_one_run_is_over_the_mean_is_of_the_others():
  runs = [_episodes([0, 0], [0, 10]), _episodes([6, 6], [5, 20])]
  curve = plotting.average(runs, 'actor_frames')
  parts = [curve.x < 5, (curve.x >= 5) & (curve.x <= 10), curve.x > 10]
  for part, mean in zip(parts, (0, 3, 6), strict=True):
    assert part.any()
    np.testing.assert_allclose(curve.mean[part], mean)
  for end in (curve.low, curve.high):
    assert np.isnan(end[~parts[1]]).all()
    assert not np.isnan(end[parts[1]]).any()


def test_where_no_run_is_there_is_no_curve():
  runs = [_episodes([0, 0], [0, 5]), _episodes([6, 6], [15, 20])]
  curve = plotting.average(runs, 'actor_frames')
  is_between = (curve.x > 5) & (curve.x < 15)
  assert np.isnan(curve.mean[is_between]).all()
  assert np.isfinite(curve.mean[~is_between]).all()


def test_axis_is_the_one_asked_for():
  curve = plotting.average([_episodes([0, 1], [100, 300])], 'wall_time')
  assert (curve.x[0], curve.x[-1]) == (1, 3)


def test_moving_mean_is_of_a_window_cut_off_at_the_ends():
  values = np.random.default_rng(0).normal(size=80)
  half = 4  # half of 80 / 10
  expected = [values[max(0, i - half) : i + half + 1].mean() for i in range(80)]
  np.testing.assert_allclose(plotting.smooth(values), expected, atol=1e-12)
  few = np.array([3.0, -1.0, 2.0])
  np.testing.assert_allclose(plotting.smooth(few), few)


# Groups.


def test_runs_that_differ_in_their_seeds_only_belong_together(tmp_path):
  for name, config in {
    'a': {'seed': 1},
    'b': {'seed': 2},
    'c': {'seed': 1, 'n_step': 1},
    'd': {'seed': 2, 'n_step': 1},
    'e': {'seed': 1, 'environment': 'breakout'},
  }.items():
    _write_run(tmp_path / name, [1], **config)
  runs = plotting.read_runs([f'{tmp_path}/[a-d]', f'{tmp_path}/e', f'{tmp_path}/a'])
  groups = plotting.group(runs)
  names = {
    label: [pathlib.Path(run.workdir).name for run in members]
    for label, members in groups.items()
  }
  assert names == {
    'pong, n_step=5 (2 runs)': ['a', 'b'],
    'pong, n_step=1 (2 runs)': ['c', 'd'],
    f'{tmp_path}/e': ['e'],
  }
  assert len(plotting.group(runs, separate=True)) == 5


# The picture, and the program.


def _plot(*arguments) -> subprocess.CompletedProcess:
  command = [sys.executable, str(_PLOT), *map(str, arguments)]
  return subprocess.run(command, capture_output=True, text=True)


def test_picture_shows_each_group_in_both_halves_at_its_height(tmp_path):
  _write_run(tmp_path / 'low_0', [0, 0, 1, 1])
  _write_run(tmp_path / 'low_1', [1, 1, 0, 0], seed=1)
  _write_run(tmp_path / 'high', [10, 9, 9, 10], n_step=1)
  path = tmp_path / 'out.png'
  ended = _plot(f'{tmp_path}/low_*', tmp_path / 'high', f'--out={path}')
  assert (ended.returncode, ended.stderr) == (0, '')
  assert ended.stdout.splitlines() == [
    f'pong, n_step=5 (2 runs): {tmp_path}/low_0, {tmp_path}/low_1',
    f'{tmp_path}/high: {tmp_path}/high',
    str(path),
  ]
  picture = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB).astype(int)
  height, width = picture.shape[:2]

  def rows_of(color, columns) -> np.ndarray:
    part = picture[:, columns]
    counts = (np.abs(part - np.array(color)).sum(axis=-1) < 12).sum(axis=1)
    return np.flatnonzero(counts > width // 20)  # long lines, not those in the legend

  blue, orange = (31, 119, 180), (255, 127, 14)
  for columns in (slice(0, width // 2), slice(width // 2, width)):
    assert rows_of(orange, columns).size
    assert rows_of(blue, columns).size
    assert rows_of(orange, columns).max() < height / 3
    assert rows_of(blue, columns).min() > height / 2


@pytest.mark.parametrize('what', ['just started', 'no run', 'nothing'])
def test_refusal_is_one_line(tmp_path, what):
  workdir = tmp_path / 'run'
  if what == 'just started':
    _write_run(workdir, [])
  elif what == 'no run':
    workdir.mkdir()
  ended = _plot(workdir, f'--out={tmp_path}/out.png')
  expected = {
    'just started': 'has no finished episode yet: try again',
    'no run': 'is not the workdir of a run',
    'nothing': f'there is no {workdir}',
  }
  assert ended.returncode == 2
  assert ended.stderr.startswith('error: ')
  assert ended.stderr.count('\n') == 1
  assert str(workdir) in ended.stderr
  assert expected[what] in ended.stderr
  assert not (tmp_path / 'out.png').exists()


def test_run_without_an_episode_does_not_hinder_the_others(tmp_path):
  _write_run(tmp_path / 'a', [])
  _write_run(tmp_path / 'b', [1, 2])
  ended = _plot(tmp_path / 'a', tmp_path / 'b', f'--out={tmp_path}/out.png')
  assert ended.returncode == 0
  assert ended.stderr == f'left out, no finished episode yet: {tmp_path}/a\n'
  assert (tmp_path / 'out.png').read_bytes().startswith(b'\x89PNG')
