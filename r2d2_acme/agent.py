"""`R2D2`: the same parts in one process, as an Acme agent."""

import weakref
from collections.abc import Sequence

import acme
import dm_env
import numpy as np
import reverb
from acme import specs
from acme.utils import counting
from acme.utils import loggers as acme_loggers

from r2d2_acme.acting.actor import R2D2Actor
from r2d2_acme.builder import R2D2Builder
from r2d2_acme.config import R2D2Config
from r2d2_acme.system import machine, runtime
from r2d2_acme.workdir import checkpointing, locking, loggers, paths


class R2D2(acme.Actor, acme.VariableSource):
  """Acts and learns in turn: nothing waits for another process.

  With one environment use it in `acme.EnvironmentLoop`, with `envs_per_actor` of them
  in `VectorEnvironmentLoop`. Learner steps follow the windows written, at
  `samples_per_insert`, from `min_replay_size` windows on.
  """

  def __init__(
    self,
    environment_spec: specs.EnvironmentSpec,
    config: R2D2Config,
    *,
    workdir: str | None = None,
    counter: counting.Counter | None = None,
    logger: acme_loggers.Logger | None = None,
  ):
    """With a workdir it resumes from, and saves to, its checkpoints.

    As long as the agent lives, other processes are kept out of the workdir.

    Args:
      workdir: of the run. To make an agent there begins a sitting.
      counter: the root counter, by default a `WallTimeCounter`. If it has counted
        nothing yet, it goes on from the checkpoint's counts; from its `wall_time`
        only if it counts that, too.
      logger: of the learner; by default its rows go to the workdir, if there is one.

    Raises:
      ValueError: the config is for more than one actor, or R2D2 does not fit the
        environment, see `layouts.check`.
      CheckpointError: the workdir's newest checkpoint is corrupt.
      WorkdirInUse: another program runs in the workdir.
    """
    if config.num_actors != 1:
      raise ValueError(
        f'R2D2 in one process is one actor: set num_actors=1, not {config.num_actors}'
      )
    runtime.limit_threads(machine.num_cores())
    self._config = config
    counts = {}
    if workdir is not None:
      workdir = paths.resolve(workdir)
      weakref.finalize(self, locking.hold(workdir, 'learner'))
      counts = checkpointing.verify(workdir)
    counter = counter if counter is not None else loggers.WallTimeCounter()
    if not _has_counted(counter):
      keeps_time = 'wall_time' in counter.get_counts()
      # In a counter that does not, it would stand still.
      counter.increment(
        **{name: n for name, n in counts.items() if name != 'wall_time' or keeps_time}
      )
    self._counter = counter
    self._sitting = loggers.begin_sitting(workdir, counts)
    if workdir is not None and logger is None:
      logger = loggers.make_logger(workdir, 'learner', sitting=self._sitting)
    builder = R2D2Builder(config, environment_spec, self._sitting)
    # Nobody may wait for the other side in one thread: no ratio in the limiter.
    min_size = reverb.rate_limiters.MinSize(config.min_replay_size)
    self._server = reverb.Server(builder.make_tables(min_size), port=None)
    self._client = reverb.Client(f'localhost:{self._server.port}')
    self.learner = builder.make_learner(
      iter(builder.make_dataset(f'localhost:{self._server.port}', prefetch=0)),
      replay_client=self._client,
      counter=counting.Counter(counter, prefix='learner', time_delta=0.0),
      logger=logger,
    )
    self._checkpointer = None
    if workdir is not None:
      self._checkpointer = checkpointing.Checkpointer(
        workdir, self.learner, {**counts, **counter.get_counts()}, config
      )
    self._batched_actor = builder.make_actor(
      replay_client=self._client, variable_source=self.learner
    )
    self._actor = R2D2Actor(self._batched_actor)
    self._num_learned = 0  # steps, in this process

  @property
  def counter(self) -> counting.Counter:
    """The root counter, the parent of an environment loop's."""
    return self._counter

  @property
  def sitting(self) -> int:
    """How many starts there were in the workdir before this one.

    An environment's seed should depend on it, or each start plays the same episodes.
    """
    return self._sitting

  @property
  def epsilons(self) -> Sequence[float]:
    return self._batched_actor.epsilons

  @property
  def num_windows(self) -> int:
    """Windows written by this process."""
    return self._batched_actor.num_windows

  def select_actions(
    self, actions: np.ndarray, timesteps: Sequence[dm_env.TimeStep]
  ) -> np.ndarray:
    """As `BatchedActor.select_actions`."""
    return self._batched_actor.select_actions(actions, timesteps)

  def select_action(self, observation) -> np.ndarray:
    return self._actor.select_action(observation)

  def observe_first(self, timestep: dm_env.TimeStep):
    self._actor.observe_first(timestep)

  def observe(self, action, next_timestep: dm_env.TimeStep):
    self._actor.observe(action, next_timestep)

  def update(self, wait: bool = False):
    """Takes the learner steps that the windows written so far are due."""
    config = self._config
    num_new = self.num_windows - config.min_replay_size
    num_due = int(num_new * config.samples_per_insert / config.batch_size)
    if num_new >= 0 and self._num_learned < num_due:
      self._batched_actor.flush()  # or the learner might wait for the first window
      while self._num_learned < num_due:
        self.learner.step()
        self._num_learned += 1
      if self._checkpointer is not None:
        self._checkpointer.save(self._counter.get_counts())
    self._actor.update(wait=True)

  def observe_return(self, episode_return: float):
    """Notes the return of an evaluator episode: it decides what the best checkpoint is.

    Returns at once, from any thread; the next `update` that learns, or `save`, saves.
    """
    if self._checkpointer is not None:
      self._checkpointer.observe_return(episode_return)

  def save(self):
    """Writes what is new into a checkpoint now, if there is a workdir."""
    if self._checkpointer is not None:
      self._checkpointer.save(self._counter.get_counts(), force=True)

  def get_variables(self, names: list[str]) -> list[list[np.ndarray]]:
    return self.learner.get_variables(names)


def _has_counted(counter: counting.Counter) -> bool:
  counts = counter.get_counts()
  return any(count for name, count in counts.items() if name != 'wall_time')
