"""Episodes that are played to see how good a network is, and what they come to."""

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
from r2d2_acme.environments import checked
from r2d2_acme.workdir import checkpointing

_MAX_ENVIRONMENTS = 16  # that share one network call


@dataclasses.dataclass(frozen=True)
class Episode:
  """A finished episode, or one that was cut off at the limit of steps.

  Attributes:
    total: the undiscounted return of unclipped rewards.
    length: the number of steps.
    is_cut: whether it was cut off. Then `total` is the return up to the limit, and says
      nothing of what would have followed.
  """

  total: float
  length: int
  is_cut: bool = False


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


class Evaluator:
  """Plays an episode at a time with a learner's newest parameters, and logs it."""

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
  ):
    """What it is made of.

    Args:
      actor: of one environment; see `R2D2Builder.make_evaluator`.
      environment: it is reset before each episode.
      source: the learner.
      max_steps: after so many an episode is cut off.
      counter: the program's root counter; `evaluator_episodes` are counted.
      logger: gets a row for each episode. Its counts are those of the parameters that
        played: `learner_steps` is how many steps made them, and the others are the
        program's when they were fetched.
      should_stop: ends an episode, which is then forgotten.
      observe_return: is told of each episode's return.
    """
    self._actor = actor
    self._environment = environment
    self._source = source
    self._max_steps = max_steps
    self._counter = counter
    self._num_episodes = counting.Counter(counter, prefix='evaluator', time_delta=0.0)
    self._logger = logger
    self._should_stop = should_stop
    self._observe_return = observe_return

  def run_episode(self):
    """Fetches parameters, plays an episode with them and writes its row."""
    self._actor.fetch(self._source)
    counts = self._counter.get_counts() | {'learner_steps': self._actor.learner_steps}
    for episode in play(
      self._actor,
      [self._environment],
      num_episodes=1,
      max_steps=self._max_steps,
      should_stop=self._should_stop,
    ):
      num_episodes = self._num_episodes.increment(episodes=1)['evaluator_episodes']
      self._logger.write(
        {
          **counts,
          'episode_return': episode.total,
          'episode_length': episode.length,
          'is_cut': int(episode.is_cut),
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
  return Evaluation(prefix, counts, episodes)


def play(
  actor: Actor,
  environments: Sequence[dm_env.Environment],
  num_episodes: int,
  on_episode: Callable[[int, Episode], None] = lambda number, episode: None,
  *,
  max_steps: int = R2D2Config.max_evaluation_steps,
  should_stop: Callable[[], bool] = lambda: False,
) -> list[Episode]:
  """Plays episodes 0 … num_episodes - 1 in E environments at a time.

  Environment i plays the episodes i, i + E, i + 2 E …, however long they are: the
  first to end would be more of the short ones. Each episode starts with a reset, also
  where the one before was cut off.

  Args:
    actor: of E environments.
    environments: E of them.
    num_episodes: at least 1.
    on_episode: is told of each episode and its number when it is over.
    max_steps: of an episode; one that goes on is cut off. An environment that resets
      by itself, that is one whose step is a FIRST one, ends its episode with it.
    should_stop: is asked before each step.

  Returns:
    The episodes in the order of their numbers, and after a stop those that were over.
  """
  environments = [checked(environment) for environment in environments]
  num_envs = len(environments)
  episodes: dict[int, Episode] = {}
  numbers = list(range(num_envs))  # of the episodes that are being played
  totals = np.zeros(num_envs)
  lengths = np.zeros(num_envs, int)
  actions = np.zeros(num_envs, np.int32)
  timesteps = [environment.reset() for environment in environments]
  while len(episodes) < num_episodes and not should_stop():
    actions = actor.select_actions(actions, timesteps)
    for i, environment in enumerate(environments):
      if numbers[i] >= num_episodes:
        continue  # it has played all of its own
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
