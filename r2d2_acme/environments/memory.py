"""Small tasks that only an agent with memory can solve."""

import dm_env
import numpy as np
from dm_env import specs

from r2d2_acme.environments import base


class _MemoryTask(base.Environment):
  """The base class of the tasks.

  Attributes:
    max_return: the undiscounted return of a perfect policy, 1.
    chance_return: the largest expected return of any policy without memory.
    frames_per_step: 1.
  """

  max_return = 1.0
  chance_return: float

  def __init__(self, observation_size: int, num_actions: int, seed: int | None):
    self._observation_size = observation_size
    self._num_actions = num_actions
    self._rng = np.random.default_rng(seed)
    self._reset_next_step = True

  def observation_spec(self) -> specs.BoundedArray:
    return specs.BoundedArray(
      shape=(self._observation_size,),
      dtype=np.float32,
      minimum=0.0,
      maximum=1.0,
      name='observation',
    )

  def action_spec(self) -> specs.DiscreteArray:
    return specs.DiscreteArray(self._num_actions, dtype=np.int32, name='action')

  def _last(self, reward: float, discount: float) -> dm_env.TimeStep:
    """Ends the episode with an observation of zeros."""
    self._reset_next_step = True
    observation = np.zeros(self._observation_size, np.float32)
    return dm_env.TimeStep(
      dm_env.StepType.LAST, np.float32(reward), np.float32(discount), observation
    )


class CueRecall(_MemoryTask):
  """Shows a cue, then distractors, then asks which cue it was, perhaps repeatedly.

  With one question an episode has `delay + 2` actions. Its observations,
  <float32>[num_cues + 2]:

      time         first num_cues entries      cue flag   go flag
      0            one-hot cue                        1         0
      1 … delay    one-hot, random distractor         0         0
      delay + 1    one-hot, random distractor         0         1
      end          zeros                              0         0

  The action at the go flag earns +1 if it equals the cue and -1 if not. All other
  actions earn 0. Cue and distractors are independent and uniform, so no policy without
  memory has an expected return above `chance_return`.

  With more questions, `delay` distractors and another go flag follow each question but
  the last, and an answer earns ±1 / `num_questions`. The first question, which is soon
  after the cue, teaches what the later ones ask for.
  """

  def __init__(
    self,
    delay: int = 10,
    num_cues: int = 4,
    num_questions: int = 1,
    seed: int | None = 0,
  ):
    """Makes the task.

    Args:
      delay: distractors between the cue and the go flag, at least 0.
      num_cues: number of different cues, which is the number of actions; at least 2.
      num_questions: number of questions about the cue, at least 1.
      seed: seeds all episodes; None seeds from the operating system.

    Raises:
      ValueError: one of the sizes is too small.
    """
    if delay < 0:
      raise ValueError(f'delay={delay} must be at least 0 steps')
    if num_cues < 2:
      raise ValueError(f'num_cues={num_cues} must be at least 2')
    if num_questions < 1:
      raise ValueError(f'num_questions={num_questions} must be at least 1')
    super().__init__(observation_size=num_cues + 2, num_actions=num_cues, seed=seed)
    self.chance_return = 2.0 / num_cues - 1.0
    self._period = delay + 1
    self._num_cues = num_cues
    self._num_questions = num_questions
    self._cue = 0
    self._time = 0

  def reset(self) -> dm_env.TimeStep:
    self._reset_next_step = False
    self._time = 0
    self._cue = self._draw()
    return dm_env.restart(self._observation(self._cue, cue_flag=1.0))

  def step(self, action: int | np.integer | np.ndarray) -> dm_env.TimeStep:
    if self._reset_next_step:
      return self.reset()
    num_asked, since_question = divmod(self._time, self._period)
    reward = 0.0
    if num_asked and not since_question:  # the action answers a question
      reward = (1.0 if int(action) == self._cue else -1.0) / self._num_questions
      if num_asked == self._num_questions:
        return self._last(reward, discount=0.0)
    self._time += 1
    go_flag = float(self._time % self._period == 0)
    observation = self._observation(self._draw(), go_flag=go_flag)
    return dm_env.transition(np.float32(reward), observation, discount=np.float32(1.0))

  def _draw(self) -> int:
    return int(self._rng.integers(self._num_cues))

  def _observation(
    self, hot: int, cue_flag: float = 0.0, go_flag: float = 0.0
  ) -> np.ndarray:
    observation = np.zeros(self._num_cues + 2, np.float32)
    observation[hot] = 1.0
    observation[-2:] = cue_flag, go_flag
    return observation


