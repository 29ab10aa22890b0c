"""Plays with a checkpoint: scores, videos and `launch/evaluate.py`."""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
from typing import NamedTuple

import acme
import cv2
import dm_env
import numpy as np
import pytest
import sonnet as snt
import tensorflow as tf
from acme.utils import counting, loggers
from dm_env import specs
from PIL import Image

from r2d2_acme import config as config_lib
from r2d2_acme import environments
from r2d2_acme.builder import R2D2Builder
from r2d2_acme.environments import atari, make_atari, make_cue_recall, make_gymnasium
from r2d2_acme.results import atari_scores, evaluation, video
from r2d2_acme.system import runtime
from r2d2_acme.types import Observation
from r2d2_acme.workdir import checkpointing, saving
from r2d2_acme.workdir import loggers as program_loggers
from tests import helpers

_EVALUATE = helpers.LAUNCH / 'evaluate.py'
_CONFIG = helpers.make_config(evaluator_epsilon=0.0)
# The environment of a user, without the variables that this process has set.
_ENVIRON = {k: v for k, v in os.environ.items() if k not in runtime._ENVIRONMENT}


# Scores.


def test_columns_give_the_numbers_that_the_paper_states():
  """A wrong digit in any column would change these numbers; see `atari_scores`."""
  assert len(atari_scores.GAMES) == 57
  scores = [
    atari_scores.human_normalized(game, game_scores.paper)
    for game, game_scores in atari_scores.GAMES.items()
  ]
  assert f'{100 * statistics.mean(scores):.1f}' == '4024.9'
  assert sum(score > 1 for score in scores) == 52
  # The median is that of Double Dunk, whose score is between 23.65 and 23.75.
  assert statistics.median(scores) == pytest.approx(19.206, abs=0.05 / 2.2)


def test_normalized_score_of_pong():
  assert atari_scores.human_normalized('pong', 21.0) == pytest.approx(41.7 / 35.3)
  assert atari_scores.human_normalized('pong', -20.7) == 0
  assert atari_scores.human_normalized('pong', 14.6) == 1


def test_every_game_is_found_by_all_its_names_and_can_be_played():
  assert set(atari_scores.GAMES) <= set(atari.game_names())
  for game in atari_scores.GAMES:
    camel = ''.join(word.capitalize() for word in game.split('_'))
    for name in (game, camel, f'ALE/{camel}-v5'):
      assert atari_scores.find_game(name) == game
  for name in ('CartPole-v1', 'memory/cue_recall', 'adventure', 'ALE/Pong-v4'):
    assert atari_scores.find_game(name) is None


# Episodes.


class _Constant:
  """An actor whose action is the environment's number."""

  def select_actions(self, actions, timesteps):
    return np.arange(len(timesteps), dtype=np.int32)


def test_each_environment_plays_its_own_episodes_however_long():
  lengths = [[2, 3, 2], [9, 4]]  # the fast one must not play the slow one's
  environments = [
    helpers.ScriptedEnvironment(
      [helpers.Episode(length, terminates=True) for length in lengths[i]], index=i
    )
    for i in range(2)
  ]
  told = []
  episodes = evaluation.play(
    _Constant(), environments, 5, lambda number, episode: told.append((number, episode))
  )
  assert [episode.length for episode in episodes] == [2, 9, 3, 4, 2]
  assert sorted(told, key=lambda pair: pair[0]) == list(enumerate(episodes))
  for number, episode in enumerate(episodes):
    tape = environments[number % 2].tape
    assert {t.action for key, t in tape.items() if key.step} == {number % 2}
    rewards = [
      transition.reward
      for key, transition in tape.items()
      if key.episode == number // 2
    ]
    assert len(rewards) == episode.length + 1
    assert episode.total == pytest.approx(sum(rewards), abs=1e-5)


def _play(actor, lengths, num_episodes, **arguments):
  environments = [
    helpers.ScriptedEnvironment(
      [helpers.Episode(length, terminates=True) for length in lengths[i]], index=i
    )
    for i in range(len(lengths))
  ]
  episodes = evaluation.play(actor, environments, num_episodes, **arguments)
  return episodes, environments


