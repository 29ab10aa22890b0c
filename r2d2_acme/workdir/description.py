"""`config.json`: what the run in a workdir is, and the history of its starts."""

import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any, get_type_hints

from r2d2_acme.config import R2D2Config
from r2d2_acme.workdir import json_files
from r2d2_acme.workdir.paths import shown

# A resumed run may change these fields; `config.json` keeps when it did.
FREE_FIELDS = (
  # How it learns from here on.
  'learning_rate',
  'adam_epsilon',
  'max_gradient_norm',
  'target_update_period',
  # How it uses the machine.
  'num_actors',
  'envs_per_actor',
  'actors_per_cacher',
  'learner_devices',
  'checkpoint_period',
  'num_checkpoints',
  'checkpoint_keep_period',
  'num_best_episodes',
  'evaluation_period',
  'max_evaluation_steps',
  'video_period',
  'torso_dtype',
  'replay_checkpoint_period',
  'max_restarts',
  'restart_period',
  'progress_timeout',
  'max_environment_failures',
  'max_bad_batches',
)

_KINDS = ('game', 'env', 'environment')  # flags: one of them names the environment
_CURE = 'restore it, or give another --workdir'


class BadDescription(ValueError):
  """A `config.json` is damaged or foreign; the message is one line with the cure."""


def path(workdir: str) -> str:
  """Returns the path of a workdir's description."""
  return os.path.join(workdir, 'config.json')


def read(workdir: str) -> dict[str, Any]:
  """Reads a workdir's description.

  Returns:
    The content, or an empty dict if there is no file. `environment` is one pair of a
    flag and a name, as `environments.describe` has it; `config` holds fields of
    `R2D2Config` with values of their types, and perhaps fields of another version;
    where there are `versions`, `env_kwargs` and a `history`, they are two dicts and a
    list of dicts.

  Raises:
    BadDescription: the file is damaged, or it is not a description.
  """
  file = path(workdir)
  if not os.path.lexists(file):
    return {}
  try:
    if not stat.S_ISREG(os.stat(file).st_mode):
      raise ValueError('it is not a file')  # opening a pipe would wait for its writer
    with open(file) as opened:
      stored = json.load(opened)
    _check(stored)
    return stored
  except (OSError, *json_files.NOT_OURS) as error:
    raise _refusal(workdir, error) from error


def read_experiment(workdir: str) -> dict[str, Any]:
  """Reads a description whose config must be one of this version.

  Returns:
    As `read`, always with a `history` if there is a file: of a version that kept none
    only the last start is known.

  Raises:
    BadDescription: as `read`, or a field of the config is not one of this version.
  """
  stored = read(workdir)
  if not stored:
    return {}
  try:
    R2D2Config(**stored['config'])
  except (TypeError, ValueError) as error:
    raise _refusal(workdir, error) from error
  start = {
    'time': _utc(os.path.getmtime(path(workdir))),
    'command': stored.get('command'),
    'revision': stored.get('revision'),
  }
  return {'history': [start], **stored}


def write(
  workdir: str,
  config: R2D2Config,
  environment: Mapping[str, str],
  before: Mapping[str, Any],
  *,
  env_kwargs: Mapping[str, Any],
  is_atari: bool,
):
  """Writes what runs from now on, and adds this start to the history.

  Args:
    workdir: of the run.
    config: of the run.
    environment: one pair, as `environments.describe` returns it.
    before: what `read_experiment` has returned.
    env_kwargs: the arguments of the environment.
    is_atari: whether it is a game, so that the protocol's name is written.

  Raises:
    OSError: the file cannot be written. The old one is still there.
  """
  versions = {
    distribution.metadata['Name']: distribution.version
    for distribution in importlib.metadata.distributions()
  }
  start: dict[str, Any] = {
    'time': _utc(time.time()),
    'command': sys.argv,
    'revision': revision(),
  }
  if before:
    old = before.get('versions', versions)
    start['changed_versions'] = {
      name: [old.get(name), versions.get(name)]
      for name in sorted(old.keys() | versions.keys())
      if old.get(name) != versions.get(name)
    }
    start['changed_fields'] = changes(R2D2Config(**before['config']), config)
  content = {
    'environment': dict(environment),
    **({'env_kwargs': dict(env_kwargs)} if env_kwargs else {}),
    **({'atari': config.atari_protocol} if is_atari else {}),
    'config': dataclasses.asdict(config),
    'seed': config.seed,
    'command': start['command'],
    'revision': start['revision'],
    'versions': versions,
    'history': [*before.get('history', []), start],
  }
  json_files.write(path(workdir), content)


def changes(before: R2D2Config, after: R2D2Config) -> dict[str, tuple[Any, Any]]:
  """Returns the fields that differ, each with its old and its new value."""
  fields = dataclasses.asdict(after)
  pairs = {name: (getattr(before, name), value) for name, value in fields.items()}
  return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def revision() -> str:
  """Returns the checkout's commit, with `+` if files differ, or 'unknown'."""
  directory = os.path.dirname(os.path.abspath(__file__))
  try:
    return subprocess.run(
      ['git', '-C', directory, 'describe', '--always', '--abbrev=40', '--dirty=+'],
      capture_output=True,
      text=True,
      check=True,
    ).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return 'unknown'


def _refusal(workdir: str, error: Exception) -> BadDescription:
  reason = ' '.join(str(error).split()) if isinstance(error, ValueError) else ''
  return BadDescription(
    f'{shown(path(workdir))} is not a config of this version '
    f'({shown(reason or repr(error))}): {_CURE}'
  )


def _check(stored: Any):
  """Raises one of `json_files.NOT_OURS` if this is no description."""
  ((kind, name),) = dict(stored['environment']).items()
  if kind not in _KINDS or not isinstance(name, str):
    raise ValueError(f'the environment is {kind}={name!r}')
  for key, value in dict(stored['config']).items():
    annotation = get_type_hints(R2D2Config).get(key)
    if annotation is not None and not _has_type(value, annotation):
      raise ValueError(f'{key} is {value!r}')
  for key in ('versions', 'env_kwargs'):
    if not isinstance(stored.get(key, {}), dict):
      raise ValueError(f'{key} is not a dict')
  history = stored.get('history', [])
  if not (isinstance(history, list) and all(isinstance(x, dict) for x in history)):
    raise ValueError('the history is not a list of starts')


def _has_type(value: Any, annotation: Any) -> bool:
  """Returns whether JSON's value fits a field's type; floats may be whole numbers."""
  if annotation is float:
    return type(value) in (int, float) and math.isfinite(value)
  if annotation in (bool, int, str):
    return type(value) is annotation
  return isinstance(value, list) and all(type(x) is int for x in value)


def _utc(seconds: float) -> str:
  """Returns a time since the epoch as in 2026-11-25T22:05:11+00:00."""
  return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isoformat(
    timespec='seconds'
  )
