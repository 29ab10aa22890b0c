"""A scripted world for the tests of acting and replay: every frame says where it is.

Environments play episodes of given lengths and keep a tape of what happened in them;
a recording network keeps what the actor saw. Whatever replay returns can be looked up
in both by the key (environment, episode, step) that is written in each frame.
"""

import contextlib
import csv
import ctypes
import dataclasses
import gc
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import acme
import dm_env
import numpy as np
import psutil
import reverb
import sonnet as snt
import tensorflow as tf
import tree
from acme.utils import counting, loggers
from dm_env import specs
from reverb import reverb_types

from r2d2_acme import config as config_lib
from r2d2_acme import types
from r2d2_acme.acting.loop import VectorEnvironmentLoop
from r2d2_acme.builder import R2D2Builder
from r2d2_acme.replay import tables

ROOT = pathlib.Path(__file__).parent.parent
LAUNCH = ROOT / 'launch'
NUM_ACTIONS = 3
_DISCOUNT_SPEC = specs.BoundedArray((), np.float32, 0, 1)


class Key(NamedTuple):
  environment: int
  episode: int
  step: int


class Episode(NamedTuple):
  length: int  # transitions
  terminates: bool  # else it is truncated


class Transition(NamedTuple):
  """The one that led to a frame; (0, 0, 1) at an episode's first."""

  action: int
  reward: float
  discount: float


class ScriptedEnvironment(dm_env.Environment):
  """Plays its episodes, whatever the actions. Frames: see `frame_of`.

  Attributes:
    tape: `Transition` by `Key`.
    is_over: whether all episodes were played.
  """

  frames_per_step = 4

  def __init__(self, episodes: Sequence[Episode], index: int = 0, image: bool = True):
    self.tape: dict[Key, Transition] = {}
    self.is_over = False
    self._episodes = episodes
    self._image = image
    self._key = Key(index, -1, 0)
    # As emulators do, it has one buffer and gives it away again and again.
    self._frame = frame_of(self._key, image).copy()

  def reset(self) -> dm_env.TimeStep:
    self._key = Key(self._key.environment, self._key.episode + 1, 0)
    self.is_over = self._key.episode == len(self._episodes)
    self.tape[self._key] = Transition(0, 0.0, 1.0)
    return dm_env.restart(self._observe())

  def step(self, action) -> dm_env.TimeStep:
    episode = self._episodes[self._key.episode]
    assert self._key.step < episode.length, 'stepped past the end'
    self._key = self._key._replace(step=self._key.step + 1)
    is_last = self._key.step == episode.length
    discount = np.float32(not (is_last and episode.terminates))
    reward = np.float32(3 * np.random.default_rng((1, *self._key)).normal())
    self.tape[self._key] = Transition(int(action), float(reward), float(discount))
    step_type = dm_env.StepType.LAST if is_last else dm_env.StepType.MID
    return dm_env.TimeStep(step_type, reward, discount, self._observe())

  def observation_spec(self):
    return specs.Array(self._frame.shape, self._frame.dtype)

  def action_spec(self):
    return specs.DiscreteArray(NUM_ACTIONS, np.int32)

  def discount_spec(self):
    return _DISCOUNT_SPEC

  def _observe(self) -> np.ndarray:
    self._frame[...] = frame_of(self._key, self._image)
    return self._frame


def frame_of(key: Key, image: bool) -> np.ndarray:
  """Noise that is another at each key, with the key in front; never all zeros."""
  rng = np.random.default_rng((0, key.environment, key.episode + 1, key.step))
  if image:
    frame = rng.integers(256, size=(36, 36, 1), dtype=np.uint8)
    frame[0, :3, 0] = np.array(key) % 256
    return frame
  # Sixteenths are exact in float32.
  return np.concatenate([np.array(key) / 16, rng.normal(size=4)]).astype(np.float32)


def key_of(observation: np.ndarray) -> Key:
  """The key in the newest frame of a stack, or in a vector."""
  if observation.ndim == 3:
    return Key(*map(int, observation[0, :3, -1]))
  return Key(*map(int, np.rint(16 * observation[:3])))


def make_config(**overrides: Any) -> config_lib.R2D2Config:
  """A small network and small windows."""
  return config_lib.R2D2Config(
    **{
      'burn_in_length': 2,
      'trace_length': 4,
      'sequence_period': 4,
      'n_step': 2,
      'discount': 0.9,
      'batch_size': 16,
      'conv_channels': (2, 3, 4),
      'torso_size': 8,
      'core_size': 6,
      'head_size': 8,
      'num_actors': 1,
      'envs_per_actor': 1,
      'max_replay_size': 1000,
      'min_replay_size': 10,
      'samples_per_insert': 1.0,
      'samples_per_insert_tolerance': 0.2,
      **overrides,
    }
  )