def test_episode_that_does_not_end_is_cut_off_and_the_next_starts_with_a_reset():
  lengths = [[1000, 2, 1000], [6, 5, 1000]]
  episodes, environments = _play(_Constant(), lengths, 5, max_steps=5)
  assert [episode.length for episode in episodes] == [5, 5, 2, 5, 5]
  # The episode that ended at the limit by itself was not cut off.
  cut = [episode.is_cut for episode in episodes]
  assert cut == [True, True, False, False, True]
  for number, episode in enumerate(episodes):
    rewards = [
      transition.reward
      for key, transition in environments[number % 2].tape.items()
      if key.episode == number // 2
    ]
    assert len(rewards) == episode.length + 1
    assert episode.total == pytest.approx(sum(rewards), abs=1e-5)


def test_after_a_cut_nothing_of_the_episode_is_left_in_the_actor():
  config = helpers.make_config(evaluator_epsilon=0.0)
  builder = R2D2Builder(config, helpers.make_spec())
  network = helpers.RecordingNetwork(builder.make_network())
  _play(builder.make_evaluator(network=network), [[9, 9]], 2, max_steps=4)
  assert len(network.acted) == 8
  for key, acted in network.acted.items():
    is_first = key.step == 0
    stack = acted.observation.observation
    assert np.any(stack[..., :-1]) != is_first
    assert any(np.any(part) for part in acted.core_state) != is_first
    if is_first:
      assert acted.observation.action == acted.observation.reward == 0


def test_limit_is_atari_s_unless_said_otherwise():
  episodes, _ = _play(_Constant(), [[30_000]], 1)
  assert episodes[0].length == config_lib.R2D2Config().max_evaluation_steps == 27_000


class _ResetsItself(dm_env.Environment):
  """Resets itself in `step` after some steps, and never returns LAST."""

  def __init__(self, length: int):
    self._length = length
    self._steps = 0

  def reset(self):
    self._steps = 0
    return dm_env.restart(np.zeros(1, np.float32))

  def step(self, action):
    if self._steps == self._length:
      return self.reset()
    self._steps += 1
    return dm_env.transition(np.float32(1), np.ones(1, np.float32))

  def observation_spec(self):
    return specs.Array((1,), np.float32)

  def action_spec(self):
    return specs.DiscreteArray(2)


@pytest.mark.parametrize('length', [0, 3])
def test_episode_of_an_environment_that_resets_itself_ends_there(length):
  environments = [_ResetsItself(length)]
  episodes = evaluation.play(_Constant(), environments, 3)
  assert episodes == 3 * [evaluation.Episode(total=length, length=length)]


class _LosesLives(helpers.ScriptedEnvironment):
  """Has the discount 0 at every third step, where its episode goes on."""

  def step(self, action):
    timestep = super().step(action)
    return timestep._replace(discount=np.float32(self._key.step % 3 != 0))


def test_return_is_that_of_the_whole_game_and_not_clipped():
  config = dataclasses.replace(_CONFIG, clip_rewards=True)
  actor = R2D2Builder(config, helpers.make_spec()).make_evaluator()
  environment = _LosesLives([helpers.Episode(20, terminates=True)])
  (episode,) = evaluation.play(actor, [environment], num_episodes=1)
  rewards = [transition.reward for transition in environment.tape.values()]
  assert max(map(abs, rewards)) > 2
  assert episode.total == pytest.approx(sum(rewards), abs=1e-5)
  assert (episode.length, episode.is_cut) == (20, False)


def test_stop_ends_an_episode_that_does_not_end_by_itself():
  steps = 0

  def should_stop() -> bool:
    nonlocal steps
    steps += 1
    return steps > 20

  episodes, _ = _play(
    _Constant(), [[3, 1000], [1000]], 4, max_steps=1000, should_stop=should_stop
  )
  assert [episode.length for episode in episodes] == [3]  # the finished one
  assert steps == 21


# The program's evaluator.


