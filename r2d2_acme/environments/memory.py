"""A small task that only an agent with memory can solve."""

import dm_env
import numpy as np
from dm_env import specs


class CueRecall(dm_env.Environment):
  """Shows a cue, then distractors, then asks which cue it was.

  An episode has `delay + 2` actions. Its observations, <float32>[num_cues + 2]:

      time         first num_cues entries      cue flag   go flag
      0            one-hot cue                        1         0
      1 … delay    one-hot, random distractor         0         0
      delay + 1    one-hot, random distractor         0         1
      end          zeros                              0         0

  The action at the go flag earns +1 if it equals the cue and -1 if not; all others
  earn 0. Cue and distractors are independent and uniform: without memory no policy
  expects more than `chance_return`.

  Attributes:
    max_return: undiscounted return of a perfect policy, 1.
    chance_return: expected undiscounted return of any policy without memory.
    frames_per_step: 1.
  """

  max_return = 1.0
  frames_per_step = 1

  def __init__(self, delay: int = 10, num_cues: int = 4, seed: int | None = 0):
    """Makes the task.

    Args:
      delay: steps between the cue and the go flag, at least 0.
      num_cues: number of different cues, and of actions, at least 2.
      seed: seeds all episodes; None seeds from the operating system.

    Raises:
      ValueError: `delay` or `num_cues` is too small.
    """
    if delay < 0:
      raise ValueError(f'delay={delay} must be at least 0 steps')
    if num_cues < 2:
      raise ValueError(f'num_cues={num_cues} must be at least 2')
    self.chance_return = 2.0 / num_cues - 1.0
    self._delay = delay
    self._num_cues = num_cues
    self._rng = np.random.default_rng(seed)
    self._cue = 0
    self._time = 0
    self._reset_next_step = True

  def reset(self) -> dm_env.TimeStep:
    self._reset_next_step = False
    self._time = 0
    self._cue = self._draw()
    return dm_env.restart(self._observation(self._cue, cue_flag=1.0))

  def step(self, action: int | np.integer | np.ndarray) -> dm_env.TimeStep:
    if self._reset_next_step:
      return self.reset()
    self._time += 1
    if self._time == self._delay + 2:
      self._reset_next_step = True
      reward = np.float32(1.0 if int(action) == self._cue else -1.0)
      observation = np.zeros(self._num_cues + 2, np.float32)
      return dm_env.TimeStep(dm_env.StepType.LAST, reward, np.float32(0.0), observation)
    go_flag = float(self._time == self._delay + 1)
    observation = self._observation(self._draw(), go_flag=go_flag)
    return dm_env.transition(np.float32(0.0), observation, discount=np.float32(1.0))

  def observation_spec(self) -> specs.BoundedArray:
    return specs.BoundedArray(
      shape=(self._num_cues + 2,),
      dtype=np.float32,
      minimum=0.0,
      maximum=1.0,
      name='observation',
    )

  def action_spec(self) -> specs.DiscreteArray:
    return specs.DiscreteArray(self._num_cues, dtype=np.int32, name='action')

  def reward_spec(self) -> specs.Array:
    return specs.Array(shape=(), dtype=np.float32, name='reward')

  def discount_spec(self) -> specs.BoundedArray:
    return specs.BoundedArray(
      shape=(), dtype=np.float32, minimum=0.0, maximum=1.0, name='discount'
    )

  def _draw(self) -> int:
    return int(self._rng.integers(self._num_cues))

  def _observation(
    self, hot: int, cue_flag: float = 0.0, go_flag: float = 0.0
  ) -> np.ndarray:
    observation = np.zeros(self._num_cues + 2, np.float32)
    observation[hot] = 1.0
    observation[-2:] = cue_flag, go_flag
    return observation


def make_cue_recall(
  delay: int = 10, num_cues: int = 4, seed: int | None = 0
) -> CueRecall:
  """Makes a `CueRecall` task; see there."""
  return CueRecall(delay=delay, num_cues=num_cues, seed=seed)
