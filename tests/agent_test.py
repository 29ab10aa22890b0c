"""The single-process agent, on the real parts: it learns what needs memory."""

import dataclasses

import acme
import dm_env
import numpy as np
import pytest
from acme.utils import counting, loggers
from dm_env import specs

from r2d2_acme.actor import VectorEnvironmentLoop
from r2d2_acme.agent import R2D2
from r2d2_acme.builder import R2D2Builder
from r2d2_acme.config import R2D2Config
from r2d2_acme.environments import checked, make_cue_recall
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
  variable_update_period=1,
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


def test_without_its_recurrent_state_it_stays_at_chance():
  trial = _Trial(seed=1, recurrent=False)
  trial.train(num_steps=20_000)
  assert trial.agent.learner.num_steps > 300  # it did learn what there is
  assert trial.evaluate() <= trial.environment.chance_return + 0.3


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


def test_more_than_one_actor_is_refused():
  environment = make_cue_recall()
  with pytest.raises(ValueError, match='num_actors=1'):
    R2D2(acme.make_environment_spec(environment), R2D2Config(num_actors=2))


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