class _Busy(helpers.ScriptedEnvironment):
  """An environment in whose steps the learner and the actors make progress."""

  def __init__(self, episodes, learner, counter):
    super().__init__(episodes, image=False)
    self._learner = learner
    self._counter = counter

  def step(self, action):
    self._learner.step()
    self._counter.increment(actor_steps=10, actor_frames=40)
    return super().step(action)


class _Evaluated(NamedTuple):
  rows: list
  returns: list[float]  # passed to `observe_return`
  parameters: list[float]  # a sum over the first variable that played
  out: str


@pytest.fixture(scope='module')
def evaluated() -> _Evaluated:
  """Three episodes, the second cut off; the learner has already taken 5 steps."""
  played = helpers.run(
    helpers.make_config(batch_size=2), [[helpers.Episode(8, True)]], image=False
  )
  builder = played.builder
  counter = program_loggers.WallTimeCounter(
    {'actor_steps': 100, 'actor_frames': 400, 'wall_time': 50.0}
  )
  learner = builder.make_learner(
    itertools.repeat(helpers.make_batch(played.windows)),
    counter=counting.Counter(counter, 'learner', time_delta=0.0),
  )
  for _ in range(5):
    learner.step()
  script = [helpers.Episode(length, True) for length in (3, 99, 4)]
  logger, returns, parameters = loggers.InMemoryLogger(), [], []
  actor = builder.make_evaluator()
  evaluator = evaluation.Evaluator(
    actor,
    _Busy(script, learner, counter),
    learner,
    max_steps=6,
    counter=counter,
    logger=logger,
    observe_return=returns.append,
  )
  with contextlib.redirect_stdout(io.StringIO()) as out:
    for _ in script:
      evaluator.run_episode()
      parameters.append(actor._variables[0].numpy().sum())
  return _Evaluated(logger.data, returns, parameters, out.getvalue())


def test_row_has_the_counts_of_the_parameters_that_played(evaluated):
  rows = evaluated.rows
  # 5 learner steps before, then one for each step of the evaluator.
  assert [row['learner_steps'] for row in rows] == [5, 8, 14]
  assert [row['actor_steps'] for row in rows] == [100, 130, 190]
  assert [row['actor_frames'] for row in rows] == [400, 520, 760]
  assert [row['evaluator_episodes'] for row in rows] == [1, 2, 3]
  assert 50 <= rows[0]['wall_time'] < rows[1]['wall_time'] < rows[2]['wall_time']
  assert len(set(evaluated.parameters)) == 3


def test_cut_episode_is_marked_in_its_row_and_said_in_a_line(evaluated):
  assert [row['episode_length'] for row in evaluated.rows] == [3, 6, 4]
  assert [row['is_cut'] for row in evaluated.rows] == [0, 1, 0]
  assert evaluated.out.splitlines() == [
    'An evaluation episode was cut off: it had not ended after 6 steps '
    '(max_evaluation_steps).'
  ]


def test_each_return_is_observed(evaluated):
  assert evaluated.returns == [row['episode_return'] for row in evaluated.rows]
  assert len(set(evaluated.returns)) == 3


def test_row_has_no_column_that_the_log_lacks(evaluated):
  columns = program_loggers.COLUMNS['evaluator']
  assert set(evaluated.rows[0]) == set(columns) - {'sitting'}


def test_episode_in_which_the_environment_failed_is_not_logged(capsys):
  builder = R2D2Builder(_CONFIG, helpers.make_spec(image=False))
  learner = builder.make_learner(iter([]))
  logger, returns, made = loggers.InMemoryLogger(), [], []

  def make(seed: int):
    made.append(helpers.ScriptedEnvironment([helpers.Episode(3, True)] * 2, 0, False))
    if len(made) == 1:  # its second episode has observations of a wrong dtype
      observe = made[0]._observe
      made[0]._observe = lambda: observe().astype(
        np.float64 if made[0]._key[1:] >= (1, 2) else np.float32
      )
    return made[-1]

  with environments.opened(make, [0], 1) as (environment,):
    evaluator = evaluation.Evaluator(
      builder.make_evaluator(),
      environment,
      learner,
      max_steps=6,
      counter=counting.Counter(),
      logger=logger,
      observe_return=returns.append,
    )
    for _ in range(3):
      evaluator.run_episode()
  assert [row['environment_failures'] for row in logger.data] == [0, 1]
  assert [row['evaluator_episodes'] for row in logger.data] == [1, 2]
  assert returns == [row['episode_return'] for row in logger.data]
  assert 'failed in step 2 of episode 2: the observation is float64' in (
    capsys.readouterr().err
  )


