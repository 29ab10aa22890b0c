"""What the children of a fork server do in the tests. It imports nothing heavy."""

import json
import os
import random
import signal
import subprocess
import sys
import time


def describe(path: str):
  """Writes what a child is and has into a file, whole or not at all."""
  numpy = sys.modules.get('numpy')
  found = {
    'pid': os.getpid(),
    'ppid': os.getppid(),
    'session': os.getsid(0),
    'handlers': {
      name: str(signal.getsignal(getattr(signal, name)))
      for name in ('SIGHUP', 'SIGINT', 'SIGTERM', 'SIGQUIT')
    },
    'environ': dict(os.environ),
    'directory': os.getcwd(),
    'path': sys.path,
    'files': {int(name): _target(name) for name in os.listdir('/proc/self/fd')},
    'random': random.random(),
    'numpy': None if numpy is None else numpy.random.rand(),
    'has_statistics': 'statistics' in sys.modules,
  }
  with open(f'{path}.new', 'w') as file:
    json.dump(found, file)
  os.replace(f'{path}.new', path)


def _target(descriptor: str) -> str:
  try:
    return os.readlink(f'/proc/self/fd/{descriptor}')
  except FileNotFoundError:  # of the folder that was just listed
    return ''


def leave(code: str, parent: str = ''):
  os._exit(int(code) if parent in ('', str(os.getppid())) else 255)


def raise_error():
  raise RuntimeError('the ball is out of reach')


def end_by(number: str):
  os.kill(os.getpid(), int(number))
  time.sleep(1000)


def say(text: str):
  print(text)
  os.write(2, b'to stderr\n')


def wait():
  time.sleep(1000)


def wait_with_children(path: str):
  """Has a forked child, one of another program, and one without any environment."""
  forked = os.fork()
  if not forked:
    os.setsid()
    time.sleep(1000)
  others = [
    subprocess.Popen(['sleep', '1000'], start_new_session=True, env=env)
    for env in (None, {})
  ]
  with open(f'{path}.new', 'w') as file:
    json.dump([os.getpid(), forked, *(other.pid for other in others)], file)
  os.replace(f'{path}.new', path)
  time.sleep(1000)