def make_spec(image: bool = True):
  return acme.make_environment_spec(ScriptedEnvironment([], image=image))


class Acted(NamedTuple):
  """What the network saw and answered at one step."""

  observation: types.Observation
  core_state: snt.LSTMState  # before the step
  q: np.ndarray


class RecordingNetwork:
  """Passes calls on to a network and keeps, by `Key`, what went in and out."""

  def __init__(self, network):
    self.network = network
    self.variables = network.variables
    self.initial_state = network.initial_state
    self.acted: dict[Key, Acted] = {}

  def __call__(self, observation, core_state):
    q, next_state = self.network(observation, core_state)
    structure = Acted(observation, core_state, q)

    def record(*flat):
      batch = tree.unflatten_as(structure, [np.array(x) for x in flat])
      for i in range(len(batch.q)):
        row = tree.map_structure(lambda x: x[i], batch)  # noqa: B023
        key = key_of(row.observation.observation)
        assert key not in self.acted, f'{key} acted twice'
        self.acted[key] = row

    tf.numpy_function(record, tree.flatten(structure), [])
    return q, next_state


def start_server(tables: Sequence[reverb.Table]) -> tuple[reverb.Server, reverb.Client]:
  """A Reverb server in this process, and a client of it.

  To stop it takes 5 seconds while a writer is connected: drop adders first.
  """
  server = reverb.Server(tables, port=None)
  return server, reverb.Client(f'localhost:{server.port}')


class Run(NamedTuple):
  """What some environments lived through, and what replay made of it.

  Attributes:
    config: that of the run.
    builder: that of the run.
    network: the one that acted, `RecordingNetwork`.
    episodes: [environment][episode].
    tape: the environments' account.
    rows: the loop's log.
    counts: the loop's counter.
    windows: all windows, see `read_windows`.
    priorities: of these windows in the table; [len(windows)].
  """

  config: config_lib.R2D2Config
  builder: R2D2Builder
  network: RecordingNetwork
  episodes: Sequence[Sequence[Episode]]
  tape: Mapping[Key, Transition]
  rows: Sequence[Mapping[str, Any]]
  counts: Mapping[str, float]
  windows: Sequence[types.Batch]
  priorities: np.ndarray


def run(
  config: config_lib.R2D2Config,
  episodes: Sequence[Sequence[Episode]],
  image: bool = True,
  act: Callable | None = None,
  environment_type: type[ScriptedEnvironment] = ScriptedEnvironment,
) -> Run:
  """Plays all episodes of all environments and reads replay back, all of it.

  Args:
    config: its `envs_per_actor` and its `priority_exponent` are overwritten.
    episodes: [environment][episode].
    image: or vectors.
    act: used instead of `play`.
    environment_type: of the environments.
  """
  # With exponent 0 the table's own sampler is uniform: all windows are soon seen.
  config = dataclasses.replace(
    config, envs_per_actor=len(episodes), priority_exponent=0.0
  )
  builder = R2D2Builder(config, make_spec(image))
  environments = [
    environment_type(script, index, image) for index, script in enumerate(episodes)
  ]
  network = RecordingNetwork(builder.make_network())
  counter, logger = counting.Counter(), loggers.InMemoryLogger()
  server, client = start_server(builder.make_tables(reverb.rate_limiters.MinSize(1)))

  def act_and_flush():
    actor = builder.make_actor(network=network, replay_clients=[client])
    (act or play)(environments, actor, counter, logger)
    actor.flush()
    assert table_info(client).current_size == actor.num_windows

  act_and_flush()
  windows = read_windows(config, builder, client)
  priorities = read_priorities(client)
  gc.collect()
  server.stop()
  return Run(
    config=config,
    builder=builder,
    network=network,
    episodes=episodes,
    tape={key: value for env in environments for key, value in env.tape.items()},
    rows=logger.data,
    counts=counter.get_counts(),
    windows=windows,
    priorities=np.array([priorities[window.keys] for window in windows]),
  )


def play(environments, actor, counter=None, logger=None):
  """All episodes of all environments, which have equally many and long ones."""
  VectorEnvironmentLoop(
    environments,
    actor,
    counter or counting.Counter(),
    logger or loggers.NoOpLogger(),
    should_stop=lambda: environments[0].is_over,
  ).run()
  assert all(environment.is_over for environment in environments)


