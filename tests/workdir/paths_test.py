"""Every path that the file system allows works with every library that opens it."""

import argparse
import csv
import dataclasses
import json
import os
import pathlib

import cv2
import numpy as np
import pytest

from r2d2_acme.builder import R2D2Builder
from r2d2_acme.environments import make_cue_recall
from r2d2_acme.results import plotting, video
from r2d2_acme.workdir import checkpointing, loggers, paths, saving
from tests import helpers

_NAMES = (
  *('a[b]', '[', ']', 'a*', '*', 'a?', 'a\\b', 'a\\', '[!x]', '{x}', 'a,b', '**'),
  *(' a  b ', 'a\nb', 'a\tb', '\r', "a'b", 'a"b', '`a`', '$HOME', '$x$', 'a$b'),
  *('%', '%d', '%s', 'a=b', '#', 'a;b', 'a&b', 'a|b', '<a>', 'a:b', 'http:', 'a@b'),
  *('!', 'é', '日本', '\u200b', '\x1b[31m', 'a\udcffb', '-a', '--', '.a', '_a', '~a'),
  *('x' * 255, 'ckpt-3', 'best', 'a.index'),
)
_CONFIG = helpers.make_config(num_checkpoints=1, checkpoint_period=1e9)


@pytest.fixture(scope='module')
def learner():
  return R2D2Builder(_CONFIG, helpers.make_spec(image=False)).make_learner(iter(()))


@pytest.mark.parametrize('name', _NAMES, ids=ascii)
def test_any_folder_is_a_workdir(tmp_path, name, learner):
  path = tmp_path / name
  os.makedirs(tmp_path / 'ab')  # some of the names match it as patterns
  run = str(path)
  _check_checkpoints(run, learner)
  _check_logs(run)
  _check_video(run)
  assert {entry.name for entry in tmp_path.iterdir()} == {'ab', name}
  assert not os.listdir(tmp_path / 'ab')


def _check_checkpoints(run: str, learner):
  for steps in range(1, 4):
    checkpointer = saving.Checkpointer(run, learner, checkpointing.verify(run), _CONFIG)
    with learner.locked:
      learner.state['num_steps'].assign(steps)
    checkpointer.save({'actor_steps': steps}, force=True)
  assert checkpointing.verify(run)['actor_steps'] == 3
  (prefix,) = checkpointing.find(run)
  assert checkpointing.choose(run, prefix) == prefix
  network = R2D2Builder(_CONFIG, helpers.make_spec(image=False)).make_network()
  checkpointing.restore_network(network, run, None)
  checkpointing.go_back(run, 'ckpt-3')


def _check_logs(run: str):
  logger = loggers.make_logger(run, 'evaluator')
  for i in (1, 2):
    logger.write({'episode_return': i, 'actor_frames': i, 'wall_time': i})
  logger.close()
  rows = helpers.read_rows(pathlib.Path(run, 'logs', 'evaluator', 'logs.csv'))
  assert len(rows) == 2
  (events,) = pathlib.Path(run, 'tb', 'evaluator').iterdir()
  assert events.stat().st_size > 200


def _check_video(run: str):
  path = os.path.join(run, 'first.mp4')
  environment = make_cue_recall()
  recorder = video.Recorder(path, environment)
  recorder(
    environment.reset(), np.zeros(environment.action_spec().num_values, np.float32), 0
  )
  recorder.close()
  assert os.path.getsize(path) > 500


def _write_run(run: str, environment: str):
  """Writes what `plot.py` reads, with a single episode."""
  os.makedirs(os.path.join(run, 'logs', 'evaluator'))
  stored = {'environment': {'env': environment}, 'config': {'seed': 0}}
  pathlib.Path(run, 'config.json').write_text(json.dumps(stored))
  with open(os.path.join(run, 'logs', 'evaluator', 'logs.csv'), 'w') as file:
    writer = csv.DictWriter(file, ['episode_return', 'actor_frames', 'wall_time'])
    writer.writeheader()
    writer.writerow({'episode_return': 1, 'actor_frames': 1, 'wall_time': 1})