class TMaze(_MemoryTask):
  """A corridor with a sign at its start that says where to turn at its end.

  It follows Bakker, "Reinforcement Learning with Long Short-Term Memory" (2002), but
  has no action that goes back. The cells are 0 … length. Observations, <float32>[3]:

      cell             sign says left   sign says right   junction
      0                             1                 0          0    or 0, 1, 0
      1 … length - 1                0                 0          0
      length                        0                 0          1
      end                           0                 0          0

  Action 0 goes forward, 1 turns left and 2 turns right. At the junction (the last cell)
  a turn ends the episode and earns +1 to the sign's side, -1 to the other. Turning
  elsewhere, and going forward at the junction, bumps into the wall: it earns
  `BUMP_REWARD` and the agent stays. The two signs are equally likely, so no policy
  without memory has an expected return above `chance_return`. After 4 (length + 1)
  actions the episode is truncated, with discount 1. A random policy seldom needs as
  many.
  """

  BUMP_REWARD = -0.1
  FORWARD, LEFT, RIGHT = range(3)

  chance_return = 0.0

  def __init__(self, length: int = 10, seed: int | None = 0):
    """Makes the task.

    Args:
      length: steps forward from the sign to the junction, at least 1.
      seed: seeds all episodes; None seeds from the operating system.

    Raises:
      ValueError: `length` is too small.
    """
    if length < 1:
      raise ValueError(f'length={length} must be at least 1 step')
    super().__init__(observation_size=3, num_actions=3, seed=seed)
    self._length = length
    self._max_steps = 4 * (length + 1)
    self._sign = self.LEFT
    self._cell = 0
    self._time = 0

  def reset(self) -> dm_env.TimeStep:
    self._reset_next_step = False
    self._sign = int(self._rng.integers(self.LEFT, self.RIGHT + 1))
    self._cell = 0
    self._time = 0
    return dm_env.restart(self._observation())

  def step(self, action: int | np.integer | np.ndarray) -> dm_env.TimeStep:
    if self._reset_next_step:
      return self.reset()
    action = int(action)
    self._time += 1
    at_junction = self._cell == self._length
    if at_junction and action != self.FORWARD:
      return self._last(1.0 if action == self._sign else -1.0, discount=0.0)
    bumps = at_junction or action != self.FORWARD
    if not bumps:
      self._cell += 1
    timestep = dm_env.transition(
      np.float32(self.BUMP_REWARD if bumps else 0.0),
      self._observation(),
      discount=np.float32(1.0),
    )
    if self._time == self._max_steps:
      self._reset_next_step = True
      return timestep._replace(step_type=dm_env.StepType.LAST)
    return timestep

  def _observation(self) -> np.ndarray:
    observation = np.zeros(3, np.float32)
    if self._cell == 0:
      observation[self._sign - self.LEFT] = 1.0
    elif self._cell == self._length:
      observation[2] = 1.0
    return observation


def make_cue_recall(
  delay: int = 10, num_cues: int = 4, num_questions: int = 1, seed: int | None = 0
) -> CueRecall:
  """Makes a `CueRecall` task; see there."""
  return CueRecall(delay, num_cues, num_questions, seed)


def make_t_maze(length: int = 10, seed: int | None = 0) -> TMaze:
  """Makes a `TMaze` task; see there."""
  return TMaze(length=length, seed=seed)


_TASKS = {'cue_recall': CueRecall, 't_maze': TMaze}


def make_memory_task(name: str, *, seed: int | None = 0) -> dm_env.Environment:
  """Makes a task by its name, `cue_recall` or `t_maze`, and perhaps a number of steps.

  `cue_recall/30` has a delay of 30 steps, and `t_maze/20` a corridor of length 20.

  Raises:
    ValueError: there is no such task, or the number of steps is not a number or too
      small.
  """
  task, slash, steps = name.partition('/')
  if task not in _TASKS or (slash and not steps.isdecimal()):
    raise ValueError(
      f'unknown memory task {name!r}: give cue_recall or t_maze, perhaps with a number '
      'of steps to remember, such as cue_recall/30 or t_maze/30'
    )
  if not slash:
    return _TASKS[task](seed=seed)
  return _TASKS[task](int(steps), seed=seed)
