"""Replay: the server's memory, bytes on the wire, and how fast batches come.

Both sides play the same recorded episodes of a random policy, with the recurrent states
of a network whose LSTM has the paper's size (and whose torso is small, to be quick).
"""

import contextlib
import dataclasses
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dm_env
import numpy as np
import psutil
import reverb
import tree

from benchmarks import acme_parts, emulator, our_parts
from benchmarks.measuring import Side, Worker, alternate, progress
from benchmarks.report import ACME, LIMIT, OURS, Comparison
from r2d2_acme import config as config_lib
from r2d2_acme.config import R2D2Config
from r2d2_acme.system import machine, runtime
from r2d2_acme.types import Step, core_state_spec

_GAMES = ('pong', 'ms_pacman')
_PERIODS = (80, 40)
_NUM_TAPES = 8
# Rows of a tape: before anything is measured, and altogether.
_WARM_UP, _LENGTH = 150, 600
_NUM_BATCHES = 8  # whose bytes are counted
_NUM_SAMPLED = 20  # batches whose time is taken
_NUM_SHARDS = (1, 2, 4)
_NUM_WRITERS = 2  # processes
_QUIET = 0.3  # seconds without traffic

# Of one side: bytes per stored step, per inserted step, per sampled batch.
_Bytes = tuple[float, float, float]


def run(rounds: int) -> list[Comparison]:
  """Bytes are measured once, since time does not change them; rates each round."""
  comparisons: list[Comparison] = []
  with tempfile.TemporaryDirectory() as folder:
    for game in _GAMES:
      path = os.path.join(folder, f'{game}.npy')
      progress(f'replay: recording {game}')
      record(game, path)
      comparisons += _compare_bytes(game, path)
    return [*comparisons, _compare_rates(rounds), *_compare_shards(rounds, path)]


def _compare_bytes(game: str, path: str) -> list[Comparison]:
  configs = {period: _config(period) for period in _PERIODS}
  sides = {
    OURS: (our_parts.serve, our_bytes),
    ACME: (acme_parts.serve, acme_bytes),
  }
  progress(f'replay: {game}')
  measured = _measure_bytes(
    {
      (f'{game}, period {period}', side): (config, *functions)
      for period, config in configs.items()
      for side, functions in sides.items()
    },
    path,
  )
  frame = compressed_frame_bytes(path)
  comparisons = []
  for period, config in configs.items():
    case = f'{game}, period {period}'
    window = config.sequence_length + config.frame_stack  # frames
    quantities = (
      ('resident bytes per stored step', frame, '<= 0.25 x Acme'),
      ('bytes on the wire per inserted step', frame, '<= 0.33 x Acme'),
      (
        f'bytes on the wire per batch of {config.batch_size}',
        config.batch_size * window * frame,
        '<= 0.33 x Acme',
      ),
    )
    comparisons += [
      Comparison(
        f'{case}: {name}',
        'bytes',
        {LIMIT: [limit]} | {side: [measured[case, side][i]] for side in sides},
        goal,
        note='limit: each frame compressed once, by zlib' if i == 0 else '',
      )
      for i, (name, limit, goal) in enumerate(quantities)
    ]
  return comparisons


def _config(period: int) -> R2D2Config:
  return dataclasses.replace(
    config_lib.paper(),
    sequence_period=period,
    batch_size=16,
    envs_per_actor=_NUM_TAPES,
    conv_channels=(4, 4, 4),
    torso_size=32,
    head_size=32,
  )


def _measure_bytes(
  sides: Mapping[tuple[str, str], tuple[R2D2Config, Callable, Callable]], path: str
) -> dict[tuple[str, str], _Bytes]:
  """Of each side of each case, from its config, its server and its client.

  All start and warm up at once, then they take turns.
  """
  with contextlib.ExitStack() as stack:

    def start(name: Sequence[str], function: Callable, *args: Any) -> Worker:
      return stack.enter_context(Worker(': '.join(name), function, *args))

    servers = {
      name: start((*name, 'server'), serve, config)
      for name, (config, serve, _) in sides.items()
    }
    clients = {
      name: start(name, client, config, servers[name].measure()[0], path)
      for name, (config, _, client) in sides.items()
    }
    for client in clients.values():
      client.ready()
    results = {}
    for name, client in clients.items():
      _, before = servers[name].measure()
      num_steps, inserted = client.measure()
      _, after = servers[name].measure()
      results[name] = (
        (after - before) / num_steps,
        inserted / num_steps,
        client.measure(),
      )
  return results


