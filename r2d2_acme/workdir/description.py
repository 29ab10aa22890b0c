"""`config.json`: what the run in a workdir is, as far as its readers rely on it."""

import json
import math
import os
import stat
from typing import Any, get_type_hints

from r2d2_acme.config import R2D2Config
from r2d2_acme.workdir.paths import shown

_FLAGS = ('game', 'env')  # one of them names the environment
_CURE = 'restore it, or give another --workdir'
# The errors that reading JSON with other content than expected may raise.
_NOT_OURS = (
  *(OSError, ValueError, TypeError, KeyError, AttributeError),
  *(OverflowError, RecursionError),
)


class BadDescription(ValueError):
  """A `config.json` is damaged or foreign; the message is one line with the cure."""


def path(workdir: str) -> str:
  """Returns the path of a workdir's description."""
  return os.path.join(workdir, 'config.json')


def read(workdir: str) -> dict[str, Any]:
  """Reads a workdir's description.

  Returns:
    What it says, empty if there is none. `environment` is one pair of a flag and a
    name; `config` holds fields of `R2D2Config` with values of their types, and perhaps
    fields of another version; where there are `versions` and a `history`, they are a
    dict and a list of dicts.

  Raises:
    BadDescription: it is damaged, or of something else.
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
  except _NOT_OURS as error:
    raise refusal(workdir, error) from error


def refusal(workdir: str, error: Exception) -> BadDescription:
  """Returns what to raise where a workdir's description makes no experiment."""
  reason = ' '.join(str(error).split()) if isinstance(error, ValueError) else ''
  return BadDescription(
    f'{shown(path(workdir))} is not a config of this version '
    f'({shown(reason or repr(error))}): {_CURE}'
  )


def _check(stored: Any):
  """Raises one of `_NOT_OURS` if this is no description."""
  ((flag, name),) = dict(stored['environment']).items()
  if flag not in _FLAGS or not isinstance(name, str):
    raise ValueError(f'the environment is {flag}={name!r}')
  for key, value in dict(stored['config']).items():
    annotation = get_type_hints(R2D2Config).get(key)
    if annotation is not None and not _has_type(value, annotation):
      raise ValueError(f'{key} is {value!r}')
  if not isinstance(stored.get('versions', {}), dict):
    raise ValueError('the versions are not a dict')
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
