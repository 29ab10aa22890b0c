"""`launch/studies/curves.py`: environments, and the arithmetic of curves."""

import numpy as np
import pytest
from studies import cue_recall, curves, drawing

from r2d2_acme.workdir import loggers
from tests.launch.studies import study_helpers


def test_only_the_first_window_of_cue_recall_has_the_cue_and_all_have_questions():
  environment, config = cue_recall.make_cue_recall(0), cue_recall.CONFIG
  timesteps = [environment.reset()]
  while not timesteps[-1].last():
    timesteps.append(environment.step(0))
  num_transitions = len(timesteps) - 1
  questions = [t for t, x in enumerate(timesteps) if x.observation[-1]]
  starts = range(0, num_transitions - config.trace_length + 1, config.sequence_period)
  assert starts[-1] + config.trace_length == num_transitions  # no padding
  trained = [
    [t for t in questions if start <= t < start + config.trace_length]
    for start in starts
  ]
  assert trained == [[5], [10], [15], [20, 25]]
  # The cue is in row 0.
  assert all(start - config.burn_in_length > 0 for start in starts[1:])


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--game=no_such_game'], 'no_such_game'),
    (['--env=memory/maze'], 'maze'),
    (['--environment=no_such_module:make'], 'no_such_module'),
    (['--game=pong', '--env=CartPole-v1'], 'give --game or --env, not both'),
    (['--env=CartPole-v1', '--environment=a:b'], '--env or --environment, not both'),
  ],
)
def test_unknown_environment_is_one_line_and_code_2(capsys, flags, message):
  args = study_helpers.parse('ablation', *flags)
  with pytest.raises(SystemExit) as exit_:
    curves.named_environment(args)
  assert exit_.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert message in line


def test_environments_are_called_what_may_be_a_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'worlds.py').write_text(
    'from r2d2_acme.environments import make_cue_recall\n'
    'make = lambda seed: make_cue_recall(seed=seed)'
  )
  assert curves.named_environment(study_helpers.parse('ablation')) is None
  names = {
    '--game=ALE/Pong-v5': 'ALE_Pong-v5',
    '--env=memory/t_maze/3': 'memory_t_maze_3',
    '--environment=worlds:make': 'worlds_make',
  }
  for flag, name in names.items():
    found, make = curves.named_environment(study_helpers.parse('ablation', flag))
    assert found == name
    assert make(1).reset().first()


def test_bins_are_open_at_their_start():
  x, y = np.array([1.0, 10.0, 11.0, 35.0]), np.array([2.0, 4.0, 5.0, 7.0])
  assert curves.in_bins(x, y, 10, np.mean) == {5.0: 3.0, 15.0: 5.0, 35.0: 7.0}


def test_returns_are_those_of_nearly_greedy_environments(tmp_path):
  study_helpers.write_actor_log(
    tmp_path,
    steps=[3, 4, 5, 100],
    epsilons=[0.4, 0.05, 0.01, 0.051],
    returns=[9, 1, 2, 9],
  )
  assert curves.returns_by_steps(tmp_path, max_steps=100) == {2.5: 1.5}


def test_returns_of_an_abandoned_timeline_do_not_count(tmp_path):
  for steps, value in ((40, 1.0), (15, 3.0)):
    counts = {'actor_steps': steps - 10, 'wall_time': steps - 10}
    sitting = loggers.begin_sitting(str(tmp_path), counts)
    logger = loggers.make_logger(str(tmp_path), 'actor', sitting=sitting)
    logger.write({'epsilon': 0.01, 'episode_return': value, 'actor_steps': steps})
    logger.close()
  assert curves.returns_by_steps(tmp_path, max_steps=100) == {12.5: 3.0}


def test_no_nearly_greedy_episode_is_one_line_and_code_2(tmp_path, capsys):
  study_helpers.write_actor_log(tmp_path, steps=[3], epsilons=[0.4], returns=[9])
  for _ in range(2):
    with pytest.raises(SystemExit) as exit_:
      curves.returns_by_steps(tmp_path, max_steps=100)
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'raise --max_steps' in line
    (tmp_path / 'logs' / 'actor' / 'logs.csv').write_text('')  # no episode at all


def test_a_curve_is_mean_and_interval_of_the_seeds_that_are_there():
  rows = curves.over_seeds('a', 'm', 'steps', [{1.0: 2.0, 3.0: 5.0}, {1.0: 4.0}])
  assert rows == [
    ('a', 'm', 'steps', 1.0, 3.0, 2.0, 4.0, 2),
    ('a', 'm', 'steps', 3.0, 5.0, *2 * [pytest.approx(np.nan, nan_ok=True)], 1),
  ]
  ((first, second),) = drawing.by_curve(rows)['m', 'steps'].values()
  assert first == (1.0, 3.0, 2.0, 4.0)
  assert second[:2] == (3.0, 5.0)