def our_bytes(config: R2D2Config, address: str, path: str) -> Callable[[], Any]:
  """Side: see `_play_and_sample`."""
  runtime.limit_threads(machine.num_cores())
  tapes = [Tape(_parts(tape)) for tape in np.load(path)]
  player = our_parts.make_player(config, tapes, address)

  def play(part: int) -> int:
    return player(lambda: all(tape.num_over > part for tape in tapes))

  return _play_and_sample(play, lambda: our_parts.make_batches(config, address))


def acme_bytes(config: R2D2Config, address: str, path: str) -> Callable[[], Any]:
  """Side: see `_play_and_sample`; the tapes one after the other."""
  runtime.limit_threads(machine.num_cores())
  parts = list(zip(*map(_parts, np.load(path)), strict=True))
  tape = Tape(sum(parts, ()))
  actor = acme_parts.make_actor(config, client=reverb.Client(address))
  player = acme_parts.make_player(actor, acme_parts.wrap(tape))

  def play(part: int) -> int:
    return player(lambda: tape.num_over >= (part + 1) * _NUM_TAPES)

  def batches():
    return iter(acme_parts.make_dataset(config, address, num_parallel_calls=1))

  return _play_and_sample(play, batches)


def _parts(tape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The warm-up, and the rest."""
  return tape[:_WARM_UP], tape[_WARM_UP:]


def _play_and_sample(play: Callable[[int], int], make_batches: Callable):
  """Warms up; measures (steps, bytes) of the rest, then a batch's bytes."""
  play(0)

  def measurements():
    start = _traffic()
    num_steps = play(1)
    yield num_steps, _traffic() - start
    batches = make_batches()
    next(batches)
    start = _traffic()
    for _ in range(_NUM_BATCHES):
      next(batches)
    yield (_traffic() - start) / _NUM_BATCHES

  return measurements().__next__


def _traffic() -> int:
  """Bytes that ever went over the loopback, once it is quiet."""
  last = -1
  while (now := psutil.net_io_counters(pernic=True)['lo'].bytes_recv) - last > 10_000:
    last = now
    time.sleep(_QUIET)
  return now


def record(game: str, path: str):
  """Writes a random policy's rows, [tapes, rows] of `_ROW`."""
  environments = emulator.make_environments(game, _NUM_TAPES)
  num_actions = environments[0].action_spec().num_values
  rng = np.random.default_rng(0)
  tapes = np.zeros((_NUM_TAPES, _LENGTH), _ROW)
  for environment, tape in zip(environments, tapes, strict=True):
    timestep = environment.reset()
    for row in tape:
      row['step_type'] = timestep.step_type
      row['reward'] = timestep.reward or 0
      row['discount'] = 1 if timestep.first() else timestep.discount
      row['frame'] = timestep.observation
      if timestep.last():
        timestep = environment.reset()
      else:
        timestep = environment.step(rng.integers(num_actions))
  np.save(path, tapes)


_ROW = np.dtype(
  [
    ('step_type', np.int32),
    ('reward', np.float32),
    ('discount', np.float32),
    ('frame', np.uint8, (84, 84, 1)),
  ]
)


class Tape(dm_env.Environment):
  """Plays recorded rows again, whatever the actions.

  Attributes:
    num_over: how many parts were played, and their ends seen.
  """

  def __init__(self, parts: Sequence[np.ndarray]):
    """Each part, an array of `_ROW`, is made to begin and to end an episode."""
    episodes = [_whole_episodes(part) for part in parts]
    self._rows = np.concatenate(episodes)
    self._ends = set(np.cumsum([len(rows) for rows in episodes]))
    self._next = 0
    self.num_over = 0

  def reset(self) -> dm_env.TimeStep:
    if self._next in self._ends:
      self.num_over += 1
    self._next %= len(self._rows)
    return dm_env.restart(self._read()['frame'])

  def step(self, action) -> dm_env.TimeStep:
    row = self._read()
    return dm_env.TimeStep(
      dm_env.StepType(row['step_type']),
      row['reward'],
      row['discount'],
      row['frame'],
    )

  def _read(self):
    self._next += 1
    return self._rows[self._next - 1]

  def observation_spec(self):
    return our_parts.environment_spec().observations

  def action_spec(self):
    return our_parts.environment_spec().actions

  def reward_spec(self):
    return our_parts.environment_spec().rewards

  def discount_spec(self):
    return our_parts.environment_spec().discounts


def _whole_episodes(rows: np.ndarray) -> np.ndarray:
  """A copy that begins and ends an episode."""
  if rows['step_type'][0] == dm_env.StepType.LAST:
    rows = rows[1:]
  if rows['step_type'][-1] == dm_env.StepType.FIRST:
    rows = rows[:-1]
  rows = rows.copy()
  rows['step_type'][0] = dm_env.StepType.FIRST
  rows['step_type'][-1] = dm_env.StepType.LAST
  return rows


def compressed_frame_bytes(path: str) -> float:
  """The mean of some recorded frames."""
  frames = np.load(path)['frame'][:, ::30]
  return float(
    np.mean([len(zlib.compress(f.tobytes())) for tape in frames for f in tape])
  )


def _compare_rates(rounds: int) -> Comparison:
  # Of the paper's preset a batch takes less, compared with its learner's step.
  config = config_lib.laptop()
  case = f'laptop: batches of {config.batch_size}, nobody learning'
  with Worker(f'{case}: server', our_parts.serve_filled, config) as server:
    address, _ = server.measure()
    sides = {
      LIMIT: Side(our_parts.learn, (config,)),
      OURS: Side(our_parts.sample, (config, [address], _NUM_SAMPLED)),
    }
    samples = alternate(case, sides, rounds)
  return Comparison(
    case,
    'batches/s',
    {**samples, LIMIT: [1 / seconds for seconds in samples[LIMIT]]},
    goal='>= 3 x limit',
    note='limit: what the learner takes',
  )


def _compare_shards(rounds: int, path: str) -> list[Comparison]:
  """Measures windows in and batches out with one server and with several, in turn."""
  inserted: dict[str, list[float]] = {}
  sampled: dict[str, list[float]] = {}
  with contextlib.ExitStack() as stack:

    def start(function: Callable, *args: Any) -> Worker:
      return stack.enter_context(Worker('shards', function, *args))

    sides = {}
    for num_shards in _NUM_SHARDS:
      config = dataclasses.replace(
        config_lib.laptop(),
        num_replay_shards=num_shards,
        min_replay_size=1,
        samples_per_insert_tolerance=1e6,  # nobody waits for the ratio
      )
      servers = [start(our_parts.serve, config, shard) for shard in range(num_shards)]
      addresses = [server.measure()[0] for server in servers]
      writers = [start(write, config, addresses, path) for _ in range(_NUM_WRITERS)]
      reader = start(our_parts.sample, config, addresses, _NUM_SAMPLED)
      sides[f'num_replay_shards={num_shards}'] = writers, reader
    for writers, reader in sides.values():
      for worker in (*writers, reader):
        worker.ready()
    for i in range(rounds):
      progress(f'replay: shards: round {i + 1} of {rounds}')
      for side, (writers, reader) in sides.items():
        for writer in writers:
          writer.start()
        rates = [writer.result() for writer in writers]
        inserted.setdefault(side, []).append(sum(rates))
        sampled.setdefault(side, []).append(reader.measure())
  return [
    Comparison(
      f'laptop: {_NUM_WRITERS} processes that write', 'windows/s into replay', inserted
    ),
    Comparison('laptop: batches of 16, nobody learning', 'batches/s', sampled),
  ]


def write(
  config: R2D2Config, addresses: Sequence[str], path: str
) -> Callable[[], float]:
  """Side: windows/s of simulated actors, one for each shard, which do not act."""
  runtime.limit_threads(1)
  tape = np.load(path)[0]
  builder = our_parts.make_builder(config)
  adders = [
    builder.make_adder(reverb.Client(address), lambda *_: 1.0) for address in addresses
  ]
  state = tree.map_structure(
    lambda spec: np.zeros(spec.shape, spec.dtype), core_state_spec(config)
  )
  q = np.zeros(our_parts.environment_spec().actions.num_values, np.float32)
  steps = [
    Step(row['frame'], np.int32(0), row['reward'], row['discount'], np.float32(1))
    for row in tape
  ]

  def measure() -> float:
    start, before = time.monotonic(), sum(adder.num_windows for adder in adders)
    for adder in adders:
      for step in steps:
        adder.add(step, state, q, last=step is steps[-1])
      adder.flush()
    num_windows = sum(adder.num_windows for adder in adders) - before
    return num_windows / (time.monotonic() - start)

  return measure
