"""Plays episodes to measure how good a network is."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import acme
import dm_env
import numpy as np
from acme import specs
from acme.utils import counting, loggers

from r2d2_acme import builder as builder_lib
from r2d2_acme import environments
from r2d2_acme.acting.policy import BatchedActor
from r2d2_acme.config import R2D2Config
from r2d2_acme.environments import EpisodeLost, checked
from r2d2_acme.results.evaluator_videos import Videos
from r2d2_acme.workdir import checkpointing

_MAX_ENVIRONMENTS = 16  # environments of `evaluate`, which share one network call


@dataclasses.dataclass(frozen=True)
class Episode:
  """A finished episode, or one that was cut off at the limit of steps.

  Attributes:
    total: the undiscounted return of unclipped rewards.
    length: the number of steps.
    is_cut: whether it was cut off. Then `total` is only the return up to the limit.
  """

  total: float
  length: int
  is_cut: bool = False


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The episodes that one checkpoint's network played.

  Attributes:
    checkpoint: the checkpoint's prefix.
    counts: the program's counts in the checkpoint.
    episodes: in the order of their numbers.
  """

  checkpoint: str
  counts: dict[str, float]
  episodes: list[Episode]

  @property
  def returns(self) -> np.ndarray:
    """The episodes' returns, float64 [number of episodes]."""
    return np.array([episode.total for episode in self.episodes])


class Evaluator:
  """Plays single episodes with a learner's newest parameters and logs them."""

  def __init__(
    self,
    actor: BatchedActor,
    environment: dm_env.Environment,
    source: acme.VariableSource,
    *,
    max_steps: int,
    counter: counting.Counter,
    logger: loggers.Logger,
    should_stop: Callable[[], bool] = lambda: False,
    observe_return: Callable[[float], object] = lambda episode_return: None,
    videos: Videos | None = None,
  ):
    """Stores the parts of the evaluator.

    Args:
      actor: acts in one environment; see `R2D2Builder.make_evaluator`.
      environment: is reset before each episode.
      source: the learner, from which parameters are fetched.
      max_steps: steps after which an episode is cut off.
      counter: the program's root counter, which also gets `evaluator_episodes`.
      logger: gets a row for each episode. The row's counts belong to the parameters
        that played: `learner_steps` is the number of steps that made them, and the
        others are the program's counts when they were fetched.
      should_stop: if it returns True, the episode ends and is not logged.
      observe_return: is called with each episode's return.
      videos: records episodes.
    """
    self._actor = actor
    self._player: Actor = actor if videos is None else _Watched(actor, videos)
    self._videos = videos
    self._environment = environment
    self._source = source
    self._max_steps = max_steps
    self._counter = counter
    self._num_episodes = counting.Counter(counter, prefix='evaluator', time_delta=0.0)
    self._logger = logger
    self._should_stop = should_stop
    self._observe_return = observe_return
    self._num_failures = 0  # of the environment

  def run_episode(self):
    """Fetches parameters, plays an episode with them and logs it.

    An episode in which the environment raises `EpisodeLost` is not logged.

    Raises:
      EnvironmentFailed: the environment failed, and cannot go on.
    """
    self._actor.fetch(self._source)
    counts = self._counter.get_counts() | {'learner_steps': self._actor.learner_steps}
    if self._videos is not None:
      self._videos.start()
    try:
      episodes = play(
        self._player,
        [self._environment],
        num_episodes=1,
        max_steps=self._max_steps,
        should_stop=self._should_stop,
      )
    except EpisodeLost:
      self._num_failures += 1
      return
    for episode in episodes:
      num_episodes = self._num_episodes.increment(episodes=1)['evaluator_episodes']
      self._logger.write(
        {
          **counts,
          'episode_return': episode.total,
          'episode_length': episode.length,
          'is_cut': int(episode.is_cut),
          'environment_failures': self._num_failures,
          'evaluator_episodes': num_episodes,
        }
      )
      if episode.is_cut:
        print(
          f'An evaluation episode was cut off: it had not ended after '
          f'{episode.length:,} steps (max_evaluation_steps).',
          flush=True,
        )
      self._observe_return(episode.total)
      if self._videos is not None:
        self._videos.write(counts)


class Actor(Protocol):
  """The part of `BatchedActor` that `play` uses."""

  def select_actions(
    self, actions: np.ndarray, timesteps: Sequence[dm_env.TimeStep]
  ) -> np.ndarray: ...


class Watcher(Protocol):
  """Is called with every step of the first episode.

  The arguments are the time step, its Q-values, float32 [A], and the action taken.
  """

  def __call__(self, timestep: dm_env.TimeStep, q: np.ndarray, action: int): ...


