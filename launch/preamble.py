"""What each program here imports first: it finds out what is wrong with a set-up.

It imports little, so that it can speak where the rest cannot be imported.
"""

import os
import sys

try:
  from r2d2_acme.system import stopping
except ModuleNotFoundError:
  sys.exit('r2d2_acme is not in this Python: run `make install`, then .venv/bin/python')

# Programs that have nothing to save before they train: to be stopped is no failure.
_TRAIN = ('atari57.py', 'atari_distributed.py', 'single_process.py', 'sweep.py')
_FORKS = 'atari_distributed.py'
_CLEANS_UP = 'benchmark.py'  # when Ctrl-C raises KeyboardInterrupt, as Python has it


def _program() -> str:
  """Returns the file name of the program, or '' if it is none of those here."""
  path = getattr(sys.modules['__main__'], '__file__', None) or ''
  folder = os.path.dirname(os.path.abspath(__file__))
  is_ours = os.path.abspath(path).startswith(f'{folder}{os.sep}')
  return os.path.basename(path) if is_ours else ''


if _program() not in ('', _CLEANS_UP):  # soon: a signal may come at once
  stopping.end_at_once(0 if _program() in _TRAIN else None)

from r2d2_acme import running  # noqa: E402
from r2d2_acme.system import doctor, forking, runtime  # noqa: E402

try:
  os.getcwd()
except FileNotFoundError:
  runtime.exit_with_error('the current folder was removed: change to another one')
doctor.check_installation()
if _program() == _FORKS and '--lp_launch_type=local_mp' in sys.argv:
  # It imports what nodes need while this process does so, too.
  is_private = f'--network={running.HOST}' not in sys.argv
  forking.prepare(running.MODULES, private=is_private)
