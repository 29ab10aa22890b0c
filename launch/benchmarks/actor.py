"""Acting, with replay writes and initial priorities, against the bare emulator."""

import dataclasses
from collections.abc import Mapping, Sequence

from benchmarks import acme_parts, emulator, our_parts
from benchmarks.measuring import Side, all_cores, alternate
from benchmarks.report import ACME, ACME_OWN, LIMIT, OURS, Comparison, compare
from r2d2_acme import config as config_lib
from r2d2_acme import runtime
from r2d2_acme.config import R2D2Config

_NUM_ENVS = 16  # E
_MEASUREMENTS = 2  # in a round, since they are short
_FLOAT32 = 'ours, torso_dtype=float32'  # where laptop's is something else
_LIMIT_NOTE = 'limit: the same environments with random actions and nothing else'
_BFLOAT16_NOTE = (
  "ours multiplies the torso in bfloat16 where the CPU can, Acme's does not"
)


def run(rounds: int) -> list[Comparison]:
  """Steps/s; beside an actor on one core, its replay server has the others."""
  rounds *= _MEASUREMENTS
  laptop, paper = (
    dataclasses.replace(preset, envs_per_actor=_NUM_ENVS)
    for preset in (config_lib.laptop(), config_lib.paper())
  )
  cores = all_cores()
  one = ((cores[0],),)
  each = tuple((core,) for core in cores[:2])
  others = cores[1:] or cores
  emulators = Side(emulator.bare, ('pong', _NUM_ENVS), one)
  laptop_sides = {
    OURS: our_actors(laptop, one, others),
    ACME: _acme_actors(laptop, one, others),
  }
  if runtime.multiplies_bfloat16():
    float32 = dataclasses.replace(laptop, torso_dtype='float32')
    laptop_sides[_FLOAT32] = our_actors(float32, one, others)
  paper_sides = {
    OURS: our_actors(paper, one, others),
    ACME: _acme_actors(paper, one, others),
    ACME_OWN: _acme_actors(paper, one, others, own=True),
  }
  samples = _alternate_groups(
    f'E = {_NUM_ENVS}, 1 core',
    emulators,
    {'laptop': laptop_sides, 'paper': paper_sides},
    rounds,
  )
  return [
    Comparison(
      f'laptop network, E = {_NUM_ENVS}, 1 core',
      'steps/s',
      samples['laptop'],
      goal='>= 0.60 x limit, >= 3.5 x Acme',
      note=f'{_LIMIT_NOTE}; Acme steps one environment at a time; {_BFLOAT16_NOTE}',
    ),
    Comparison(
      f'paper network, E = {_NUM_ENVS}, 1 core',
      'steps/s',
      samples['paper'],
      note='Acme, own network: its default network and float32 stacks',
    ),
    compare(
      f'laptop network, {len(each)} x E = {_NUM_ENVS}, {len(each)} cores',
      'steps/s',
      {
        LIMIT: dataclasses.replace(emulators, processes=each),
        OURS: our_actors(laptop, each, cores),
        ACME: _acme_actors(laptop, each, cores),
      },
      rounds,
      goal='>= 0.75 x limit',
      note=(
        'a process on each core, and the replay server on the same cores; '
        f'{_BFLOAT16_NOTE}'
      ),
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


def our_actors(
  config: R2D2Config, actors: Sequence[Sequence[int]], server: Sequence[int]
) -> Side:
  """Actors, each on cores of its own, and their replay server."""
  replay = Side(our_parts.serve, (config,), (server,))
  return Side(our_parts.act, (config,), actors, server=replay)


def _acme_actors(
  config: R2D2Config,
  actors: Sequence[Sequence[int]],
  server: Sequence[int],
  own: bool = False,
) -> Side:
  replay = Side(acme_parts.serve, (config, own), (server,))
  return Side(acme_parts.act, (config, own), actors, server=replay)


def _alternate_groups(
  case: str, limit: Side, groups: Mapping[str, Mapping[str, Side]], rounds: int
) -> dict[str, dict[str, list[float]]]:
  """Samples of each group's sides, all measured in turn, and of their one limit."""
  sides = {
    f'{group}, {name}': side for group in groups for name, side in groups[group].items()
  }
  samples = alternate(case, {LIMIT: limit} | sides, rounds)
  return {
    group: {LIMIT: samples[LIMIT]}
    | {name: samples[f'{group}, {name}'] for name in groups[group]}
    for group in groups
  }
