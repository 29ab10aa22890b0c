"""`R2D2`: the same parts in one process, as an Acme agent."""

from collections.abc import Sequence

import acme
import dm_env
import numpy as np
import reverb
from acme import specs
from acme.utils import counting, loggers

from r2d2_acme import checkpointing, machine, runtime
from r2d2_acme.actor import R2D2Actor
from r2d2_acme.builder import R2D2Builder
from r2d2_acme.config import R2D2Config


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
    logger: loggers.Logger | None = None,
  ):
    """With a workdir it resumes from, and saves to, its checkpoints.

    Args:
      counter: the root counter; if it is new, `checkpointing.verify(workdir)` gives
        the counts to start it from.

    Raises:
      ValueError: the config is for more than one actor, or R2D2 does not fit the
        environment, see `layouts.check`.
    """
    if config.num_actors != 1:
      raise ValueError(
        f'R2D2 in one process is one actor: set num_actors=1, not {config.num_actors}'
      )
    runtime.limit_threads(machine.num_cores())
    self._config = config
    counter = counter if counter is not None else counting.Counter()
    self._counter = counter
    builder = R2D2Builder(config, environment_spec)
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
        workdir, self.learner, counter.get_counts(), config.checkpoint_period
      )
    self._batched_actor = builder.make_actor(
      replay_client=self._client, variable_source=self.learner
    )
    self._actor = R2D2Actor(self._batched_actor)
    self._num_learned = 0  # steps, in this process

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

  def save(self):
    """Writes a checkpoint now, if there is a workdir."""
    if self._checkpointer is not None:
      self._checkpointer.save(self._counter.get_counts(), force=True)

  def get_variables(self, names: list[str]) -> list[list[np.ndarray]]:
    return self.learner.get_variables(names)
