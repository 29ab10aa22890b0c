"""How cost grows: curves, and the exponents k of cost ~ x^k."""

import dataclasses

from benchmarks import actor, end_to_end, measuring, our_parts
from benchmarks.measuring import Side, alternate
from benchmarks.report import Comparison
from r2d2_acme import config as config_lib
from r2d2_acme.config import R2D2Config

_BATCH_SIZES = (4, 16, 64)
_TRACE_LENGTHS = (20, 40, 160)
_NUM_ENVS = (1, 4, 16, 32)
_NUM_ACTORS = (1, 2)
_NUM_CALLS = 400  # between two looks at the server's memory
_NUM_LOOKS = 4
_ROUNDS = 3  # at most: the curve has many points


def run(rounds: int) -> list[Comparison]:
  """Ours only, at the laptop's network."""
  rounds = min(rounds, _ROUNDS)
  laptop = config_lib.laptop()
  cores = measuring.all_cores()
  return [
    *_learner_curves(laptop, rounds),
    _curve(
      'actor on 1 core, against E',
      'steps/s',
      {
        e: actor.actors(
          our_parts,
          dataclasses.replace(laptop, envs_per_actor=e),
          cores=(cores[:1],),
          server_cores=cores[1:] or cores,
        )
        for e in _NUM_ENVS
      },
      rounds,
    ),
    _memory(laptop),
    _end_to_end(rounds),
  ]


def _learner_curves(laptop: R2D2Config, rounds: int) -> list[Comparison]:
  """Against B and T, which share the laptop's point."""
  batches = {b: dataclasses.replace(laptop, batch_size=b) for b in _BATCH_SIZES}
  traces = {t: _with_trace(laptop, t) for t in _TRACE_LENGTHS}
  configs = dict.fromkeys([*batches.values(), *traces.values()])
  samples = alternate(
    'scaling: learner step, against B and T',
    {_name(config): Side(our_parts.learn, (config,)) for config in configs},
    rounds,
  )
  return [
    _to_comparison(
      f'learner step, against {letter}',
      's/step',
      {x: samples[_name(config)] for x, config in curve.items()},
    )
    for letter, curve in (('B', batches), ('T', traces))
  ]


def _name(config: R2D2Config) -> str:
  return f'B = {config.batch_size}, T = {config.trace_length}'


def _end_to_end(rounds: int) -> Comparison:
  case = 'end to end, against actors'
  programs = {str(n): end_to_end.our_program(n) for n in _NUM_ACTORS}
  samples = end_to_end.alternate_programs(f'scaling: {case}', programs, rounds)
  return _to_comparison(case, 'steps/s', {n: samples[str(n)] for n in _NUM_ACTORS})


def _with_trace(config: R2D2Config, trace_length: int) -> R2D2Config:
  return dataclasses.replace(
    config, trace_length=trace_length, sequence_period=trace_length
  )


def _curve(case: str, unit: str, sides: dict[int, Side], rounds: int) -> Comparison:
  by_name = {str(x): side for x, side in sides.items()}
  samples = alternate(f'scaling: {case}', by_name, rounds)
  return _to_comparison(case, unit, {x: samples[str(x)] for x in sides})


def _to_comparison(case: str, unit: str, samples: dict[int, list[float]]) -> Comparison:
  return Comparison(
    case,
    unit,
    {str(x): values for x, values in samples.items()},
    points={str(x): float(x) for x in samples},
  )


def _memory(config: R2D2Config) -> Comparison:
  """Growth since the first look, which takes in what any server needs."""
  case = 'replay memory, against steps'
  measuring.progress(f'scaling: {case}')
  samples = {}
  with measuring.Worker(f'{case}: server', our_parts.serve, config) as server:
    address, _ = server.measure()
    with measuring.Worker(
      f'{case}: actor', our_parts.add, config, address, _NUM_CALLS
    ) as a:
      a.measure()
      _, empty = server.measure()
      steps = 0
      for _ in range(_NUM_LOOKS):
        steps += a.measure()
        samples[steps] = [(server.measure()[1] - empty) / 2**20]
  return _to_comparison(case, 'MiB', samples)
