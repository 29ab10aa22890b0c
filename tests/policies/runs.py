"""Workdirs as programs leave them, with networks that no training has made."""

import copy
import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import acme
import gymnasium
import numpy as np

from r2d2_acme import environments, experiment
from r2d2_acme.builder import R2D2Builder
from r2d2_acme.results import evaluation
from r2d2_acme.workdir import saving
from tests import helpers

# With so many random actions, an episode shows whether they are the same ones.
CONFIG = helpers.make_config(evaluator_epsilon=0.1, seed=3)


class Screen(gymnasium.Env):
  """Images of int64 that depend on all actions, which are numbered from 5."""

  observation_space = gymnasium.spaces.Box(0, 200, (36, 40, 3), np.int64)
  action_space = gymnasium.spaces.Discrete(3, start=5)

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    self._steps = 0
    self._picture = self.np_random.integers(201, size=(36, 40, 3))
    return self._picture, {}

  def step(self, action):
    assert self.action_space.contains(action)
    self._steps += 1
    self._picture = np.roll(self._picture, int(action), axis=0) // 2
    self._picture[self._steps] = 20 * action
    return self._picture, float(action - 6), self._steps == 30, False, {}


def make_screen(seed: int) -> Screen:
  return Screen()


# Kind and name, as in config.json.
GAME = ('game', 'pong')
VECTOR = ('env', 'CartPole-v1')
IMAGE = ('environment', 'tests.policies.runs:make_screen')
DM_ENV = ('env', 'memory/cue_recall/60')
NEST = ('environment', 'tests.spaces_test:make_grid')
MASKED = ('environment', 'tests.spaces_test:make_taxi')


def save(
  workdir: pathlib.Path, environment: tuple[str, str], *, number: int = 1
) -> pathlib.Path:
  """Saves checkpoints ckpt-1, ckpt-2 … of different networks."""
  factory = environments.NamedFactory(*environment, CONFIG.atari)
  with environments.opened(factory, [0]) as (made,):
    spec = acme.make_environment_spec(made)
  learner = R2D2Builder(CONFIG, spec).make_learner(iter(()))
  checkpointer = saving.Checkpointer(str(workdir), learner, {}, CONFIG)
  rng = np.random.default_rng(1)
  for i in range(number):
    for variable in learner.state['network'].variables:
      variable.assign(rng.normal(size=variable.shape, scale=0.3))
    with learner.locked:
      learner.state['num_steps'].assign_add(1)
    checkpointer.observe_return(i)
    checkpointer.save({'actor_frames': 400 * (i + 1)}, force=True)
  stored = {
    'environment': dict([environment]),
    'config': dataclasses.asdict(CONFIG),
  }
  (workdir / 'config.json').write_text(json.dumps(stored))
  return workdir


class Played(NamedTuple):
  """An episode of T steps.

  Attributes:
    observations: [T, ...], before each action.
    rewards: float32 [T], that came with these; 0 at the first.
    q: float32 [T, A].
    actions: [T].
    total: the return.
  """

  observations: np.ndarray
  rewards: np.ndarray
  q: np.ndarray
  actions: np.ndarray
  total: float

  @classmethod
  def of(cls, steps: Sequence[tuple], total: float) -> 'Played':
    """Returns the episode of steps (observation, reward, Q-values, action)."""
    return cls(*map(np.array, zip(*steps, strict=True)), total)


def evaluate(workdir: pathlib.Path, epsilon: float) -> Played:
  """Plays the episode of `launch/evaluate.py --episodes=1 --epsilon=...`."""
  run = experiment.from_workdir(str(workdir))
  steps = []
  result = evaluation.evaluate(
    dataclasses.replace(run.config, evaluator_epsilon=epsilon),
    run.environment_factory,
    run.environment_spec,
    run.workdir,
    num_episodes=1,
    seed=run.config.seed,
    make_watcher=lambda *_: (
      lambda timestep, q, action: steps.append(
        (copy.deepcopy(timestep.observation), timestep.reward or 0.0, q.copy(), action)
      )
    ),
  )
  return Played.of(steps, result.episodes[0].total)