def test_any_folder_can_be_plotted_and_printed(tmp_path):
  for name in _NAMES:
    _write_run(str(tmp_path / name), '_$x$')
  groups = plotting.group(
    plotting.read_runs([str(tmp_path / name) for name in _NAMES]), separate=True
  )
  assert len(groups) == len(_NAMES)
  assert all(label.isprintable() for label in groups)
  path = tmp_path / 'curves.png'
  plotting.draw(groups, str(path))
  assert cv2.imread(str(path)) is not None


def test_legend_names_workdirs_as_they_are_called(tmp_path, monkeypatch):
  """Matplotlib hides labels such as `_a` and reads `$a$` as a formula."""
  monkeypatch.chdir(tmp_path)
  for name in ('_a', '$b$', 'c'):
    _write_run(name, name)
  pyplot = plotting.pyplot()
  shown = []

  def look(figure):
    figure.canvas.draw()
    for axes in figure.axes:
      if axes.get_legend():
        shown.extend(text.get_text() for text in axes.get_legend().get_texts())

  monkeypatch.setattr(pyplot, 'close', look)
  plotting.draw(plotting.group(plotting.read_runs(['_a', '$b$', 'c'])), 'curves.png')
  assert shown == [' _a', r'\$b\$', 'c']  # the backslash is not drawn
  assert cv2.imread('curves.png') is not None


@pytest.mark.parametrize(
  ('given', 'expected'),
  [
    ('~', 'home'),
    ('~/x', 'home/x'),
    ('~/', 'home'),
    ('runs/~x', 'here/runs/~x'),
    ('./~x', 'here/~x'),
    ('x/', 'here/x'),
    ('x//y/./', 'here/x/y'),
    ('../x', 'x'),
    ('link/../x', 'elsewhere/x'),
    ('-x', 'here/-x'),
  ],
)
def test_path_is_absolute_and_the_one_that_is_meant(
  tmp_path, monkeypatch, given, expected
):
  for name in ('here', 'home', 'elsewhere/inside'):
    (tmp_path / name).mkdir(parents=True)
  (tmp_path / 'here/link').symlink_to(tmp_path / 'elsewhere/inside')
  monkeypatch.chdir(tmp_path / 'here')
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  for path in (given, pathlib.Path(given) if '~' not in given[2:] else given):
    resolved = paths.resolve(path)
    assert resolved == str(tmp_path / expected)
    assert paths.resolve(resolved) == resolved


def test_users_home_is_that_of_the_user():
  assert paths.resolve('~root/x') == '/root/x'


@pytest.mark.parametrize(
  ('path', 'expected'),
  [
    ('~no_such_user/x', './~no_such_user/x'),
    ('', 'give another'),
    ('a\0b', 'give another'),
    ('x/' * 3000, 'give a shorter path'),
  ],
)
def test_refusal_is_one_line_that_names_the_cure(path, expected):
  with pytest.raises(paths.BadWorkdir) as error:
    paths.resolve(path)
  assert expected in str(error.value)
  assert str(error.value).isprintable()
  with pytest.raises(argparse.ArgumentTypeError):
    paths.argument(path)


def test_without_any_home_it_is_said(monkeypatch):
  monkeypatch.delenv('HOME')
  monkeypatch.setattr(
    os, 'getuid', lambda: 3_999_999
  )  # a user without an entry in passwd
  with pytest.raises(paths.BadWorkdir, match='no home folder for ~/x: give the whole'):
    paths.resolve('~/x')


def test_deleted_current_folder_is_said(tmp_path, monkeypatch):
  folder = tmp_path / 'gone'
  folder.mkdir()
  monkeypatch.chdir(folder)
  folder.rmdir()
  with pytest.raises(paths.BadWorkdir, match='current folder was deleted'):
    paths.resolve('x')


def test_agent_and_checkpoints_agree_about_the_home_folder(
  tmp_path, monkeypatch, learner
):
  monkeypatch.setenv('HOME', str(tmp_path))
  config = dataclasses.replace(_CONFIG, num_checkpoints=3)
  saving.Checkpointer('~/run', learner, {}, config).save({}, force=True)
  loggers.make_logger('~/run', 'learner').close()
  assert checkpointing.find('~/run') == checkpointing.find(str(tmp_path / 'run'))
  assert sorted(path.name for path in tmp_path.iterdir()) == ['run']