# Checkpoints.


class _Saved(NamedTuple):
  workdir: pathlib.Path
  networks: list[list[np.ndarray]]  # the variables of ckpt-1, ckpt-2 …


def _save(workdir, config, spec, number=1) -> _Saved:
  """Saves checkpoints of different networks, all unlike a new network."""
  learner = R2D2Builder(config, spec).make_learner(iter(()))
  checkpointer = saving.Checkpointer(str(workdir), learner, {}, config)
  rng = np.random.default_rng(1)
  networks = []
  for i in range(number):
    for variable in learner.state['network'].variables:
      variable.assign(rng.normal(size=variable.shape, scale=0.3))
    with learner.locked:
      learner.state['num_steps'].assign_add(1)
    checkpointer.save({'actor_frames': 400 * (i + 1)}, force=True)
    networks.append([v.numpy() for v in learner.state['network'].variables])
  return _Saved(pathlib.Path(workdir), networks)


@pytest.fixture(scope='module')
def _cues():
  environment = make_cue_recall(delay=3, seed=0)
  return acme.make_environment_spec(environment)


@pytest.fixture
def saved(tmp_path, _cues) -> _Saved:
  return _save(tmp_path / 'run', _CONFIG, _cues, number=2)


def _make_network(spec) -> snt.Module:
  return R2D2Builder(_CONFIG, spec).make_network()


def _equal(network, values) -> bool:
  return all(map(np.array_equal, (v.numpy() for v in network.variables), values))


def _contents(workdir) -> dict[str, tuple[int, bytes]]:
  return {
    str(path): (path.stat().st_mtime_ns, path.read_bytes())
    for path in workdir.rglob('*')
    if path.is_file()
  }


@pytest.mark.parametrize(
  ('name', 'number'),
  [
    (None, 2),
    ('newest', 2),
    ('ckpt-2', 2),
    ('ckpt-1', 1),
    ('checkpoints/learner/ckpt-1', 1),
  ],
)
def test_network_is_that_of_the_checkpoint_and_nothing_is_written(
  saved, _cues, name, number, monkeypatch
):
  monkeypatch.chdir(saved.workdir)
  before = _contents(saved.workdir)
  network = _make_network(_cues)
  assert not _equal(network, saved.networks[number - 1])
  prefix, moment = checkpointing.restore_network(network, str(saved.workdir), name)
  assert _equal(network, saved.networks[number - 1])
  assert os.path.basename(prefix) == f'ckpt-{number}'
  assert moment.counts['actor_frames'] == 400 * number
  assert _contents(saved.workdir) == before


def test_unknown_checkpoint_is_refused_with_those_there_are(saved, _cues):
  with pytest.raises(checkpointing.CheckpointError, match='ckpt-7.*ckpt-1.*ckpt-2$'):
    checkpointing.restore_network(_make_network(_cues), str(saved.workdir), 'ckpt-7')


