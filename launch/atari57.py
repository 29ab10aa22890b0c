"""Trains on one Atari game after the other and writes their scores into one table.

python launch/atari57.py --games=pong,breakout --max_actor_steps=1000000

It is launch/sweep.py on all 57 games, unless others are named, in runs/atari57.
"""

import preamble  # noqa: F401

import sys

import sweep

from r2d2_acme.system import stopping

if __name__ == '__main__':
  stopping.end_at_once(0, f'{sweep.STOPPED}\n')
  sys.exit(sweep.main(name='atari57', description=__doc__, suite='atari57'))
