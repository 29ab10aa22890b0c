"""From a process's start to its first finished learner step, on data that is there."""

import time

from benchmarks import acme_parts, our_parts
from benchmarks.measuring import Worker, progress
from benchmarks.report import ACME, OURS, Comparison
from r2d2_acme import config as config_lib
from r2d2_acme.config import R2D2Config

_NUM_ROUNDS = 2  # at most: a start takes long


def run(rounds: int) -> list[Comparison]:
  """Seconds; the replay is served, and filled, by another process."""
  rounds = min(rounds, _NUM_ROUNDS)
  laptop, paper = config_lib.laptop(), config_lib.paper()
  return [
    Comparison(
      'laptop',
      's/start',
      {
        OURS: _measure('laptop', our_parts, laptop, rounds),
        ACME: _measure('laptop, Acme', acme_parts, laptop, rounds),
      },
      goal='<= 15 s',
    ),
    Comparison(
      'paper',
      's/start',
      {OURS: _measure('paper', our_parts, paper, rounds)},
      goal='<= 15 s',
    ),
  ]


def _measure(case: str, parts, config: R2D2Config, rounds: int) -> list[float]:
  samples = []
  with Worker(f'{case}: replay', parts.serve_filled, config) as server:
    address, _ = server.measure()
    for i in range(rounds):
      progress(f'startup, {case}: round {i + 1} of {rounds}')
      start = time.monotonic()
      with Worker(case, parts.first_step, config, address, preload=False) as learner:
        learner.ready()
        samples.append(time.monotonic() - start)
  return samples