def test_corrupt_checkpoint_is_refused_in_one_line(saved, _cues, monkeypatch):
  monkeypatch.setattr(checkpointing, '_READ_PAUSE', 0.0)
  folder = pathlib.Path(checkpointing.directory(str(saved.workdir)))
  path = max(folder.glob('ckpt-2.data*'), key=lambda path: path.stat().st_size)
  os.truncate(path, path.stat().st_size // 2)
  with pytest.raises(checkpointing.CheckpointError, match='ckpt-2 is damaged') as error:
    checkpointing.restore_network(_make_network(_cues), str(saved.workdir))
  assert '\n' not in str(error.value)


def test_checkpoint_that_goes_while_it_is_read_gives_way_to_the_next(
  saved, _cues, monkeypatch
):
  monkeypatch.setattr(checkpointing, '_READ_PAUSE', 0.0)
  find = checkpointing.find
  answers = [
    [f'{checkpointing.directory(str(saved.workdir))}/ckpt-0']
  ]  # a checkpoint that was just deleted
  monkeypatch.setattr(
    checkpointing, 'find', lambda workdir: answers.pop() if answers else find(workdir)
  )
  network = _make_network(_cues)
  prefix, _ = checkpointing.restore_network(network, str(saved.workdir))
  assert os.path.basename(prefix) == 'ckpt-2'
  assert _equal(network, saved.networks[1])


# `evaluate`.


def _evaluate(saved, spec, seed=0, config=_CONFIG, **arguments):
  return evaluation.evaluate(
    config,
    lambda seed: make_cue_recall(delay=3, seed=seed),
    spec,
    str(saved.workdir),
    num_episodes=20,
    seed=seed,
    **arguments,
  )


def test_actions_are_the_greedy_ones_of_the_checkpoints_network(saved, _cues):
  """The watcher's Q-values equal those of an unroll over what it saw."""
  seen = []

  def make_watcher(environment, checkpoint):
    assert os.path.basename(checkpoint) == 'ckpt-2'
    return lambda timestep, q, action: seen.append((timestep, q.copy(), action))

  result = _evaluate(saved, _cues, make_watcher=make_watcher)
  assert len(seen) == result.episodes[0].length == 5
  network = _make_network(_cues)
  for variable, value in zip(network.variables, saved.networks[1], strict=True):
    variable.assign(value)
  state, action_tm1 = network.initial_state(1), 0
  for timestep, q, action in seen:
    observation = Observation(
      observation=tf.constant(timestep.observation[np.newaxis]),
      action=tf.constant([action_tm1]),
      reward=tf.constant([timestep.reward or 0.0], tf.float32),
    )
    expected, state = network(observation, state)
    np.testing.assert_allclose(
      q, expected[0], atol=1e-5
    )  # float32, in another batch size
    assert action == np.argmax(q)
    action_tm1 = action
  assert len({tuple(q) for _, q, _ in seen}) == 5


def test_seed_decides_the_episodes(saved, _cues):
  first, again, other = (_evaluate(saved, _cues, seed=seed) for seed in (3, 3, 4))
  assert first.episodes == again.episodes
  assert first.episodes != other.episodes
  # Episodes of one evaluation differ, because each environment has its own seed.
  assert set(first.returns) == {-1.0, 1.0}


def test_epsilon_is_the_configs(saved, _cues):
  actions = []

  def make_watcher(environment, checkpoint):
    return lambda timestep, q, action: actions.append(action == np.argmax(q))

  random = dataclasses.replace(_CONFIG, evaluator_epsilon=1.0)
  for seed in range(5):
    _evaluate(saved, _cues, seed, random, make_watcher=make_watcher)
  assert not all(actions)


# Video.

_Q = np.array([-1.0, 1.0, 0.0], np.float32)


def _bar_lengths(frame: np.ndarray, num_actions: int) -> list[int]:
  """Returns the lengths of the panel's bars in pixels."""
  rows = [(i + 1) * video._ROW_HEIGHT + 10 for i in range(num_actions)]
  bars = frame[rows, -video._PANEL_WIDTH + 8 + video._NAME_WIDTH :]
  return [int(np.any(bar != 0, axis=-1).sum()) for bar in bars]


def test_frame_shows_the_screen_and_a_bar_for_each_action():
  screen = np.random.default_rng(0).integers(256, size=(210, 160, 3), dtype=np.uint8)
  frame = video.compose(screen, _Q, 2, ['NOOP', 'FIRE', 'UP'], 3.0)
  np.testing.assert_array_equal(frame[:420:2, :320:2], screen)
  smallest, largest, half = _bar_lengths(frame, 3)
  assert smallest == 1
  assert (half - 1) == pytest.approx((largest - 1) / 2, abs=1)
  bar = (3 * video._ROW_HEIGHT + 10, 320 + 8 + video._NAME_WIDTH)
  assert tuple(frame[bar]) == video._GREEN
  other = video.compose(screen, _Q, 1, ['NOOP', 'FIRE', 'UP'], 3.0)
  assert tuple(other[bar]) == video._GREY


def test_all_actions_fit_beside_a_small_screen():
  screen = np.full((5, 300, 3), 9, np.uint8)
  q = np.arange(18, dtype=np.float32)
  frame = video.compose(screen, q, 0, [str(i) for i in range(18)], 0.0)
  lengths = _bar_lengths(frame, 18)
  assert lengths == sorted(lengths)
  assert len(set(lengths)) == 18
  assert not frame.shape[0] % 2
  assert not frame.shape[1] % 2


def test_atari_shows_the_colours_of_the_emulator():
  environment = make_atari('pong', seed=0)
  timestep = environment.reset()
  show = video.screen_of(environment)
  screen = show(timestep)
  assert screen.shape == (210, 160, 3)
  assert np.ptp(screen.astype(int), axis=-1).max() > 50  # not grey
  for _ in range(60):
    timestep = environment.step(0)
  assert not np.array_equal(show(timestep), screen)
  assert video.action_names(environment)[:3] == ['NOOP', 'FIRE', 'UP']
  assert video.frames_per_second(environment) == 15


@pytest.mark.parametrize(
  ('make', 'shape'),
  [
    (lambda: make_cue_recall(), (30, 180, 3)),
    (lambda: helpers.ScriptedEnvironment([helpers.Episode(1, True)]), (36, 36, 3)),
  ],
)
def test_elsewhere_the_observation_is_shown(make, shape):
  environment = make()
  timestep = environment.reset()
  screen = video.screen_of(environment)(timestep)
  assert screen.shape == shape
  assert screen.dtype == np.uint8
  if shape == (36, 36, 3):
    np.testing.assert_array_equal(screen[..., :1], timestep.observation)
  else:  # the cue and its flag are 1
    fields = screen[15, 15::30, 0]
    np.testing.assert_array_equal(fields, 255 * timestep.observation)


class _Still(dm_env.Environment):
  """An environment whose observation is always the same image."""

  def __init__(self, spec, image):
    self._spec, self._image = spec, image

  def reset(self):
    return dm_env.restart(self._image)

  def step(self, action):
    return dm_env.transition(0.0, self._image)

  def observation_spec(self):
    return self._spec

  def action_spec(self):
    return specs.DiscreteArray(2)


@pytest.mark.parametrize(
  ('dtype', 'bounds', 'values', 'expected'),
  [
    ('uint8', (0, 255), [0, 100, 255], [0, 100, 255]),
    ('uint8', None, [0, 100, 255], [0, 100, 255]),
    ('uint8', (0, 1), [0, 1, 1], [0, 255, 255]),
    ('uint8', (0, 10), [0, 5, 10], [0, 128, 255]),
    ('bool', None, [0, 1, 1], [0, 255, 255]),
    ('int32', (0, 255), [0, 100, 255], [0, 100, 255]),
    ('float32', (0, 255), [0, 100, 255], [0, 100, 255]),
    ('float32', (0, 1), [0, 0.5, 1], [0, 128, 255]),
    ('float32', (-1, 1), [-1, 0, 1], [0, 128, 255]),
    ('float64', None, [0, 0.5, 1], [0, 128, 255]),
    # Without bounds, the values themselves are the bounds.
    ('float32', (-np.inf, np.inf), [-1, 0, 1], [0, 128, 255]),
    ('float32', None, [0, 50, 100], [0, 128, 255]),
  ],
)
def test_images_are_shown_by_their_bounds(dtype, bounds, values, expected):
  shape = (36, 36, 1)
  image = np.resize(np.array(values, dtype), shape)
  spec = specs.Array(shape, dtype)
  if bounds is not None:
    spec = specs.BoundedArray(shape, dtype, *bounds)
  environment = _Still(spec, image)
  screen = video.screen_of(environment)(environment.reset())
  assert screen.dtype == np.uint8
  assert screen[0, :3, 0].tolist() == expected


# The program.

_RUN_ALL = """
import json, os, runpy, sys
from r2d2_acme.results import evaluation, video
from r2d2_acme import experiment

for argv in json.loads(sys.argv[1]):
  pid = os.fork()
  if pid:
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    continue
  code = 1
  try:
    for number in (1, 2):
      path = os.path.join(argv[1], str(number))
      os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    sys.argv = [argv[0], *argv[2:]]
    sys.path.insert(0, os.path.dirname(argv[0]))
    runpy.run_path(argv[0], run_name='__main__')
  except SystemExit as error:
    code = error.code
  except BaseException as error:
    print('not caught:', repr(error), file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
"""

_STARTS = {
  'video': ['--workdir={run}', '--episodes=3', '--seed=5', '--video'],
  'animation': ['--workdir={run}', '--episodes=1', '--animation={empty}/a.gif'],
  'older': ['--workdir={run}', '--episodes=1', '--checkpoint=ckpt-1'],
  'epsilon': ['--workdir={run}', '--episodes=3', '--epsilon=0.9', '--seed=5'],
  'cut': ['--workdir={short}', '--episodes=2'],
  'shorter': ['--workdir={run}', '--episodes=1', '--max_steps=2'],
  'no seed': ['--workdir={run}', '--seed=-1'],
  'no name': ['--workdir={run}', '--checkpoint='],
  'no path': ['--workdir='],
  'no steps': ['--workdir={run}', '--max_steps=0'],
  'no workdir': [],
  'no run': ['--workdir={empty}'],
  'no checkpoint': ['--workdir={run}', '--checkpoint=ckpt-9'],
  'none': ['--workdir={run}', '--episodes=0'],
  'another game': ['--workdir={run}', '--game=pong'],
  'another config': ['--workdir={run}', '--config.n_step=1'],
  'negative': ['--workdir={run}', '--epsilon=-0.1'],
  'above one': ['--workdir={run}', '--epsilon=1.1'],
  'no number': ['--workdir={run}', '--epsilon=nan'],
  'no epsilon': ['--workdir={run}', '--epsilon=much'],
  'no folder': ['--workdir={run}', '--episodes=1', '--animation={empty}/x/a.gif'],
}
_REFUSALS = {
  'no seed': '--seed=-1: bad configuration: seed must not be negative',
  'no name': 'no checkpoint',
  'no path': 'give --workdir=',
  'no steps': 'max_steps',
  'no workdir': 'give --workdir=',
  'no run': 'is not the workdir of a run',
  'no checkpoint': 'no checkpoint ckpt-9 in',
  'none': 'episodes',
  'another game': '--game cannot be changed here',
  'another config': '--config.n_step cannot be changed here',
  'negative': '--epsilon=-0.1',
  'above one': '--epsilon=1.1',
  'no number': '--epsilon=nan',
  'no epsilon': '--epsilon=much',
  'no folder': 'No such file or directory',
}


class _Ended(NamedTuple):
  code: int
  out: str
  err: str


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with workdirs of CartPole runs, as programs leave them."""
  folder = tmp_path_factory.mktemp('evaluate')
  (folder / 'empty').mkdir()
  spec = acme.make_environment_spec(make_gymnasium('CartPole-v1'))
  _save(folder / 'run', _CONFIG, spec, number=2)
  shutil.copytree(folder / 'run', folder / 'short')
  for name, config in {
    'run': _CONFIG,
    'short': dataclasses.replace(_CONFIG, max_evaluation_steps=3),
  }.items():
    stored = {
      'environment': {'env': 'CartPole-v1'},
      'config': dataclasses.asdict(config),
    }
    (folder / name / 'config.json').write_text(json.dumps(stored))
  return folder


@pytest.fixture(scope='module')
def ended(folder) -> dict[str, _Ended]:
  """The code and the output of each of `_STARTS`."""
  before = _contents(folder / 'run')
  paths = {name: folder / 'empty' / name for name in _STARTS}
  arguments = []
  for name, flags in _STARTS.items():
    paths[name].mkdir()
    folders = {name: folder / name for name in ('run', 'short', 'empty')}
    flags = [flag.format(**folders) for flag in flags]
    arguments.append([str(_EVALUATE), str(paths[name]), *flags])
  codes = subprocess.run(
    [sys.executable, '-c', _RUN_ALL, json.dumps(arguments)],
    stdout=subprocess.PIPE,
    env=_ENVIRON,
    text=True,
    check=True,
  ).stdout.split()
  after = _contents(folder / 'run')
  assert {path: after[path] for path in before} == before
  return {
    name: _Ended(int(code), *((path / number).read_text() for number in '12'))
    for code, (name, path) in zip(codes, paths.items(), strict=True)
  }


def test_table_says_what_the_episodes_came_to(ended):
  code, out, err = ended['video']
  assert (code, err) == (0, '')
  lines = [line.split() for line in out.splitlines() if line.startswith('episode')]
  assert sorted(line[1] for line in lines) == ['0:', '1:', '2:']
  returns = [float(line[3]) for line in lines]
  assert returns == [float(line[5]) for line in lines]  # each step earns 1
  numbers = [line for line in out.splitlines() if line.startswith('│')]
  assert [float(x) for x in numbers[-1].strip('│').split('│')] == pytest.approx(
    [
      3,
      statistics.mean(returns),
      statistics.median(returns),
      min(returns),
      max(returns),
    ],
    abs=0.006,
  )
  assert 'CartPole-v1: ckpt-2, after 800 frames' in out
  assert 'human' not in out


def test_episodes_that_were_cut_off_are_marked_and_counted(ended):
  code, out, err = ended['cut']
  assert (code, err) == (0, '')
  lines = [line for line in out.splitlines() if line.startswith('episode')]
  assert sorted(lines) == [
    f'episode {i}: return 3 in 3 steps, cut off: it had not ended' for i in (0, 1)
  ]
  header = next(line for line in out.splitlines() if 'episodes' in line)
  assert header.split()[-3:-1] == ['cut', 'off']
  row = [line for line in out.splitlines() if line.startswith('│')][-1]
  assert float(row.strip('│').split('│')[-1]) == 2
  assert 'cut off' not in ended['video'].out


def test_steps_can_be_limited(ended):
  assert 'episode 0: return 2 in 2 steps, cut off' in ended['shorter'].out


def test_named_checkpoint_is_played(ended):
  assert 'CartPole-v1: ckpt-1, after 400 frames' in ended['older'].out


def test_epsilon_can_be_given(ended):
  code, out, err = ended['epsilon']
  assert (code, err) == (0, '')
  assert 'epsilon=0.9' in out
  assert 'epsilon=0' in ended['video'].out  # the config's
  # Same seed, but random actions.
  greedy, random = (
    sorted(line for line in text.splitlines() if line.startswith('episode'))
    for text in (ended['video'].out, out)
  )
  assert greedy != random


def test_video_has_a_frame_for_each_step_of_the_first_episode(ended, folder):
  (first,) = [line for line in ended['video'].out.splitlines() if 'episode 0:' in line]
  path = folder / 'run' / 'videos' / 'ckpt-2_seed_5.mp4'
  assert f'video: {path}' in ended['video'].out
  capture = cv2.VideoCapture(str(path))
  frames = []
  while (frame := capture.read()[1]) is not None:
    frames.append(frame)
  assert len(frames) == int(first.split()[5])
  # The first and the last frame differ: it is not one picture again and again.
  assert np.abs(frames[0].astype(int) - frames[-1]).max() > 50
  assert os.listdir(folder / 'run' / 'videos') == [path.name]


def test_animation_has_a_frame_for_each_step_of_a_short_episode(ended, folder):
  code, out, err = ended['animation']
  assert (code, err) == (0, '')
  path = folder / 'empty' / 'a.gif'
  assert f'animation: {path}' in out
  (line,) = [line for line in out.splitlines() if line.startswith('episode 0:')]
  with Image.open(path) as image:
    assert image.format == 'GIF'
    assert image.n_frames == int(line.split()[5])


@pytest.mark.parametrize('name', sorted(_REFUSALS))
def test_refusal_is_one_line_and_code_2(ended, name):
  code, out, err = ended[name]
  assert (code, out) == (2, '')
  assert err.startswith('error: ')
  assert err.count('\n') == 1
  assert _REFUSALS[name] in err
