"""Atari 2600 games with the preprocessing of R2D2 (Kapturowski et al., 2019).

The emulator is ale-py's and the preprocessing is Gymnasium's.
"""

import difflib
import re
from typing import Any

import ale_py
import dm_env
import gymnasium
import numpy as np
from gymnasium import wrappers
from gymnasium.envs.registration import EnvSpec

from r2d2_acme.environments.gymnasium_adapter import GymnasiumAdapter

gymnasium.register_envs(ale_py)
# Set before the first emulator is made, which would print a banner.
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)

MAX_EPISODE_FRAMES = 108_000
# Ids contain the game's name and other parts: ALE/Pong-v5, PongNoFrameskip-v4.
_ATARI_ID = re.compile(
  r'(ALE/)?(?P<game>\w+?)(?P<mark>NoFrameskip|Deterministic|-ram|-ramNoFrameskip|'
  r'-ramDeterministic)?(-v\d+)?',
  re.IGNORECASE,
)


def make_atari(
  game: str | EnvSpec,
  *,
  seed: int | None = None,
  full_action_space: bool = True,
  sticky_actions: float = 0.0,
  max_episode_frames: int = MAX_EPISODE_FRAMES,
  max_noops: int = 30,
  frame_skip: int = 4,
  life_loss_discount: float = 1.0,
  frame_size: int = 84,
) -> dm_env.Environment:
  """Makes an Atari game whose observations are single grey frames.

  Losing a life does not end the episode, and rewards are not clipped. The discount is 0
  at game over. The limit `max_episode_frames` is a truncation, where the discount is 1.

  Without sticky actions the emulator is deterministic. Then `seed` only decides the
  number of no-ops, so episodes of two seeds can be the same.

  Args:
    game: a name such as `ms_pacman`, `MsPacman` or `ALE/MsPacman-v5`, see
      `game_names()`; or the spec of a Gymnasium id of ale-py's class, from which game,
      mode and difficulty are taken.
    seed: seeds the first episode, see `GymnasiumAdapter`.
    full_action_space: whether to offer all 18 actions (9 in two games, one of them
      Skiing) instead of only those that the game uses.
    sticky_actions: the probability, in each raw frame, that the emulator repeats the
      previous action; 0.25 in Machado et al. (2018).
    max_episode_frames: raw frames after which an episode is cut off. The episode ends
      with a whole step, and the no-ops at its start do not count.
    max_noops: each episode starts with 1 … max_noops no-ops of one raw frame each; 0
      for none.
    frame_skip: raw frames for which an action is repeated. The observation is the
      pixelwise maximum of the last two.
    life_loss_discount: the largest discount of a step that loses a life. With 0, as in
      Mnih et al. (2015), values end there, although the episode goes on.
    frame_size: height and width of the observation, in pixels.

  Returns:
    An environment with observations <uint8>[frame_size, frame_size, 1] and
    `frames_per_step` = frame_skip.

  Raises:
    ValueError: the game is unknown, or a number is out of range.
  """
  env = _make_preprocessed(
    game,
    full_action_space=full_action_space,
    sticky_actions=sticky_actions,
    max_episode_frames=max_episode_frames,
    max_noops=max_noops,
    frame_skip=frame_skip,
    frame_size=frame_size,
  )
  keywords: dict[str, Any] = {'frames_per_step': frame_skip, 'has_mask': False}
  if life_loss_discount == 1.0:
    return GymnasiumAdapter(env, seed=seed, **keywords)
  return _LivesAdapter(env, life_loss_discount, seed=seed, **keywords)


class _LivesAdapter(GymnasiumAdapter):
  """A `GymnasiumAdapter` whose discount is smaller where a life is lost."""

  def __init__(self, env: gymnasium.Env, life_loss_discount: float, **keywords: Any):
    super().__init__(env, **keywords)
    self._ale = env.get_wrapper_attr('ale')
    self._life_loss_discount = np.float32(life_loss_discount)
    self._num_lives = 0

  def reset(self) -> dm_env.TimeStep:
    timestep = super().reset()
    self._num_lives = self._ale.lives()
    return timestep

  def step(self, action: int | np.integer | np.ndarray) -> dm_env.TimeStep:
    timestep = super().step(action)
    before, self._num_lives = self._num_lives, self._ale.lives()
    if timestep.first() or self._num_lives >= before:
      return timestep
    discount = min(timestep.discount, self._life_loss_discount)
    return timestep._replace(discount=discount)


