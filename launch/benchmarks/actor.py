"""Acting, with replay writes and initial priorities, against the bare emulator."""

import dataclasses

from benchmarks import acme_parts, emulator, our_parts
from benchmarks.measuring import Side, all_cores
from benchmarks.report import ACME, ACME_OWN, LIMIT, OURS, Comparison, compare
from r2d2_acme import config as config_lib

_NUM_ENVS = 16  # E
_LIMIT_NOTE = 'limit: the same environments with random actions and nothing else'


def run(rounds: int) -> list[Comparison]:
  """Steps/s; the replay servers run on the cores that the actor does not."""
  laptop, paper = (
    dataclasses.replace(preset, envs_per_actor=_NUM_ENVS)
    for preset in (config_lib.laptop(), config_lib.paper())
  )
  cores = all_cores()
  one = ((cores[0],),)
  each = tuple((core,) for core in cores[:2])
  others = cores[1:] or cores
  emulators = Side(emulator.bare, ('pong', _NUM_ENVS), one)
  return [
    compare(
      f'laptop network, E = {_NUM_ENVS}, 1 core',
      'steps/s',
      {
        LIMIT: emulators,
        OURS: Side(our_parts.act, (laptop, others), one),
        ACME: Side(acme_parts.act, (laptop, others), one),
      },
      rounds,
      goal='>= 0.60 x limit, >= 3.5 x Acme',
      note=f'{_LIMIT_NOTE}; Acme steps one environment at a time',
    ),
    compare(
      f'paper network, E = {_NUM_ENVS}, 1 core',
      'steps/s',
      {
        LIMIT: emulators,
        OURS: Side(our_parts.act, (paper, others), one),
        ACME: Side(acme_parts.act, (paper, others), one),
        ACME_OWN: Side(acme_parts.act, (paper, others, True), one),
      },
      rounds,
      note='Acme, own network: its default network and float32 stacks',
    ),
    compare(
      f'laptop network, {len(each)} x E = {_NUM_ENVS}, {len(each)} cores',
      'steps/s',
      {
        LIMIT: dataclasses.replace(emulators, processes=each),
        OURS: Side(our_parts.act, (laptop, cores), each),
        ACME: Side(acme_parts.act, (laptop, cores), each),
      },
      rounds,
      goal='>= 0.75 x limit',
      note='a process on each core, and the replay servers on the same cores',
    ),
    compare(
      'laptop network, evaluator, E = 1, 1 core',
      'steps/s',
      {
        LIMIT: Side(emulator.bare, ('pong', 1), one),
        OURS: Side(our_parts.evaluate, (laptop,), one),
        ACME: Side(acme_parts.evaluate, (laptop,), one),
      },
      rounds,
      goal='>= 0.35 x limit',
      note='writes no replay',
    ),
  ]
