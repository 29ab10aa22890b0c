"""R2D2: recurrent replay distributed DQN on Acme, Reverb, Launchpad and Sonnet.

The public names load on first use, so that `r2d2_acme.system.doctor` can explain a
broken installation instead of dying of it.
"""

import importlib

from r2d2_acme.system import cuda, runtime

runtime.set_environment_variables()
if cuda.is_wanted():
  cuda.load()

_PUBLIC = {
  'Experiment': 'r2d2_acme.experiment',
  'R2D2': 'r2d2_acme.agent',
  'R2D2Builder': 'r2d2_acme.builder',
  'R2D2Config': 'r2d2_acme.config',
  'load_policy': 'r2d2_acme.policies.loading',
  'make_program': 'r2d2_acme.program',
  'run_experiment': 'r2d2_acme.agent',
}

__all__ = sorted(_PUBLIC)  # noqa: PLE0605 (resolved by __getattr__)


def __getattr__(name: str):
  if name in _PUBLIC:
    return getattr(importlib.import_module(_PUBLIC[name]), name)
  if not name.startswith('_'):
    try:
      return importlib.import_module(f'r2d2_acme.{name}')
    except ModuleNotFoundError as error:
      if error.name != f'r2d2_acme.{name}':
        raise
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