def game_names() -> list[str]:
  """Returns the names of all playable games in snake_case, sorted."""
  return sorted(_ids())


def guess_game(id: str) -> str | None:
  """Returns the game that an id such as `PongDeterministic-v4` may mean, or None.

  A misspelt name counts only if the id has other parts of an Atari id.
  """
  match = _ATARI_ID.fullmatch(id)
  if match is None:
    return None
  games = {_letters(name): name for name in _ids()}
  letters = _letters(match['game'])
  is_atari = id.upper().startswith('ALE/') or match['mark'] is not None
  near = difflib.get_close_matches(letters, games, 1) if is_atari else []
  return games.get(letters) or (games[near[0]] if near else None)


def limit_frames(spec: EnvSpec, max_episode_frames: int) -> int:
  """Returns the smallest of this limit of raw frames and those of an ale-py id."""
  limits = [max_episode_frames, spec.kwargs.get('max_num_frames_per_episode')]
  if spec.max_episode_steps is not None:
    skip = spec.kwargs.get('frameskip', 4)  # or a pair: drawn from low … high - 1
    mean_skip = skip if isinstance(skip, int) else sum(skip) // 2
    limits.append(spec.max_episode_steps * mean_skip)
  return min(limit for limit in limits if limit)


def _make_preprocessed(
  game: str | EnvSpec,
  *,
  full_action_space: bool,
  sticky_actions: float,
  max_episode_frames: int,
  max_noops: int,
  frame_skip: int,
  frame_size: int,
) -> gymnasium.Env:
  """Makes the Gymnasium environment that `make_atari` adapts; see there."""
  if not 0 < frame_skip <= max_episode_frames:
    raise ValueError(
      f'max_episode_frames={max_episode_frames} must hold at least one step of '
      f'frame_skip={frame_skip} frames'
    )
  spec = game if isinstance(game, EnvSpec) else gymnasium.spec(_ids()[_find(game)])
  env = gymnasium.make(
    spec,
    max_episode_steps=-1,  # no limit on raw frames, which could end inside a step
    # AtariPreprocessing reads the screen from the emulator itself and ignores the
    # observation of each raw frame. RAM is the cheapest one.
    obs_type='ram',
    frameskip=1,
    repeat_action_probability=sticky_actions,
    full_action_space=full_action_space,
    # At its own limit the emulator would end in the middle of a step, and the
    # observation to bootstrap from would be the previous frame. TimeLimit below ends
    # episodes after whole steps.
    max_num_frames_per_episode=0,
    disable_env_checker=True,
  )
  # AtariPreprocessing takes the size of the screen from here.
  env.observation_space = gymnasium.spaces.Box(
    0, 255, env.get_wrapper_attr('ale').getScreenDims(), np.uint8
  )
  env = wrappers.AtariPreprocessing(
    env,
    noop_max=max_noops,
    frame_skip=frame_skip,
    screen_size=frame_size,
    grayscale_newaxis=True,
  )
  return wrappers.TimeLimit(env, max_episode_frames // frame_skip)


def _ids() -> dict[str, str]:
  """Maps names of games in snake_case to Gymnasium ids."""
  return {
    spec.kwargs['game']: env_id
    for env_id, spec in gymnasium.registry.items()
    if spec.namespace == 'ALE' and spec.version == 5
  }


def _find(game: str) -> str:
  """Returns the snake_case name of a game that is written in any of the usual ways.

  Raises:
    ValueError: there is no such game.
  """
  games = {_letters(name): name for name in _ids()}
  letters = _letters(game.removeprefix('ALE/').removesuffix('-v5'))
  if letters in games:
    return games[letters]
  nearest = [games[name] for name in difflib.get_close_matches(letters, games)]
  hint = f'did you mean {", ".join(nearest)}? ' if nearest else ''
  raise ValueError(
    f'unknown Atari game {game!r}: {hint}{__name__}.game_names() lists all games'
  )


def _letters(name: str) -> str:
  """Returns a name's lower-case letters and digits, without underscores."""
  return name.lower().replace('_', '')
