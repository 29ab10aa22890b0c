"""Makes Gymnasium environments by their ids, Atari games with their preprocessing."""

import contextlib
import copy
import importlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import dm_env
import gymnasium
from ale_py.env import AtariEnv
from gymnasium import wrappers
from gymnasium.envs import registration

from r2d2_acme.environments import atari, base
from r2d2_acme.environments.gymnasium_adapter import GymnasiumAdapter

# Arguments of Atari ids and their values that R2D2 can use; the first is the default.
_USUAL_ATARI: Mapping[str, Sequence[Any]] = {
  'obs_type': ('rgb', 'grayscale'),
  'continuous': (False,),
  'sound_obs': (False,),
}
# Arguments of Atari ids that are fields of the config.
_PROTOCOL = {
  'repeat_action_probability': 'sticky_actions',
  'frameskip': 'frame_skip',
  'full_action_space': 'full_action_space',
}
_IMPORT_LOCK = threading.Lock()


def make_gymnasium(
  id: str,
  *,
  seed: int | None = None,
  atari_kwargs: Mapping[str, Any] = MappingProxyType({}),
  kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> dm_env.Environment:
  """Makes the registered Gymnasium environment `id`, e.g. `CartPole-v1`.

  For an id whose entry point is ale-py's, such as `PongNoFrameskip-v4`, `make_atari`
  makes the environment with the game, mode, difficulty and limits of the id. An id that
  is registered with `gymnasium.wrappers.AtariPreprocessing` around it is not changed.

  Args:
    id: a name with its version; or `module:name-v0` to import a module first, which may
      be in the current directory.
    seed: seeds the first episode, see `GymnasiumAdapter`.
    atari_kwargs: arguments of `make_atari`, for Atari games only.
    kwargs: arguments of the environment, passed on to `gymnasium.make`.

  Raises:
    ValueError: `id` is unknown (the message names similar ones), the environment cannot
      be made or does not take the arguments, its actions are not Discrete, or R2D2
      cannot take its observation.
  """
  spec = copy.deepcopy(_find(id))
  if _is_atari_game(spec):
    return _make_atari(spec, seed, atari_kwargs, kwargs)
  try:
    # By its spec, because for an old id each process would print that it is old.
    env = gymnasium.make(spec, **kwargs)
  except base.FAULTS as error:
    raise ValueError(_cannot_make(id, error)) from error
  try:
    return adapt(env, id, seed)
  except BaseException:
    with contextlib.suppress(*base.FAULTS):
      env.close()  # the caller has no reference to it
    raise


def is_atari(id: str) -> bool:
  """Returns whether `make_atari` makes the environment of an id.

  Raises:
    ValueError: there is no such id, or its module cannot be imported.
  """
  return _is_atari_game(_find(id))


def _make_atari(
  spec: registration.EnvSpec,
  seed: int | None,
  atari_kwargs: Mapping[str, Any],
  kwargs: Mapping[str, Any],
) -> dm_env.Environment:
  """Makes the game of an ale-py id; see `make_gymnasium`."""
  for key in _PROTOCOL.keys() & kwargs.keys():
    raise ValueError(f'{key} of an Atari game is --config.{_PROTOCOL[key]}')
  if 'game' in kwargs:
    raise ValueError(f'{spec.id} is the id of one game: give --game= instead')
  changed = dict(kwargs)
  spec.max_episode_steps = changed.pop('max_episode_steps', spec.max_episode_steps)
  spec.kwargs.update(changed)
  _check_atari(spec)
  limit = atari_kwargs.get('max_episode_frames', atari.MAX_EPISODE_FRAMES)
  try:
    limited = {'max_episode_frames': atari.limit_frames(spec, limit)}
    return atari.make_atari(spec, seed=seed, **{**atari_kwargs, **limited})
  except base.FAULTS as error:
    raise ValueError(_cannot_make(spec.id, error)) from error


def adapt(env: gymnasium.Env, id: str, seed: int | None) -> GymnasiumAdapter:
  """Makes a Gymnasium environment a `dm_env` one; `id` is its name in errors.

  Raises:
    ValueError: R2D2 does not fit it.
  """
  frames_per_step = _frames_per_step(env, id)
  try:
    return GymnasiumAdapter(env, seed=seed, frames_per_step=frames_per_step)
  except ValueError as error:
    if isinstance(env.unwrapped, AtariEnv):
      raise ValueError(f'{error}; or use --game={env.unwrapped._game}') from error
    raise


def _find(id: str) -> registration.EnvSpec:
  """Returns the spec of an id, after importing the module in it, if any."""
  module, colon, name = id.rpartition(':')
  if colon:
    import_module(module)
  if name in gymnasium.registry:
    return gymnasium.registry[name]
  game = atari.guess_game(name)
  if game is not None:
    raise ValueError(
      f'there is no Gymnasium environment {id!r}: for the Atari game use --game={game}'
    )
  try:
    namespace, stem, version = registration.parse_env_id(name)
    if version is None:
      version = registration.find_highest_version(namespace, stem)
    return gymnasium.spec(registration.get_env_id(namespace, stem, version))
  except gymnasium.error.Error as error:
    source = getattr(sys.modules.get(module), '__file__', None)
    where = f' The module is {source}, which registers other ids.' if source else ''
    raise ValueError(_cannot_make(id, error) + where) from error


def import_module(module: str):
  """Imports a module, which may be in the current directory.

  The current directory is searched after the installed packages, so that it hides none
  of them, but before the program's folder, whose contents the user need not know.

  Raises:
    ValueError: there is no such module, or it raises an error. The message is one line.
  """
  folder = os.getcwd()
  if folder not in sys.path:
    sys.path.append(folder)
  importlib.invalidate_caches()  # the module may be newer than Python's cache
  try:
    with _IMPORT_LOCK, _script_folder_last():
      importlib.import_module(module)
  except KeyboardInterrupt:
    raise
  except BaseException as error:  # SystemExit too: scripts end with one
    name = getattr(error, 'name', None)
    if isinstance(error, ModuleNotFoundError) and f'{module}.'.startswith(f'{name}.'):
      raise ValueError(
        f'there is no module {module!r}, neither installed nor in {folder}: write its '
        'name as in an import, and start the program in its folder'
      ) from error
    raise ValueError(
      f'cannot import {module!r}, from {folder} or installed: '
      f'{base.describe_error(error)}'
    ) from error


@contextlib.contextmanager
def _script_folder_last():
  """Makes imports search the program's folder last; Python searches it first."""
  script = getattr(sys.modules['__main__'], '__file__', None)
  folder = os.path.dirname(os.path.abspath(script)) if script else None
  if folder != sys.path[0]:  # the program was started with -m or is a notebook
    yield
    return
  path = sys.path[:]
  sys.path.append(sys.path.pop(0))
  try:
    yield
  finally:
    sys.path[:] = path + [p for p in sys.path if p not in path]


def _is_atari_game(spec: registration.EnvSpec) -> bool:
  """Returns whether an id makes ale-py's class without any wrappers."""
  if spec.additional_wrappers or 'game' not in spec.kwargs:
    return False
  entry_point: Any = spec.entry_point
  if isinstance(entry_point, str):
    try:
      entry_point = registration.load_env_creator(entry_point)
    except base.FAULTS:  # making it will fail and describe the error
      return False
  return isinstance(entry_point, type) and issubclass(entry_point, AtariEnv)


def _check_atari(spec: registration.EnvSpec):
  """Raises ValueError for an Atari id with observations or actions that do not fit."""
  other = [
    f'{key}={spec.kwargs[key]}'
    for key, usual in _USUAL_ATARI.items()
    if spec.kwargs.get(key, usual[0]) not in usual
  ]
  if other:
    raise ValueError(
      f'{spec.id} is an Atari game with {", ".join(other)}, which R2D2 cannot use: '
      f'use --game={spec.kwargs.get("game")}'
    )


def _frames_per_step(env: gymnasium.Env, id: str) -> int:
  """Returns the frame skip of a preprocessed Atari game; 1 for other environments.

  Raises:
    ValueError: it is an Atari game without preprocessing.
  """
  if not isinstance(env.unwrapped, AtariEnv):
    return 1
  for layer in _layers(env):
    if isinstance(layer, wrappers.AtariPreprocessing):
      inner = env.unwrapped._frameskip  # of the emulator; 1 unless the wrapper's is 1
      return layer.frame_skip * (inner if isinstance(inner, int) else 1)
  raise ValueError(
    f'{id} is an Atari game without its preprocessing: use '
    f'--game={env.unwrapped._game}, or wrap it in gymnasium.wrappers.AtariPreprocessing'
  )


def _layers(env: gymnasium.Env) -> Iterator[gymnasium.Env]:
  """Yields the wrappers, the outermost first, and then the environment."""
  while isinstance(env, gymnasium.Wrapper):
    yield env
    env = env.env
  yield env


def _cannot_make(id: str, error: BaseException) -> str:
  """Returns the message for an environment that cannot be made."""
  if isinstance(error, gymnasium.error.Error):
    reason = ' '.join(str(error).split())
  else:
    reason = base.describe_error(error)
  return f'cannot make Gymnasium environment {id!r}: {reason}'
