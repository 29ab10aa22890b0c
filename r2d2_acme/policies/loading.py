"""A trained policy as a Python object, for any loop.

In come a workdir and then the observations and rewards of B environments. Out go their
actions.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import dm_env
import gymnasium
import numpy as np
import numpy.typing as npt
import tree

from r2d2_acme import builder as builder_lib
from r2d2_acme import environments, experiment
from r2d2_acme.acting.policy import BatchedActor
from r2d2_acme.experiment import Experiment
from r2d2_acme.observations import layouts
from r2d2_acme.workdir import checkpointing


def load_policy(
  workdir: str | os.PathLike,
  checkpoint: str = checkpointing.NEWEST,
  batch_size: int = 1,
  *,
  epsilon: float | None = None,
  seed: int | None = None,
) -> 'Policy':
  """Loads the policy of a run, which may be going on; writes nothing.

  Args:
    workdir: of the run.
    checkpoint: `newest`, `best`, or the name or the path of one, such as `ckpt-3`.
    batch_size: B, the number of environments that share each call.
    epsilon: the probability of a random action; by default the config's
      `evaluator_epsilon`.
    seed: of the random actions; by default that of the config.

  Raises:
    ValueError: there is no such run, its environments can no longer be made, or an
      argument is out of bounds; one line with the cure.
    CheckpointError: there is no such checkpoint, or it is damaged.
  """
  if batch_size < 1:
    raise ValueError(f'batch_size must be at least 1, not {batch_size}')
  run = experiment.from_workdir(os.fspath(workdir))
  config = run.config
  if epsilon is not None:
    config = dataclasses.replace(config, evaluator_epsilon=epsilon)
  if seed is not None:
    config = dataclasses.replace(config, seed=seed)
  return Policy(dataclasses.replace(run, config=config), checkpoint, batch_size)


class Policy:
  """A trained policy for B environments, which remembers what an episode needs.

  That is, for each environment, the stack of frames, the previous action and the
  recurrent state.

  Observations and actions are those of the environment that the run was trained on: if
  that is a Gymnasium one, they are what `env.step` returns and takes. For Atari it is
  the game with its preprocessing, which `make_environment` makes.

  Attributes:
    checkpoint: the checkpoint's name, such as `ckpt-3`.
    counts: the program's counts in the checkpoint.
    config: of the run, with the epsilon and the seed that were given.
  """

  def __init__(self, run: Experiment, checkpoint: str, batch_size: int):
    """Restores a checkpoint; see `load_policy`.

    Args:
      run: as `experiment.from_workdir` returns it.
      checkpoint: see `checkpointing.choose`.
      batch_size: B.
    """
    assert run.workdir is not None and run.environment_spec is not None
    self.config = run.config
    self._factory = run.environment_factory
    self._observations = run.environment_spec.observations
    network = builder_lib.R2D2Builder(run.config, run.environment_spec).make_network()
    prefix, moment = checkpointing.restore_network(network, run.workdir, checkpoint)
    self.checkpoint = os.path.basename(prefix)
    self.counts = moment.counts
    seeds = [
      builder_lib.evaluation_seeds(run.config.seed, i) for i in range(batch_size)
    ]
    self._environment_seed = seeds[0][0]
    self._actor = BatchedActor(
      network,
      run.config,
      run.environment_spec,
      epsilons=[run.config.evaluator_epsilon] * batch_size,
      seeds=[policy_seed for _, policy_seed in seeds],
    )
    self._actions = np.zeros(batch_size, np.int32)
    self._to_observation: Callable[[Any, Any], Any] = lambda observation, info: (
      observation
    )
    self._to_action: Callable[[Any], Any] = lambda action: action
    made = environments.make_dm_env(self._factory, self._environment_seed)
    with contextlib.closing(made):
      if isinstance(made, environments.GymnasiumAdapter):
        made.observation_spec()  # which finds out whether there are masks
        self._to_observation, self._to_action = made.to_observation, made.to_action

  @property
  def q(self) -> np.ndarray:
    """The Q-values of the latest step, float32 [A], or [B, A] if B > 1."""
    return self._actor.q if len(self._actions) > 1 else self._actor.q[0]

  def make_environment(self, seed: int | None = None) -> gymnasium.Env:
    """Makes an environment as the run was trained on, with all preprocessing.

    Args:
      seed: of its episodes; by default that of `evaluate.py`'s first environment. With
        it, and B = 1, the first episode is the one that `evaluate.py --episodes=1`
        plays with the same checkpoint, epsilon and seed.
    """
    seed = self._environment_seed if seed is None else seed
    return environments.make_for_gymnasium(self._factory, seed)

  def reset(self):
    """Forgets the episodes: the next step of each environment starts a new one."""
    for i in range(len(self._actions)):
      self._actor.drop_episode(i)

  def step(
    self,
    observation: Any,
    reward: npt.ArrayLike = 0.0,
    first: npt.ArrayLike = False,
    *,
    info: Mapping[str, Any] | None = None,
  ) -> Any:
    """Takes the newest observation and returns the next action.

    After an episode's last observation no step is needed.

    Args:
      observation: as the environment returned it; with a leading axis [B] if B > 1.
      reward: the unclipped reward that came with it; a number, or [B].
      first: whether the observation is the first of an episode; a bool, or [B]. The
        first one after `load_policy` or `reset` is so in any case.
      info: that came with it, where that holds the mask of valid actions: `action_mask`
        [A], or [B, A] if B > 1.

    Returns:
      The action for the environment's `step`; with a leading axis [B] if B > 1.

    Raises:
      ValueError: the observation is not as the run was trained on.
    """
    size = len(self._actions)
    rewards = np.broadcast_to(np.asarray(reward, np.float32), [size])
    if not np.isfinite(rewards).all():
      raise ValueError(f'the reward must be a finite number, not {reward!r}')
    is_first = np.broadcast_to(np.asarray(first, bool), [size])
    timesteps = [
      dm_env.TimeStep(
        dm_env.StepType.FIRST if is_first[i] else dm_env.StepType.MID,
        rewards[i],
        np.float32(1),
        frame,
      )
      for i, frame in enumerate(self._frames(observation, info or {}))
    ]
    self._actions = self._actor.select_actions(self._actions, timesteps)
    actions = [self._to_action(action) for action in self._actions]
    return np.array(actions) if size > 1 else actions[0]

  def _frames(self, observation: Any, info: Mapping[str, Any]) -> list[Any]:
    """Returns the observations of the B environments as the network takes them."""
    size = len(self._actions)
    infos = [info]
    if size == 1:
      frames = [observation]
    else:
      frames = [self._frame(observation, i) for i in range(size)]
      mask = info.get(layouts.ACTION_MASK)
      infos = [
        {} if mask is None else {layouts.ACTION_MASK: mask[i]} for i in range(size)
      ]
    frames = list(map(self._to_observation, frames, infos))
    leaves = layouts.numeric_leaves(self._observations)
    wanted = [leaf.value.shape for leaf in leaves]
    for frame in frames:
      given = [np.shape(layouts.get(frame, leaf.path)) for leaf in leaves]
      if given != wanted:
        raise ValueError(
          f'the observation has the shape {_shown(given)}, but the policy was trained '
          f'on {_shown(wanted)}: take observations of make_environment(), which '
          'preprocesses them as the training did'
        )
    return frames

  def _frame(self, observation: Any, i: int) -> Any:
    """Returns the i-th observation of a batch; a tuple of texts is a leaf of it."""
    size = len(self._actions)

    def pick(leaf: Any) -> Any:
      if np.ndim(leaf) == 0 or len(leaf) != size:
        raise ValueError(
          f'batch_size={size}, but the observations have a part of the shape '
          f'{list(np.shape(leaf))}'
        )
      return leaf[i]

    def is_leaf(part: Any) -> bool:
      is_tuple = isinstance(part, tuple) and bool(part)
      return not tree.is_nested(part) or (
        is_tuple and all(isinstance(text, str) for text in part)
      )

    return tree.traverse(
      lambda part: pick(part) if is_leaf(part) else None, observation
    )


def _shown(shapes: list[tuple[int, ...]]) -> str:
  return ', '.join(str(list(shape)) for shape in shapes)
