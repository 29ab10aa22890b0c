"""The single-process agent, on the real parts: it learns what needs memory."""

import dataclasses
import json
import os
import pathlib
import time
from typing import NamedTuple

import acme
import dm_env
import numpy as np
import pytest
import tensorflow as tf
from acme.utils import counting, loggers
from dm_env import specs

from r2d2_acme.acting.loop import VectorEnvironmentLoop
from r2d2_acme.agent import R2D2, run_experiment
from r2d2_acme.builder import (
  R2D2Builder,
  environment_seed,
  evaluator_seed,
)
from r2d2_acme.config import R2D2Config
from r2d2_acme.environments import checked, make_cue_recall
from r2d2_acme.environments.memory import CueRecall
from r2d2_acme.experiment import Experiment
from r2d2_acme.seeds import derive_seed
from r2d2_acme.workdir import checkpointing, sittings
from r2d2_acme.workdir.loggers import WallTimeCounter, make_logger
from tests import helpers

_CONFIG = R2D2Config(
  burn_in_length=4,
  trace_length=12,
  sequence_period=12,
  n_step=3,
  discount=0.99,
  batch_size=32,
  learning_rate=1e-3,
  target_update_period=50,
  max_replay_size=2000,
  min_replay_size=100,
  samples_per_insert=8.0,
  num_actors=1,
  envs_per_actor=8,
  variable_update_period=10,
  epsilon_alpha=3.0,
  torso_size=32,
  core_size=32,
  head_size=32,
)
_NUM_EVALUATIONS = 100  # episodes: the mean of +-1 has a deviation of at most 0.1


class _Returns(loggers.Logger):
  def __init__(self):
    self.returns = []

  def write(self, data):
    self.returns.append(data['episode_return'])

  def close(self):
    pass


class _Trial:
  """The agent on cue recall, and the evaluator's view of it."""

  def __init__(self, seed: int, recurrent: bool = True):
    config = dataclasses.replace(_CONFIG, recurrent=recurrent)

    def make_environment(i):
      return make_cue_recall(delay=6, num_cues=4, seed=100 * seed + i)

    self.environment = make_environment(0)
    spec = acme.make_environment_spec(self.environment)
    self.agent = R2D2(spec, config)
    self._loop = VectorEnvironmentLoop(
      [make_environment(i) for i in range(_CONFIG.envs_per_actor)],
      self.agent,
      counting.Counter(),
      _Returns(),
    )
    self._evaluator = R2D2Builder(config, spec).make_evaluator()
    self._log = _Returns()
    self._evaluation_loop = VectorEnvironmentLoop(
      [make_environment(50)], self._evaluator, counting.Counter(), self._log
    )

  def train(self, num_steps: int):
    self._loop.run(num_steps=num_steps)

  def evaluate(self) -> float:
    self._evaluator.fetch(self.agent)
    self._log.returns.clear()
    self._evaluation_loop.run(num_episodes=_NUM_EVALUATIONS)
    return float(np.mean(self._log.returns))


def test_solves_cue_recall():
  trial = _Trial(seed=1)
  for _ in range(30):
    trial.train(num_steps=1000)
    mean_return = trial.evaluate()
    if mean_return >= 0.9 * trial.environment.max_return:
      return
  pytest.fail(f'mean return {mean_return} after 30,000 steps')


def test_without_its_recurrent_state_it_stays_near_chance():
  trial = _Trial(seed=1, recurrent=False)
  trial.train(num_steps=20_000)
  assert trial.agent.learner.num_steps > 300  # it did learn what there is
  # It sees its previous action, which can carry a little of the cue.
  chance, best = trial.environment.chance_return, trial.environment.max_return
  assert trial.evaluate() <= (chance + best) / 2


def test_learner_steps_follow_the_windows_written():
  trial = _Trial(seed=2)
  trial.train(num_steps=3000)
  # Episodes of 8 steps are one window each.
  num_windows = trial.agent.num_windows
  assert num_windows == pytest.approx(3000 / 8, rel=0.05)
  new = num_windows - _CONFIG.min_replay_size
  assert trial.agent.learner.num_steps == int(new * 8.0 / 32)


