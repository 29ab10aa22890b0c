"""One dataset of the windows of several servers, drawn as from one table.

With priorities p_i and `priority_exponent` a, one table with all windows would draw
window i with probability p_i^a / S, where S is the sum of all p^a. Server s draws it
with p_i^a / S_s from its own, so a server is chosen with probability S_s / S. Reverb
does not tell S_s, but each window that it draws does: S_s = p_i^a / (its probability).
"""

import functools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import reverb
import tensorflow as tf
import tree
from absl import logging
from acme import specs

from r2d2_acme.config import R2D2Config
from r2d2_acme.replay import batches, tables
from r2d2_acme.replay.ratio import Closed, Ratio

_POLL_PERIOD = 0.1  # seconds
_PATIENCE = 1.0  # seconds for an answer, until it is asked whether the server is there
_LIMIT = 10.0  # seconds for an answer of a server that is there
_RETRY_PERIOD = 5.0  # seconds until a server is asked again that gave an error


class Sampler:
  """Draws windows from several servers, and lets new ones in.

  A server is chosen for each window of a batch, by the sums of priorities that the
  servers had when they were last asked. That is one batch ago at most, because each
  batch asks all of them for at least one window, even where none is chosen. The
  probability of a window in a batch is that of the choice times that in its server, so
  it is exact even where the sums have changed since.

  A server that does not answer, or has no windows, is left out until it does.
  """

  def __init__(
    self,
    clients: Sequence[reverb.Client],
    config: R2D2Config,
    environment_spec: specs.EnvironmentSpec,
  ):
    """Starts to let windows in.

    Args:
      clients: of the servers, each with the tables of its shard.
      config: the hyperparameters.
      environment_spec: of the environments whose windows the tables hold.
    """
    self._clients = clients
    self._config = config
    self._spec = environment_spec
    self._shards = [_Shard(client, config, environment_spec) for client in clients]
    self._ratio = Ratio(config)
    self._rng = np.random.default_rng()  # each start of a node draws anew
    self._is_drawing = False
    self._is_allowed = False  # by the ratio, to draw
    self._closed = threading.Event()
    self._start(self._wait_until_filled)
    self._gates = [_Gate(client.server_address) for client in clients]
    for gate in self._gates:
      self._start(self._let_in, gate)

  def make_dataset(self, prefetch: int = 2) -> tf.data.Dataset:
    """As `batches.make_dataset`, of the windows of all servers; made once."""
    spec = tree.map_structure(
      lambda spec: tf.TensorSpec([self._config.batch_size, *spec.shape], spec.dtype),
      self._shards[0].element_spec,
    )
    samples = tf.data.Dataset.from_generator(self._generate, output_signature=spec)
    return batches.prepare(samples, self._config, self._spec, prefetch)

  def is_starved(self) -> bool:
    """Returns whether a learner that waits for a batch has to wait for servers.

    It has not where a server has what it was asked for. The answer may be lost where a
    connection is dead, as after a cut of the network. This method asks all servers, and
    by that Reverb notices, and connects again.
    """
    if not self._is_drawing:
      return False
    if self._is_allowed:
      return not any(map(tables.size, self._clients))
    return not any(map(tables.is_gate_ready, self._clients))

  def close(self):
    """Ends the threads and the dataset."""
    self._closed.set()
    self._ratio.close()
    for shard in self._shards:
      shard.close()
    for gate in self._gates:  # it takes seconds, for which nobody need wait
      threading.Thread(target=gate.close, daemon=True, name='shards').start()

  def _start(self, work: Callable, *args):
    def target():
      try:
        work(*args)
      except Closed:
        pass

    threading.Thread(target=target, daemon=True, name='shards').start()

  def _wait_until_filled(self):
    """Lets sampling begin when all servers together have enough windows."""
    while not self._closed.wait(_POLL_PERIOD):
      infos = [info for info in map(tables.info, self._clients) if info is not None]
      if sum(x.current_size for x in infos) >= self._config.min_replay_size:
        limiters = [x.rate_limiter_info for x in infos]
        self._ratio.begin(
          sum(x.insert_stats.completed for x in limiters),
          sum(x.sample_stats.completed for x in limiters),
        )
        return

  def _let_in(self, gate: '_Gate'):
    """Opens a server's gate whenever the ratio allows it."""
    period = tables.gate_period(self._config)
    while not self._closed.is_set():
      self._ratio.wait_for_inserts(period)
      try:
        gate.open()
      except (reverb.errors.ReverbError, RuntimeError):
        self._closed.wait(_PATIENCE)  # the server is away
      else:
        self._ratio.add_inserts(period)

  def _generate(self) -> Iterator[reverb.ReplaySample]:
    while True:
      self._is_drawing = True
      try:
        sample = self._draw_batch()
      except Closed:
        return
      self._is_drawing = False
      yield sample

  def _draw_batch(self) -> reverb.ReplaySample:
    parts: list[reverb.ReplaySample] = []
    missing = self._config.batch_size
    while missing:
      allowed = self._ratio.take_samples(missing)
      missing -= allowed
      self._is_allowed = True
      while allowed:
        drawn = self._draw(allowed, ask_all=not parts)
        allowed -= sum(len(part.info.key) for part in drawn)
        parts += drawn
      self._is_allowed = False
    return tree.map_structure(lambda *tensors: tf.concat(tensors, axis=0), *parts)

  def _draw(self, number: int, ask_all: bool) -> list[reverb.ReplaySample]:
    """Draws windows, or fewer if a server does not answer or is not known yet."""
    if self._closed.is_set():
      raise Closed()
    while not (shards := [shard for shard in self._shards if shard.is_free()]):
      if self._closed.wait(_POLL_PERIOD):
        raise Closed()
    shares = _shares(shards)
    counts = np.zeros(len(shards), int)
    if shares.any():
      counts = self._rng.multinomial(number, shares)
    for shard, count in zip(shards, counts, strict=True):
      if count or ask_all or not shard.sum:
        shard.ask(max(int(count), 1))
    drawn = []
    for shard, count, share in zip(shards, counts, shares, strict=True):
      sample = shard.wait()
      if sample is not None and count:
        drawn.append(_take(sample, count, share))
    size = sum(shard.size for shard in shards)
    return [_with_size(sample, size) for sample in drawn]


