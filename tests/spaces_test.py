"""Real environments of every kind of space, a few dozen learner steps each."""

import collections

import gymnasium
import numpy as np
import pytest
from acme.utils import loggers
from gymnasium import spaces

from r2d2_acme.agent import run_experiment
from r2d2_acme.environments import NamedFactory
from r2d2_acme.experiment import Experiment
from tests import helpers

_CONFIG = helpers.make_config(
  envs_per_actor=4,
  batch_size=8,
  samples_per_insert=2.0,
  frame_stack=2,
  epsilon_base=0.5,
  evaluation_period=0.5,
  max_evaluation_steps=20,
)
_NUM_LEARNER_STEPS = 24


class _Grid(gymnasium.Env):
  """What MiniGrid returns, and actions of two parts: look for the symbol 7."""

  observation_space = spaces.Dict(
    image=spaces.Box(0, 255, (7, 7, 3), 'uint8'),
    direction=spaces.Discrete(4),
    mission=spaces.Text(20),
  )
  action_space = spaces.MultiDiscrete([7, 7])

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    self._time = 0
    return self._observe(), {}

  def step(self, action):
    assert self.action_space.contains(action)
    is_found = self._image[(*action, 0)] == 7
    self._time += 1
    return self._observe(), float(is_found), bool(is_found), self._time == 12, {}

  def _observe(self):
    self._image = self.np_random.integers(0, 7, (7, 7, 3), dtype=np.uint8)
    self._image[(*self.np_random.integers(0, 7, 2), 0)] = 7
    return {'image': self._image, 'direction': 3, 'mission': 'find the seven'}


def make_grid(seed):
  return _Grid()


class _OnlyValid(gymnasium.Wrapper):
  """Refuses actions that Taxi's mask forbids."""

  def step(self, action):
    assert self.unwrapped.action_mask(self.unwrapped.s)[action], 'not a valid action'
    return super().step(action)


def make_taxi(seed):
  return _OnlyValid(gymnasium.make(_newest('Taxi')))


def _newest(name):
  return max(id for id in gymnasium.registry if id.startswith(f'{name}-v'))


@pytest.mark.parametrize(
  'factory',
  [
    make_taxi,
    make_grid,
    NamedFactory('env', 'FrozenLake-v1'),
    NamedFactory('env', 'Blackjack-v1'),
    NamedFactory('env', _newest('CliffWalking')),
  ],
  ids=['Taxi', 'MiniGrid-like', 'FrozenLake', 'Blackjack', 'CliffWalking'],
)
def test_environment_trains_and_is_evaluated(factory, capfd):
  rows = collections.defaultdict(list)

  def make_logger(workdir, role, index):
    logger = loggers.InMemoryLogger()
    rows[role] = logger.data
    return logger

  agents = []
  run_experiment(
    Experiment(
      _CONFIG,
      factory,
      logger_factory=make_logger,
      max_learner_steps=_NUM_LEARNER_STEPS,
    ),
    observe=lambda agent, steps: agents.append(agent),
  )
  for row in rows['actor']:
    assert row['environment_failures'] == 0
  assert rows['evaluator']
  learner = agents[-1].learner
  assert learner.num_steps >= _NUM_LEARNER_STEPS
  for name in ('loss', 'max_q', 'gradient_norm'):
    assert abs(learner.last_metrics[name]) < 1e3
  is_told = 'are texts, which the agent does not see' in capfd.readouterr().out
  assert is_told == (factory is make_grid)
