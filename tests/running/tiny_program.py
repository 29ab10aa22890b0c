"""A program of four nodes that only write rows: it starts soon, and fails on demand.

python tiny_program.py WORKDIR LAUNCH_TYPE [--noprogress]

A node fails once the file WORKDIR/fail-<role> exists.
"""

import os
import sys
import time

import r2d2_acme  # noqa: F401

# isort: split
import launchpad as lp  # after r2d2_acme, which sets what TensorFlow reads
from absl import flags

from r2d2_acme.running import launching, supervision
from r2d2_acme.system import stopping
from r2d2_acme.workdir import locking, loggers

LIMITS = {'actor_steps': None, 'learner_steps': 10_000}


class Server:
  """A node without a log, as the replay is."""

  def run(self):
    lp.wait_for_stop()


class Client:
  """A node that writes ten rows a second."""

  def __init__(self, workdir: str, role: str):
    self._workdir = workdir
    self._role = role

  def run(self):
    stop, started, step = lp.stop_event(), time.time(), 0
    logger = loggers.make_logger(self._workdir, self._role)
    while not stop.wait(0.1):
      if os.path.exists(os.path.join(self._workdir, f'fail-{self._role}')):
        raise RuntimeError('the ball is out of reach')
      step += 1
      logger.write(
        {
          'episode_return': step % 7,
          'replay_size': 500,
          'sampled_to_inserted': 1.25,
          'actor_steps': 100 * step,
          'actor_frames': 400 * step,
          'learner_steps': step,
          'wall_time': time.time() - started,
        }
      )
      if self._role == 'evaluator' and step % 10 == 0:
        print('a warning: the ball is \N{BLACK CIRCLE}', flush=True)


def main(workdir: str, launch_type: str, progress: bool) -> int:
  flags.FLAGS(sys.argv[:1])
  locking.hold_program(workdir)
  program = lp.Program('tiny')
  with program.group('replay'):
    program.add_node(lp.PyClassNode(Server))
  for role in ('learner', 'actor', 'evaluator'):
    with program.group(role):
      program.add_node(lp.PyClassNode(Client, workdir, role))
  return launching.launch(
    program,
    launch_type,
    os.path.join(workdir, 'output'),
    workdir=workdir,
    limits=LIMITS,
    progress=progress,
    policy=supervision.UNSUPERVISED,
  )


if __name__ == '__main__':
  stopping.end_at_once(0)  # as the programs of launch/ do
  sys.exit(main(sys.argv[1], sys.argv[2], '--noprogress' not in sys.argv))