def test_acts_in_acmes_environment_loop():
  environment = make_cue_recall(delay=2)
  config = R2D2Config(
    **{
      **_CONFIG.__dict__,
      'envs_per_actor': 1,
      'min_replay_size': 10,
      'samples_per_insert_tolerance': 0.5,
    }
  )
  agent = R2D2(acme.make_environment_spec(environment), config)
  before = agent.get_variables(['policy'])[0]
  loop = acme.EnvironmentLoop(environment, agent, logger=_Returns())
  loop.run(num_episodes=30)
  after = agent.get_variables(['policy'])[0]
  assert agent.learner.num_steps == int((30 - 10) * 8.0 / 32)
  assert any(np.any(b != a) for b, a in zip(before, after, strict=True))


def test_acmes_loop_with_several_environments_is_refused():
  environment = make_cue_recall()
  agent = R2D2(acme.make_environment_spec(environment), _CONFIG)
  with pytest.raises(ValueError, match='set envs_per_actor=1, not 8'):
    acme.EnvironmentLoop(environment, agent, logger=_Returns()).run(num_episodes=1)


def test_more_than_one_actor_or_shard_is_refused():
  environment = make_cue_recall()
  with pytest.raises(ValueError, match='num_actors=1'):
    R2D2(acme.make_environment_spec(environment), R2D2Config(num_actors=2))
  config = R2D2Config(num_actors=1, envs_per_actor=2, num_replay_shards=2)
  with pytest.raises(ValueError, match='num_replay_shards=1'):
    R2D2(acme.make_environment_spec(environment), config)


class _Noise(dm_env.Environment):
  """Observes zeros and ones of any dtype, in episodes of 7 steps."""

  def __init__(self, shape, dtype):
    self._spec = specs.BoundedArray(shape, dtype, 0, 1)
    self._rng = np.random.default_rng(0)
    self._time = 0

  def reset(self):
    self._time = 0
    return dm_env.restart(self._observe())

  def step(self, action):
    self._time += 1
    end = dm_env.termination if self._time == 7 else dm_env.transition
    return end(1, self._observe())

  def observation_spec(self):
    return self._spec

  def action_spec(self):
    return specs.DiscreteArray(2, np.int32)

  def _observe(self):
    return self._rng.integers(0, 2, self._spec.shape).astype(self._spec.dtype)


@pytest.mark.parametrize(
  ('shape', 'dtype'),
  [((36, 36, 1), bool), ((36, 36, 1), np.float16), ((5,), np.uint64)],
)
def test_learns_from_numbers_of_any_dtype(shape, dtype):
  environment = checked(_Noise(shape, dtype))
  config = helpers.make_config(
    batch_size=4, samples_per_insert=0.4, samples_per_insert_tolerance=2.0
  )
  log = loggers.InMemoryLogger()
  agent = R2D2(acme.make_environment_spec(environment), config, logger=log)
  VectorEnvironmentLoop(
    [environment], agent, counting.Counter(), loggers.NoOpLogger()
  ).run(num_steps=120)
  agent.learner.step()
  assert np.isfinite(log.data[-1]['loss'])


# Sittings.


def _make_environment(i: int, sitting: int):
  seed = environment_seed(_CONFIG, i, sitting)
  return make_cue_recall(delay=6, num_cues=4, seed=seed)


_SPEC = acme.make_environment_spec(make_cue_recall(delay=6, num_cues=4))


class _Tape(loggers.Logger):
  """What an actor's loop did: each episode's return at its step."""

  def __init__(self):
    self.episodes = []

  def write(self, data):
    self.episodes.append((data['actor_steps'], data['epsilon'], data['episode_return']))

  def close(self):
    pass


class _Sat(NamedTuple):
  """What there was of a sitting.

  Attributes:
    workdir: where it was.
    number: as the agent has it.
    before, after: the counts at its start and its end.
    episodes: see `_Tape`.
  """

  workdir: pathlib.Path
  number: int
  before: dict[str, float]
  after: dict[str, float]
  episodes: list


def _sit(workdir, counter=None) -> _Sat:
  """Too few steps to learn: what happens is a matter of the seeds only."""
  agent = R2D2(_SPEC, _CONFIG, workdir=str(workdir), counter=counter)
  tape = _Tape()
  before = dict(agent.counter.get_counts())
  VectorEnvironmentLoop(
    [_make_environment(i, agent.sitting) for i in range(_CONFIG.envs_per_actor)],
    agent,
    counting.Counter(agent.counter, 'actor', time_delta=0.0),
    tape,
  ).run(num_steps=400)
  after = agent.counter.get_counts()
  agent.save()
  return _Sat(workdir, agent.sitting, before, after, tape.episodes)