class _Watched:
  """Calls a watcher with the steps of an actor's first environment."""

  def __init__(self, actor: BatchedActor, watcher: Watcher | None = None):
    self.watcher = watcher
    self._actor = actor

  def select_actions(
    self, actions: np.ndarray, timesteps: Sequence[dm_env.TimeStep]
  ) -> np.ndarray:
    actions = self._actor.select_actions(actions, timesteps)
    if self.watcher is not None and not timesteps[0].last():
      self.watcher(timesteps[0], self._actor.q[0], int(actions[0]))
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
  """Plays nearly greedy episodes with a checkpoint's network; writes nothing.

  Args:
    config, environment_factory, environment_spec: of the run.
    workdir: of the run, where the program may be running.
    num_episodes: at least 1.
    seed: the same seed, checkpoint and number of episodes give the same episodes.
    checkpoint: the checkpoint's name, see `checkpointing.choose`.
    make_watcher: makes a watcher from the first episode's environment and the
      checkpoint's prefix.
    on_episode: is called with the number and the result of each finished episode.

  Raises:
    CheckpointError: there is no such checkpoint, or it is damaged.
  """
  network = builder_lib.R2D2Builder(config, environment_spec).make_network()
  prefix, moment = checkpointing.restore_network(network, workdir, checkpoint)
  seeds = [
    builder_lib.evaluation_seeds(seed, i)
    for i in range(min(num_episodes, _MAX_ENVIRONMENTS))
  ]
  actor = _Watched(
    BatchedActor(
      network,
      config,
      environment_spec,
      epsilons=[config.evaluator_epsilon] * len(seeds),
      seeds=[policy_seed for _, policy_seed in seeds],
    )
  )

  def tell(number: int, episode: Episode):
    if number == 0:
      actor.watcher = None
    on_episode(number, episode)

  environment_seeds = [environment_seed for environment_seed, _ in seeds]
  with environments.opened(environment_factory, environment_seeds) as played:
    if make_watcher is not None:
      actor.watcher = make_watcher(played[0], prefix)
    episodes = play(
      actor, played, num_episodes, tell, max_steps=config.max_evaluation_steps
    )
  return Evaluation(prefix, moment.counts, episodes)


def play(
  actor: Actor,
  environments: Sequence[dm_env.Environment],
  num_episodes: int,
  on_episode: Callable[[int, Episode], None] = lambda number, episode: None,
  *,
  max_steps: int = R2D2Config.max_evaluation_steps,
  should_stop: Callable[[], bool] = lambda: False,
) -> list[Episode]:
  """Plays episodes 0 … num_episodes - 1 in E environments at the same time.

  Environment i plays the episodes i, i + E, i + 2 E …, however long they are. (Taking
  the first episodes that end would prefer short ones.) Each episode starts with a
  reset, also after an episode that was cut off.

  Args:
    actor: acts in E environments.
    environments: E environments. If one returns a FIRST time step from `step`, it has
      reset itself, and its episode has ended.
    num_episodes: at least 1.
    on_episode: is called with the number and the result of each finished episode.
    max_steps: steps after which an episode is cut off.
    should_stop: is called before each step. If it returns True, no more steps follow.

  Returns:
    The episodes in the order of their numbers. After a stop, only the finished ones.
  """
  environments = [checked(environment) for environment in environments]
  num_envs = len(environments)
  episodes: dict[int, Episode] = {}
  numbers = list(range(num_envs))  # of each environment's current episode
  totals = np.zeros(num_envs)
  lengths = np.zeros(num_envs, int)
  actions = np.zeros(num_envs, np.int32)
  timesteps = [environment.reset() for environment in environments]
  while len(episodes) < num_episodes and not should_stop():
    actions = actor.select_actions(actions, timesteps)
    for i, environment in enumerate(environments):
      if numbers[i] >= num_episodes:
        continue  # this environment has played all of its episodes
      timesteps[i] = environment.step(actions[i])
      has_ended = timesteps[i].last() or timesteps[i].first()
      if not timesteps[i].first():
        totals[i] += timesteps[i].reward
        lengths[i] += 1
      if has_ended or lengths[i] >= max_steps:
        episode = Episode(float(totals[i]), int(lengths[i]), is_cut=not has_ended)
        episodes[numbers[i]] = episode
        on_episode(numbers[i], episode)
        numbers[i] += num_envs
        totals[i], lengths[i] = 0, 0
        if numbers[i] < num_episodes:
          timesteps[i] = environment.reset()
  return [episodes[number] for number in sorted(episodes)]
