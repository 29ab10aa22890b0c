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
from collections.abc import Callable, Sequence
from typing import Any

import dm_env
import numpy as np
import psutil
import reverb

from benchmarks import acme_parts, emulator, our_parts
from benchmarks.measuring import Side, Worker, alternate, progress
from benchmarks.report import ACME, LIMIT, OURS, Comparison
from r2d2_acme import config as config_lib
from r2d2_acme import runtime
from r2d2_acme.config import R2D2Config

_GAMES = ('pong', 'ms_pacman')
_PERIODS = (80, 40)
_NUM_TAPES = 8
# Rows of a tape: until the server's memory is first looked at, and altogether.
_WARM_UP, _LENGTH = 150, 600
_NUM_BATCHES = 8
_QUIET = 0.3  # seconds without traffic

# Of one side: bytes per stored step, per inserted step, per sampled batch.
_Bytes = tuple[float, float, float]


def run(rounds: int) -> list[Comparison]:
  """Bytes are measured once, since time does not change them; rates each round."""
  comparisons = []
  with tempfile.TemporaryDirectory() as folder:
    for game in _GAMES:
      path = os.path.join(folder, f'{game}.npy')
      progress(f'replay: recording {game}')
      record(game, path)
      for period in _PERIODS:
        comparisons += _compare_bytes(game, period, path)
  rates = [
    _compare_rates(name, config_lib.PRESETS[name](), rounds)
    for name in ('laptop', 'paper')
  ]
  return comparisons + rates


def _compare_bytes(game: str, period: int, path: str) -> list[Comparison]:
  config = dataclasses.replace(
    config_lib.paper(),
    sequence_period=period,
    batch_size=16,
    envs_per_actor=_NUM_TAPES,
    conv_channels=(4, 4, 4),
    torso_size=32,
    head_size=32,
  )
  case = f'{game}, period {period}'
  progress(f'replay: {case}')
  ours, acme = _measure_bytes(
    case,
    [(our_parts.serve, our_bytes), (acme_parts.serve, acme_bytes)],
    config,
    path,
  )
  frame = compressed_frame_bytes(path)
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
  return [
    Comparison(
      f'{case}: {name}',
      'bytes',
      {LIMIT: [limit], OURS: [ours[i]], ACME: [acme[i]]},
      goal,
      note='limit: each frame compressed once, by zlib' if i == 0 else '',
    )
    for i, (name, limit, goal) in enumerate(quantities)
  ]


def _measure_bytes(
  case: str,
  sides: Sequence[tuple[Callable, Callable]],
  config: R2D2Config,
  path: str,
) -> list[_Bytes]:
  """Of each side, a server and its client; all start at once, then they take turns."""
  with contextlib.ExitStack() as stack:

    def start(function: Callable, *args: Any) -> Worker:
      return stack.enter_context(
        Worker(f'{case}: {function.__module__}', function, *args)
      )

    servers = [start(serve, config) for serve, _ in sides]
    clients = [
      start(client, config, server.measure()[0], path)
      for server, (_, client) in zip(servers, sides, strict=True)
    ]
    for client in clients:
      client.ready()
    results = []
    for server, client in zip(servers, clients, strict=True):
      client.measure()  # the warm-up
      _, before = server.measure()
      num_steps, inserted = client.measure()
      _, after = server.measure()
      results.append(
        ((after - before) / num_steps, inserted / num_steps, client.measure())
      )
  return results


def our_bytes(config: R2D2Config, address: str, path: str) -> Callable[[], Any]:
  """Side: see `_play_and_sample`."""

  def play(rows: slice) -> int:
    tapes = [Tape([tape[rows]]) for tape in np.load(path)]
    player = our_parts.make_player(config, tapes, address)
    return player(lambda: all(tape.is_over for tape in tapes))

  return _play_and_sample(play, lambda: our_parts.make_batches(config, address))


def acme_bytes(config: R2D2Config, address: str, path: str) -> Callable[[], Any]:
  """Side: see `_play_and_sample`; the tapes one after the other."""

  def play(rows: slice) -> int:
    tape = Tape([tape[rows] for tape in np.load(path)])
    actor = acme_parts.make_actor(config, client=reverb.Client(address))
    return acme_parts.make_player(actor, acme_parts.wrap(tape))(lambda: tape.is_over)

  def batches():
    return iter(acme_parts.make_dataset(config, address, num_parallel_calls=1))

  return _play_and_sample(play, batches)


def _play_and_sample(play: Callable[[slice], int], make_batches: Callable):
  """Measures the warm-up, then (steps, bytes) of the inserts, then a batch's bytes."""
  runtime.limit_threads(runtime.num_cores())

  def measurements():
    yield play(slice(_WARM_UP))
    start = _traffic()
    num_steps = play(slice(_WARM_UP, _LENGTH))
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
    is_over: all was played, and its end seen.
  """

  def __init__(self, parts: Sequence[np.ndarray]):
    """Each part, an array of `_ROW`, is made to begin and to end an episode."""
    self._rows = np.concatenate([_whole_episodes(part) for part in parts])
    self._next = 0
    self.is_over = False

  def reset(self) -> dm_env.TimeStep:
    if self._next == len(self._rows):
      self._next = 0
      self.is_over = True
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


def _compare_rates(name: str, config: R2D2Config, rounds: int) -> Comparison:
  case = f'{name}: batches of {config.batch_size}, nobody learning'
  num_batches = max(3, 300 // config.batch_size)
  with Worker(f'{case}: server', our_parts.serve_filled, config) as server:
    address, _ = server.measure()
    sides = {
      LIMIT: Side(our_parts.learn, (config,)),
      OURS: Side(our_parts.sample, (config, address, num_batches)),
    }
    samples = alternate(case, sides, rounds)
  return Comparison(
    case,
    'batches/s',
    {**samples, LIMIT: [1 / seconds for seconds in samples[LIMIT]]},
    goal='>= 3 x limit',
    note='limit: what the learner takes',
  )