@pytest.fixture(scope='module')
def sat(tmp_path_factory) -> list[_Sat]:
  """Two sittings in one workdir, and one in another."""
  one, other = (tmp_path_factory.mktemp(name) for name in ('one', 'other'))
  return [_sit(one), _sit(one), _sit(other)]


def test_counts_go_on_at_a_resume(sat):
  first, second, _ = sat
  assert first.before.keys() == {'wall_time'}
  assert first.after['actor_steps'] == second.before['actor_steps'] == 400
  assert second.before['wall_time'] >= first.after['wall_time'] > 0
  assert second.after['actor_steps'] == 800
  assert second.after['actor_frames'] == 800
  assert [steps for steps, *_ in second.episodes] == sorted(
    steps for steps, *_ in second.episodes
  )
  assert second.episodes[0][0] > 400


def test_each_sitting_explores_and_resets_in_its_own_way(sat):
  first, second, _ = sat
  assert (first.number, second.number) == (0, 1)
  returns = [
    [episode[2] for episode in sitting.episodes] for sitting in (first, second)
  ]
  assert returns[0] != returns[1]


def test_sitting_is_reproducible(sat):
  first, _, other = sat
  assert other.number == 0
  assert first.episodes == other.episodes
  assert len(first.episodes) > 40


def test_seeds_of_different_sittings_are_different_everywhere():
  """Those of environments and, by what it does, of each actor's policy."""
  seeds = [
    seed
    for sitting in range(20)
    for seed in (
      evaluator_seed(_CONFIG, sitting),
      *(environment_seed(_CONFIG, i, sitting) for i in range(50)),
    )
  ]
  assert len(set(seeds)) == len(seeds)
  config = dataclasses.replace(_CONFIG, epsilon_base=1.0, evaluator_epsilon=1.0)

  def actions(sitting: int, name: str) -> list:
    builder = R2D2Builder(config, _SPEC, sitting)
    actor = getattr(builder, name)()
    timesteps = [make_cue_recall().reset() for _ in actor.epsilons]
    timesteps = [
      timestep._replace(observation=np.zeros(_SPEC.observations.shape, np.float32))
      for timestep in timesteps
    ]
    before = np.zeros(len(timesteps), np.int32)
    return [actor.select_actions(before, timesteps).tolist() for _ in range(50)]

  for name in ('make_actor', 'make_evaluator'):
    assert actions(0, name) == actions(0, name)
    assert actions(0, name) != actions(1, name)


def test_network_is_the_same_in_each_sitting():
  first, second = (R2D2Builder(_CONFIG, _SPEC, i).make_network() for i in (0, 1))
  for a, b in zip(first.variables, second.variables, strict=True):
    np.testing.assert_array_equal(a, b)


def test_making_a_network_leaves_tensorflows_random_numbers_alone():
  draws = []
  for _ in range(2):
    R2D2Builder(_CONFIG, _SPEC).make_network()
    draws.append(tf.random.uniform([4]).numpy().tolist())
  assert draws[0] != draws[1]


@pytest.mark.parametrize(
  'make',
  [
    lambda counts: counting.Counter(),
    lambda counts: WallTimeCounter(),
    lambda counts: WallTimeCounter(counts),
  ],
  ids=['new', 'new with wall time', 'one that goes on already'],
)
def test_counter_of_the_caller_goes_on_from_the_checkpoint_once(sat, make):
  counts = checkpointing.verify(str(sat[2].workdir))
  counter = make(counts)
  keeps_time = 'wall_time' in counter.get_counts()
  resumed = _sit(sat[2].workdir, counter=counter)
  assert resumed.before['actor_steps'] == counts['actor_steps'] > 0
  assert resumed.after['actor_steps'] == counts['actor_steps'] + 400
  assert ('wall_time' in resumed.before) == keeps_time
  if keeps_time:
    assert resumed.before['wall_time'] == pytest.approx(counts['wall_time'], abs=30)
  # Whoever counts the time, it goes on.
  after = checkpointing.verify(str(sat[2].workdir))
  assert after['wall_time'] > counts['wall_time']


