"""From a process's start to its first finished learner step, on data that is there."""

import contextlib
import time
import types
from collections.abc import Mapping

from benchmarks import acme_parts, our_parts
from benchmarks.measuring import Worker, progress
from benchmarks.report import ACME, OURS, Comparison
from r2d2_acme import config as config_lib
from r2d2_acme.config import R2D2Config

_NUM_ROUNDS = 2  # at most: a start takes long


def run(rounds: int) -> list[Comparison]:
  """Seconds; the replay is served, and filled, by another process."""
  rounds = min(rounds, _NUM_ROUNDS)
  return [
    Comparison(
      case,
      's/start',
      _measure(case, config_lib.PRESETS[case](), sides, rounds),
      goal='<= 15 s',
    )
    for case, sides in (
      ('laptop', {OURS: our_parts, ACME: acme_parts}),
      ('paper', {OURS: our_parts}),
    )
  ]


def _measure(
  case: str, config: R2D2Config, sides: Mapping[str, types.ModuleType], rounds: int
) -> dict[str, list[float]]:
  """One start of each side in turn, `rounds` times."""
  samples: dict[str, list[float]] = {name: [] for name in sides}
  with contextlib.ExitStack() as stack:
    addresses = {
      name: stack.enter_context(
        Worker(f'{case}: {name}: replay', parts.serve_filled, config)
      ).measure()[0]
      for name, parts in sides.items()
    }
    for i in range(rounds):
      progress(f'startup, {case}: round {i + 1} of {rounds}')
      for name, parts in sides.items():
        start = time.monotonic()
        with Worker(
          f'{case}: {name}', parts.first_step, config, addresses[name], preload=False
        ) as learner:
          learner.ready()
          samples[name].append(time.monotonic() - start)
  return samples