class _Gate:
  """What holds actors back at one server, see `tables.make_tables`."""

  def __init__(self, server_address: str):
    self._client = reverb.pybind.Client(server_address)  # its samplers can be closed
    self._sampler: reverb.pybind.Sampler | None = None
    self._is_closed = False
    self._lock = threading.Lock()

  def open(self):
    """Lets windows in, after those that were let in before have come.

    Raises:
      RuntimeError: the server is away, or the gate was closed in the meantime.
      Closed: the gate has been closed.
    """
    with self._lock:
      if self._is_closed:
        raise Closed()
      self._sampler = self._client.NewSampler(tables.GATE, 1, 1)
    self._sampler.GetNextTrajectory()

  def close(self):
    """Ends the wait of `open`, even for a server that has gone for good."""
    with self._lock:
      self._is_closed = True
      if self._sampler is not None:
        self._sampler.Close()


class _Shard:
  """The windows of one server. It may be away, so a thread waits for its answers.

  Attributes:
    element_spec: a `ReplaySample` of the `tf.TensorSpec`s of one window.
    sum: of the priorities to the power of the exponent, at the last answer; 0 before
      the first one and after a failure.
    size: the number of windows, likewise.
  """

  def __init__(
    self,
    client: reverb.Client,
    config: R2D2Config,
    environment_spec: specs.EnvironmentSpec,
  ):
    self.sum = 0.0
    self.size = 0
    self._client = client
    self._exponent = config.priority_exponent
    make_samples = functools.partial(
      batches.make_samples, config, environment_spec, client.server_address
    )
    self.element_spec = make_samples(1).element_spec
    # By the number of windows: they are made once, because that takes milliseconds.
    self._make_dataset = functools.cache(
      lambda number: make_samples(
        number, max_samples=number, num_workers_per_iterator=1
      ).batch(number)
    )
    self._answer: reverb.ReplaySample | None = None
    self._is_done = threading.Event()
    self._is_done.set()
    self._free_at = 0.0  # when it may be asked again, after a failure
    self._is_closed = False
    # One thread for all requests: TensorFlow keeps 230 bytes of each thread it sees.
    self._requests: queue.SimpleQueue[int] = queue.SimpleQueue()
    threading.Thread(target=self._answer_all, daemon=True, name='shard').start()

  def is_free(self) -> bool:
    """Returns whether it may be asked: the last request is done."""
    return self._is_done.is_set() and time.monotonic() >= self._free_at

  def ask(self, number: int):
    """Requests so many windows."""
    self._answer = None
    self._is_done.clear()
    self._requests.put(number)

  def wait(self) -> reverb.ReplaySample | None:
    """Returns the windows, batched.

    It is None if the server is away, slow, or has none, or if this is closed before.
    """
    deadline = time.monotonic() + _LIMIT
    while not self._is_closed and not self._is_done.wait(_PATIENCE):
      if not tables.size(self._client) or time.monotonic() >= deadline:
        return None  # it is left out until the answer comes
    return self._answer

  def close(self):
    """Ends the thread once the server has answered."""
    self._is_closed = True
    self._requests.put(0)

  def _answer_all(self):
    while number := self._requests.get():
      self._sample(number)

  def _sample(self, number: int):
    try:
      answer = self._make_dataset(number).get_single_element()
      # NumPy's arrays from here on, where they are small: TensorFlow's take longer.
      info = tree.map_structure(lambda x: x.numpy(), answer.info)
      self.sum = float(info.priority[-1] ** self._exponent / info.probability[-1])
      self.size = int(info.table_size[-1])
      self._answer = answer._replace(info=info)
    except tf.errors.OpError as error:
      logging.warning('Sampling from a shard failed: %s', error)
      self.sum, self.size = 0.0, 0
      self._free_at = time.monotonic() + _RETRY_PERIOD
    finally:
      self._is_done.set()


def _shares(shards: Sequence[_Shard]) -> np.ndarray:
  """Returns the probabilities [len(shards)] of servers; zeros if none is known."""
  weights = np.array([shard.sum for shard in shards])
  if not weights.any():  # Reverb draws alike where all priorities are 0
    weights = np.array([float(shard.size) for shard in shards])
  return weights / max(weights.sum(), np.finfo(float).tiny)


def _take(sample: reverb.ReplaySample, count: int, share: float) -> reverb.ReplaySample:
  """Returns the first windows of a server that was chosen with probability `share`."""
  if count < len(sample.info.key):
    sample = tree.map_structure(lambda x: x[:count], sample)
  info = sample.info._replace(probability=sample.info.probability * share)
  return sample._replace(info=info)


def _with_size(sample: reverb.ReplaySample, size: int) -> reverb.ReplaySample:
  info = sample.info._replace(table_size=np.full_like(sample.info.table_size, size))
  return sample._replace(info=info)
