"""What each program here imports first: it finds out what is wrong with a set-up.

It imports little, so that it can speak where the rest cannot be imported.
"""

import os
import sys

try:
  from r2d2_acme.system import doctor, stopping
except ModuleNotFoundError:
  sys.exit('r2d2_acme is not in this Python: run `make install`, then .venv/bin/python')

# Programs that have nothing to save before they train: to be stopped is no failure.
_TRAIN = ('atari57.py', 'atari_distributed.py', 'single_process.py')
_CLEANS_UP = 'benchmark.py'  # when Ctrl-C raises KeyboardInterrupt, as Python has it


def _program() -> str:
  """Returns the file name of the program, or '' if it is none of those here."""
  path = getattr(sys.modules['__main__'], '__file__', None) or ''
  folder = os.path.dirname(os.path.abspath(__file__))
  is_ours = os.path.abspath(path).startswith(f'{folder}{os.sep}')
  return os.path.basename(path) if is_ours else ''


if _program() not in ('', _CLEANS_UP):
  stopping.end_at_once(0 if _program() in _TRAIN else None)
doctor.check_installation()
