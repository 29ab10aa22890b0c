"""Episodes with the network of a checkpoint, and what they come to."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import dm_env
import numpy as np
from acme import specs

from r2d2_acme import builder as builder_lib
from r2d2_acme import checkpointing
from r2d2_acme.actor import BatchedActor
from r2d2_acme.config import R2D2Config

_MAX_ENVIRONMENTS = 16  # that share one network call


@dataclasses.dataclass(frozen=True)
class Episode:
  """One that was played to its end.

  Attributes:
    total: its return: undiscounted, of unclipped rewards.
    length: in steps.
  """

  total: float
  length: int


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Episodes with one checkpoint's network.

  Attributes:
    checkpoint: its prefix.
    counts: the program's when it was written.
    episodes: in the order of their numbers.
  """

  checkpoint: str
  counts: dict[str, float]
  episodes: list[Episode]

  @property
  def returns(self) -> np.ndarray:
    """Float64, one for each episode."""
    return np.array([episode.total for episode in self.episodes])


class Actor(Protocol):
  """What `play` needs of a `BatchedActor`."""

  def select_actions(
    self, actions: np.ndarray, timesteps: Sequence[dm_env.TimeStep]
  ) -> np.ndarray: ...


class Watcher(Protocol):
  """Sees every step of the first episode: what was seen, its Q-values, the action."""

  def __call__(self, timestep: dm_env.TimeStep, q: np.ndarray, action: int): ...


class _WatchedActor(BatchedActor):
  """Shows a watcher the first of its environments."""

  watcher: Watcher | None = None

  def select_actions(self, actions, timesteps):
    actions = super().select_actions(actions, timesteps)
    if self.watcher is not None and not timesteps[0].last():
      self.watcher(timesteps[0], self.q[0], int(actions[0]))
    return actions


def evaluate(
  config: R2D2Config,
  environment_factory: Callable[[int], dm_env.Environment],
  environment_spec: specs.EnvironmentSpec,
  workdir: str,
  *,
  num_episodes: int,
  seed: int,
  checkpoint: str | None = None,
  make_watcher: Callable[[dm_env.Environment, str], Watcher] | None = None,
  on_episode: Callable[[int, Episode], None] = lambda number, episode: None,
) -> Evaluation:
  """Plays nearly greedily with a checkpoint's network; writes nothing.

  Args:
    config, environment_factory, environment_spec: of the run.
    workdir: where its checkpoints are; the program may be running there.
    num_episodes: at least 1.
    seed: the same seed, checkpoint and number give the same episodes.
    checkpoint: its name; None for the newest.
    make_watcher: makes one from the first episode's environment and the checkpoint.
    on_episode: is told of each episode at its end.

  Raises:
    CheckpointError: there is no such checkpoint, or it is corrupt.
  """
  network = builder_lib.R2D2Builder(config, environment_spec).make_network()
  prefix, counts = checkpointing.restore_network(network, workdir, checkpoint)
  seeds = [
    builder_lib.evaluation_seeds(seed, i)
    for i in range(min(num_episodes, _MAX_ENVIRONMENTS))
  ]
  actor = _WatchedActor(
    network,
    config,
    environment_spec,
    epsilons=[config.evaluator_epsilon] * len(seeds),
    seeds=[policy_seed for _, policy_seed in seeds],
  )
  environments = [environment_factory(seed) for seed, _ in seeds]
  if make_watcher is not None:
    actor.watcher = make_watcher(environments[0], prefix)

  def tell(number: int, episode: Episode):
    if number == 0:
      actor.watcher = None
    on_episode(number, episode)

  episodes = play(actor, environments, num_episodes, tell)
  for environment in environments:
    environment.close()
  return Evaluation(prefix, counts, episodes)


def play(
  actor: Actor,
  environments: Sequence[dm_env.Environment],
  num_episodes: int,
  on_episode: Callable[[int, Episode], None] = lambda number, episode: None,
) -> list[Episode]:
  """Plays episodes 0 … num_episodes - 1 in E environments at a time.

  Environment i plays the episodes i, i + E, i + 2 E …, however long they are: the
  first to end would be more of the short ones.
  """
  num_envs = len(environments)
  episodes: dict[int, Episode] = {}
  numbers = list(range(num_envs))  # of the episodes that are being played
  totals = np.zeros(num_envs)
  lengths = np.zeros(num_envs, int)
  actions = np.zeros(num_envs, np.int32)
  timesteps = [environment.reset() for environment in environments]
  while len(episodes) < num_episodes:
    actions = actor.select_actions(actions, timesteps)
    for i, environment in enumerate(environments):
      if numbers[i] >= num_episodes:
        continue  # it has played all of its own
      timesteps[i] = environment.step(actions[i])
      totals[i] += timesteps[i].reward
      lengths[i] += 1
      if timesteps[i].last():
        episode = Episode(float(totals[i]), int(lengths[i]))
        episodes[numbers[i]] = episode
        on_episode(numbers[i], episode)
        numbers[i] += num_envs
        totals[i], lengths[i] = 0, 0
        if numbers[i] < num_episodes:
          timesteps[i] = environment.reset()
  return [episodes[number] for number in range(num_episodes)]
