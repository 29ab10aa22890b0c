"""A program of one node on a Ray cluster of this machine.

python one_node.py WORKDIR

The node prints what it sees of its host, and fails once WORKDIR/fail exists.
"""

import os
import sys

import r2d2_acme  # noqa: F401

# isort: split
import launchpad as lp  # after r2d2_acme, which sets what TensorFlow reads
from absl import flags

from r2d2_acme.running import clusters, launching, supervision
from r2d2_acme.system import heartbeats, stopping
from r2d2_acme.workdir import locking


class Node:
  """Works until it is told to fail."""

  def __init__(self, workdir: str):
    self._workdir = workdir

  def run(self):
    heartbeat = heartbeats.Heartbeat()
    print(f'nice {os.nice(0)}, package {r2d2_acme.__file__}', flush=True)
    while not lp.stop_event().wait(0.1):
      heartbeat.beat()
      if os.path.exists(os.path.join(self._workdir, 'fail')):
        raise RuntimeError('the ball is out of reach')


def main(workdir: str) -> int:
  flags.FLAGS(sys.argv[:1])
  locking.hold_program(workdir)
  program = lp.Program('one')
  with program.group('learner'):
    program.add_node(lp.CourierNode(Node, workdir))
  return launching.launch(
    program,
    launching.RAY,
    os.path.join(workdir, 'output'),
    workdir=workdir,
    policy=supervision.Policy(max_restarts=0),
    cluster=clusters.Cluster(clusters.LOCAL),
  )


if __name__ == '__main__':
  stopping.end_at_once(0)
  sys.exit(main(sys.argv[1]))
