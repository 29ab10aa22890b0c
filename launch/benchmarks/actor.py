"""Acting, with replay writes and initial priorities, against the bare emulator."""

import dataclasses
import functools
import types
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import acme_parts, emulator, our_parts
from benchmarks.measuring import Side, all_cores, alternate
from benchmarks.report import ACME, ACME_OWN, LIMIT, OURS, Comparison, compare
from r2d2_acme import config as config_lib
from r2d2_acme.config import R2D2Config
from r2d2_acme.system import runtime

_NUM_ENVS = 16  # E
_MEASUREMENTS = 2  # in a round, since they are short
_FLOAT32 = 'ours, torso_dtype=float32'  # where laptop's is something else
_LIMIT_NOTE = 'limit: the same environments with random actions and nothing else'
_BFLOAT16_NOTE = (
  "ours multiplies the torso in bfloat16 where the CPU can, Acme's does not"
)


def run(rounds: int) -> list[Comparison]:
  """Steps/s; beside an actor on one core, its replay server has the others."""
  return [
    *_on_one_core(_MEASUREMENTS * rounds),
    _on_two_cores(_MEASUREMENTS * rounds),
    _evaluator(_MEASUREMENTS * rounds),
  ]


def _on_one_core(rounds: int) -> list[Comparison]:
  """Compares both networks, all in turn."""
  laptop, paper = _with_envs(config_lib.laptop()), _with_envs(config_lib.paper())
  cores = all_cores()
  one = ((cores[0],),)
  emulators = Side(emulator.bare, ('pong', _NUM_ENVS), one)
  on_one = functools.partial(actors, cores=one, server_cores=cores[1:] or cores)
  laptop_sides = {
    OURS: on_one(our_parts, laptop),
    ACME: on_one(acme_parts, laptop, False),
  }
  if runtime.multiplies_bfloat16():
    float32 = dataclasses.replace(laptop, torso_dtype='float32')
    laptop_sides[_FLOAT32] = on_one(our_parts, float32)
  paper_sides = {
    OURS: on_one(our_parts, paper),
    ACME: on_one(acme_parts, paper, False),
    ACME_OWN: on_one(acme_parts, paper, True),
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
  ]


def _on_two_cores(rounds: int) -> Comparison:
  """Compares a process on each core."""
  laptop = _with_envs(config_lib.laptop())
  cores = all_cores()
  each = tuple((core,) for core in cores[:2])
  on_each = functools.partial(actors, cores=each, server_cores=cores)
  return compare(
    f'laptop network, {len(each)} x E = {_NUM_ENVS}, {len(each)} cores',
    'steps/s',
    {
      LIMIT: Side(emulator.bare, ('pong', _NUM_ENVS), each),
      OURS: on_each(our_parts, laptop),
      ACME: on_each(acme_parts, laptop, False),
    },
    rounds,
    goal='>= 0.75 x limit',
    note=(
      'a process on each core, and the replay server on the same cores; '
      f'{_BFLOAT16_NOTE}'
    ),
  )


def _evaluator(rounds: int) -> Comparison:
  """Compares evaluators, which have one environment and write no replay."""
  laptop = _with_envs(config_lib.laptop())
  one = ((all_cores()[0],),)
  return compare(
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
  )


def _with_envs(config: R2D2Config) -> R2D2Config:
  return dataclasses.replace(config, envs_per_actor=_NUM_ENVS)


def actors(
  parts: types.ModuleType,
  *args: Any,
  cores: Sequence[Sequence[int]],
  server_cores: Sequence[int],
) -> Side:
  """Ours or Acme's, each on cores of its own, and their replay server."""
  server = Side(parts.serve, args, (server_cores,))
  return Side(parts.act, args, cores, server=server)


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