def wait_until(condition, timeout: float = 60.0):  # seconds
  """Waits; most of the time without looking, as what it waits for needs the cores."""
  deadline = time.time() + timeout
  started = time.perf_counter()
  while not condition():
    assert time.time() < deadline, 'never happened'
    time.sleep(max(0.01, 4 * (time.perf_counter() - started)))
    started = time.perf_counter()


def command_line(process: psutil.Process) -> str:
  """Returns the command of a process; '' if it has ended."""
  with contextlib.suppress(psutil.Error):
    return ' '.join(process.cmdline())
  return ''


def is_alive(process: psutil.Process | int) -> bool:
  """Returns whether a process, or that of a pid, runs and is no zombie."""
  with contextlib.suppress(psutil.NoSuchProcess):
    process = (
      process if isinstance(process, psutil.Process) else psutil.Process(process)
    )
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
  return False


def table_info(client: reverb.Client) -> reverb_types.TableInfo:
  return client.server_info(timeout=10)[tables.TABLE]


def read_windows(
  config: config_lib.R2D2Config, builder: R2D2Builder, client: reverb.Client
) -> list[types.Batch]:
  """All windows of a table with exponent 0, once each, through the dataset.

  Without the batch's axis, in the order of the first rows they train.
  """
  size = table_info(client).current_size
  windows: dict[int, types.Batch] = {}
  for batch in builder.make_dataset(client.server_address):
    batch = tree.map_structure(lambda x: x.numpy(), batch)
    for i, key in enumerate(batch.keys):
      if key not in windows:
        windows[key] = types.Batch(
          *(
            tree.map_structure(
              lambda x: x[:, i] if name in _TIME_MAJOR else x[i],  # noqa: B023
              value,
            )
            for name, value in batch._asdict().items()
          )
        )
    if len(windows) == size:
      break

  def first_trained(window):
    return key_of(window.observations.observation[config.burn_in_length])

  return sorted(windows.values(), key=first_trained)


def make_batch(windows: Sequence[types.Batch]) -> types.Batch:
  """What `read_windows` took apart, as tensors."""

  def stack(name, values):
    axis = 1 if name in _TIME_MAJOR else 0
    return tree.map_structure(lambda *xs: tf.constant(np.stack(xs, axis)), *values)

  return types.Batch(
    *(
      stack(name, [getattr(window, name) for window in windows])
      for name in types.Batch._fields
    )
  )


_TIME_MAJOR = ('observations', 'discount', 'mask')


def read_priorities(client: reverb.Client) -> dict[int, float]:
  """Priority by key, of all windows of a table with exponent 0."""
  size = table_info(client).current_size
  priorities: dict[int, float] = {}
  while len(priorities) < size:
    for sample in client.sample(tables.TABLE, 2 * size, emit_timesteps=False):
      priorities[sample.info.key] = sample.info.priority
  return priorities


def read_rows(path: pathlib.Path) -> list[dict[str, float]]:
  """The whole rows of a log that may be being written, or not be there yet."""
  if not path.exists():
    return []
  whole, _, _ = path.read_text().rpartition('\n')
  return [
    {key: float(value) for key, value in row.items()}
    for row in csv.DictReader(whole.splitlines())
  ]


def growth(call: Callable[[], Any], *, warm_up: int, num_calls: int) -> int:
  """Bytes that some calls, after some more, allocate and never free.

  The C library's own count: a process's memory does not tell, since a leak first fills
  what others have freed.
  """
  for _ in range(warm_up):
    call()
  gc.collect()
  before = _allocated_bytes()
  for _ in range(num_calls):
    call()
  gc.collect()
  return ctypes.c_int32(_allocated_bytes() - before).value


class _Mallinfo(ctypes.Structure):
  """glibc's `struct mallinfo`, whose numbers wrap around at 2^32."""

  _fields_ = [
    (name, ctypes.c_uint32)
    for name in (
      *('arena', 'ordblks', 'smblks', 'hblks', 'hblkhd'),
      *('usmblks', 'fsmblks', 'uordblks', 'fordblks', 'keepcost'),
    )
  ]


def _allocated_bytes() -> int:
  mallinfo = ctypes.CDLL(None).mallinfo
  mallinfo.restype = _Mallinfo
  info = mallinfo()
  return info.uordblks + info.hblkhd
