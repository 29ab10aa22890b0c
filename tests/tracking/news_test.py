"""What is new in a workdir for a tracker."""

import dataclasses
import json

import pytest

from r2d2_acme.tracking import news
from r2d2_acme.tracking.news import Seen


@pytest.fixture
def log(tmp_path):
  """`log(label, *lines)` appends lines to the log of a node."""

  def log(label: str, *lines: str):
    path = tmp_path / 'logs' / label / 'logs.csv'
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
      path.write_text('actor_steps,episode_return\r\n')
    with open(path, 'a') as file:
      file.write(''.join(lines))

  return log


def _new_rows(workdir, seen: Seen) -> tuple[dict[str, list], Seen]:
  """New rows by label, and what has been seen after them."""
  rows, positions = {}, dict(seen.positions)
  for label, new, position in news.new_rows(str(workdir), seen):
    rows[label] = [(row['actor_steps'], row['episode_return']) for row in new]
    positions[label] = position
  return rows, dataclasses.replace(seen, positions=positions)


def test_each_whole_row_is_new_once(tmp_path, log):
  log('actor', '1,-2\r\n', '2,0.5\r\n', '3,')  # the last is being written
  log('evaluator_[x]', '7,8\r\n')
  rows, seen = _new_rows(tmp_path, Seen())
  assert rows == {'actor': [(1, -2), (2, 0.5)], 'evaluator_[x]': [(7, 8)]}
  assert _new_rows(tmp_path, seen)[0] == {}
  log('actor', '4\r\n', 'damaged,1\r\n', '5,6\r\n')
  assert _new_rows(tmp_path, seen)[0] == {'actor': [(3, 4), (5, 6)]}


def test_of_many_rows_some_are_taken_evenly(tmp_path, log):
  log('actor', *(f'{i},0\r\n' for i in range(1000)))
  rows, seen = _new_rows(tmp_path, Seen())
  assert [steps for steps, _ in rows['actor']] == list(range(0, 1000, 10))
  assert _new_rows(tmp_path, seen)[0] == {}


def test_rows_after_going_back_to_a_checkpoint_are_new(tmp_path, log):
  log('actor', '1,0\r\n', '2,0\r\n', '3,0\r\n')
  _, seen = _new_rows(tmp_path, Seen())
  path = tmp_path / 'logs' / 'actor' / 'logs.csv'
  path.write_bytes(path.read_bytes().removesuffix(b'2,0\r\n3,0\r\n'))
  seen = seen.clipped(str(tmp_path))
  log('actor', '2,9\r\n', '3,9\r\n', '4,9\r\n')
  assert _new_rows(tmp_path, seen)[0] == {'actor': [(2, 9), (3, 9), (4, 9)]}


def test_what_each_tracker_has_seen_is_kept(tmp_path):
  workdir = str(tmp_path)
  seen = Seen('x1', {'actor': 3}, ['a.gif'], {'checkpoint': 'ckpt-1'})
  seen.write(workdir, 'wandb')
  Seen('y2').write(workdir, 'mlflow')
  assert Seen.read(workdir, 'wandb') == seen
  assert Seen.read(workdir, 'mlflow') == Seen('y2', videos=[])


@pytest.mark.parametrize(
  'content', ['', 'null', '{"wandb": 3}', '{"wandb": {"positions": {"a": "b"}}}']
)
def test_damaged_file_is_nothing_seen(tmp_path, content):
  (tmp_path / 'tracking.json').write_text(content)
  assert Seen.read(str(tmp_path), 'wandb') == Seen()
  Seen('x1').write(str(tmp_path), 'wandb')
  assert Seen.read(str(tmp_path), 'wandb').run == 'x1'


def test_videos_of_the_evaluator_are_new_once(tmp_path):
  assert [*news.new_videos(str(tmp_path), Seen())] == []
  (tmp_path / 'videos').mkdir()
  for name in ('evaluator_000000000012.gif', 'evaluator_9.gif.new', 'ckpt-3.mp4'):
    (tmp_path / 'videos' / name).write_bytes(b'')
  path = str(tmp_path / 'videos' / 'evaluator_000000000012.gif')
  assert [*news.new_videos(str(tmp_path), Seen())] == [(path, 12)]
  seen = Seen(videos=['evaluator_000000000012.gif'])
  assert [*news.new_videos(str(tmp_path), seen)] == []


def test_best_checkpoint_is_new_until_another_is_better(tmp_path):
  assert news.new_best(str(tmp_path), Seen()) is None
  folder = tmp_path / 'checkpoints' / 'learner'
  folder.mkdir(parents=True)
  best = {'checkpoint': 'ckpt-3', 'mean_return': 1.5}
  (folder / 'best.json').write_text(json.dumps(best))
  assert news.new_best(str(tmp_path), Seen()) is None  # its files are not there
  names = ['best.json', 'ckpt-3.data-00000-of-00001', 'ckpt-3.index']
  for name in ('ckpt-33.index', *names[1:]):
    (folder / name).write_bytes(b'')
  found, files = news.new_best(str(tmp_path), Seen())
  assert found == best
  assert sorted(files) == [str(folder / name) for name in names]
  assert news.new_best(str(tmp_path), Seen(best=best)) is None
  assert news.new_best(str(tmp_path), Seen(best={**best, 'mean_return': 1}))