def test_list_has_the_counts_of_each_start(sat):
  first, second = sittings.read(str(sat[0].workdir))
  assert set(first.counts.values()) == {0}
  for name in ('actor_steps', 'actor_frames', 'wall_time'):
    assert sat[1].before[name] == pytest.approx(second.counts[name], abs=30)
    assert second.counts[name] > 0


def test_without_a_workdir_nothing_is_written(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path))
  assert R2D2(_SPEC, _CONFIG).sitting == 0
  assert not os.listdir(tmp_path)


def test_acmes_loop_goes_on_counting_and_logs_where_it_started(tmp_path):
  """The example in docs/using.md."""
  config = dataclasses.replace(
    _CONFIG, envs_per_actor=1, min_replay_size=10, samples_per_insert_tolerance=0.5
  )
  for sitting in range(2):
    agent = R2D2(_SPEC, config, workdir=str(tmp_path))
    assert agent.sitting == sitting
    loop = acme.EnvironmentLoop(
      make_cue_recall(delay=6, num_cues=4, seed=derive_seed(0, agent.sitting)),
      agent,
      counter=counting.Counter(agent.counter, 'actor', time_delta=0.0),
      logger=make_logger(str(tmp_path), 'actor', sitting=agent.sitting),
    )
    loop.run(num_episodes=20 if sitting == 0 else 5)
    agent.save()
  rows = sittings.read_rows(str(tmp_path), 'actor', ['sitting', 'actor_steps'])
  assert rows.tolist() == [[i // 20, 8 * (i + 1)] for i in range(25)]
  learned = sittings.read_rows(str(tmp_path), 'learner', ['learner_steps', 'sitting'])
  assert learned[0].tolist() == [1, 0]
  # 10 new windows, 8 times, in batches of 32; then 5 beside those that were restored.
  assert agent.learner.num_steps == 2 + 1
  assert pathlib.Path(tmp_path, 'tb', 'learner').is_dir()


def test_evaluators_returns_decide_about_the_best_checkpoint(tmp_path):
  spec = acme.make_environment_spec(make_cue_recall())
  config = dataclasses.replace(_CONFIG, num_best_episodes=2)
  agent = R2D2(spec, config, workdir=str(tmp_path))
  for value in (1.0, 0.0):
    agent.observe_return(value)
  agent.save()
  folder = checkpointing.directory(str(tmp_path))
  with open(f'{folder}/best.json') as file:
    best = json.load(file)
  assert (best['checkpoint'], best['mean_return']) == ('ckpt-1', 0.5)
  R2D2(spec, config).observe_return(1.0)  # without a workdir there is no best


def _run(workdir, make_environment, max_steps, *, config=_CONFIG, **keywords):
  """Trains on an environment in a workdir."""
  experiment = Experiment(
    config,
    make_environment,
    workdir=str(workdir),
    evaluator=False,
    max_actor_steps=max_steps,
  )
  run_experiment(experiment, **keywords)


def test_run_ends_soon_after_its_last_step(tmp_path):
  """A replay server waits for seconds for those who may still write to it."""
  last_seen = [0.0]

  def observe(unused_agent, unused_steps):
    last_seen.append(time.monotonic())

  config = dataclasses.replace(_CONFIG, min_replay_size=10)
  make_environment = lambda seed: make_cue_recall(seed=seed)  # noqa: E731
  _run(tmp_path, make_environment, 500, config=config, observe=observe)
  assert time.monotonic() - last_seen[-1] < 3.0


def test_stop_while_an_environment_is_made_again_is_no_failure(tmp_path):
  is_broken, failures = [], []

  class Breaking(CueRecall):
    def reset(self):
      if is_broken:
        failures.append(1)
        raise RuntimeError('no simulator')
      return super().reset()

  _run(
    tmp_path,
    lambda seed: Breaking(seed=seed),
    10_000,
    config=dataclasses.replace(_CONFIG, max_environment_failures=1000),
    should_stop=lambda: len(failures) > 2,
    observe=lambda unused_agent, steps: is_broken.extend([1] * (steps > 50)),
  )
  assert checkpointing.verify(str(tmp_path))['actor_steps'] > 50
