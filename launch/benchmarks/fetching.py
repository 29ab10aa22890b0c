"""Learner steps/s and bytes/s while actors fetch its parameters, as in the program.

The actors are simulated: threads that fetch over courier and throw away what they get.
"""

import dataclasses
import itertools
import multiprocessing
import pathlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import courier
import numpy as np

from benchmarks import measuring, our_parts
from benchmarks.measuring import Side, alternate
from benchmarks.report import LIMIT, Comparison
from r2d2_acme import config as config_lib
from r2d2_acme.config import R2D2Config
from r2d2_acme.learning.learner import R2D2Learner
from r2d2_acme.results import plotting
from r2d2_acme.running import nodes
from r2d2_acme.system import machine, runtime
from r2d2_acme.workdir import counts as counts_lib

_NUM_FETCHERS = (1, 4, 16, 64, 256)
_FETCHERS_PER_CACHER = 64
# Of each: an actor of one environment at the paper's 65 steps/s.
_FETCH_PERIOD = 400 / 65  # seconds
_REPORT_PERIOD = 1.0  # seconds between reports of counts, as the program's actors
_MAX_ROUNDS = 3
_MEASURED = _FETCH_PERIOD
_SATURATED = 3.0  # seconds
_NUM_SATURATING = 4  # clients that call without a pause
_DIRECT = 'all fetch from the learner'
_CACHED = f'from cachers of {_FETCHERS_PER_CACHER}'
_CONTEXT = multiprocessing.get_context('spawn')
_OUT = pathlib.Path('results', 'fetching.png')


def run(rounds: int) -> list[Comparison]:
  """For each number of fetchers: steps/s and MB/s, with and without cachers."""
  # Small batches: many steps, and gaps between them, in which a fetch could hinder.
  config = dataclasses.replace(
    config_lib.laptop(), torso_size=512, core_size=512, head_size=512, batch_size=4
  )
  cores = measuring.all_cores()
  half = len(cores) // 2  # where one machine has the actors, and the other the learner
  learner, others = (cores[:half], cores[half:]) if half else (cores, cores)
  network = our_parts.make_builder(config).make_network()
  num_bytes = sum(variable.numpy().nbytes for variable in network.variables)
  by_number = {
    number: _compare(config, number, learner, others, num_bytes, rounds)
    for number in _NUM_FETCHERS
  }
  draw(by_number, _OUT)
  comparisons = [x for group in by_number.values() for x in group]
  return [*comparisons, *_saturate(config, learner, others, num_bytes, rounds)]


def _compare(
  config: R2D2Config,
  number: int,
  learner: list[int],
  others: list[int],
  num_bytes: int,
  rounds: int,
) -> list[Comparison]:
  """Learner steps/s, MB/s that it sends, and MB/s that the fetchers get.

  Args:
    config: of the learner.
    number: of fetchers.
    learner: the cores that the learner may use.
    others: the cores that fetchers and cachers may use.
    num_bytes: of the parameters.
    rounds: of all sides, at most `_MAX_ROUNDS`.
  """
  cachers = -(-number // _FETCHERS_PER_CACHER)
  sides = {
    LIMIT: Side(learn_and_serve, (config, 0, 0, others), [learner]),
    _DIRECT: Side(learn_and_serve, (config, number, 0, others), [learner]),
    _CACHED: Side(learn_and_serve, (config, number, cachers, others), [learner]),
  }
  case = f'{number} fetchers'
  samples = alternate(f'learner, {case}', sides, min(rounds, _MAX_ROUNDS))
  steps, sent, fetched = (
    {side: (scale * np.array(x)[:, i]).tolist() for side, x in samples.items()}
    for i, scale in enumerate((1, num_bytes / 1e6, num_bytes / 1e6))
  )
  wanted = number * num_bytes / _FETCH_PERIOD / 1e6
  note = (
    f'laptop windows, B = 4, width 512. Limit: nobody fetches. Each fetcher takes '
    f'{num_bytes / 1e6:.1f} MB every {_FETCH_PERIOD:.2f} s, as an actor of one '
    f'environment with the paper, together {wanted:.0f} MB/s, and reports its counts '
    f'every second. The learner has the cores {learner}, all others {others}.'
  )
  for rates in (sent, fetched):
    del rates[LIMIT]
  return [
    Comparison(case, 'steps/s', steps, goal='>= 0.9 x limit', note=note),
    Comparison(f'{case}, sent by the learner', 'MB/s', sent),
    Comparison(f'{case}, got by them', 'MB/s', fetched),
  ]


def _saturate(
  config: R2D2Config,
  servers: list[int],
  clients: list[int],
  num_bytes: int,
  rounds: int,
) -> list[Comparison]:
  """What one node can serve that does nothing else: MB/s, and reports/s."""
  case = f'one node serves {_NUM_SATURATING} clients without a pause'
  sides = {
    method: Side(serve_alone, (config, method, arguments, clients), [servers])
    for method, arguments in (
      ('get_variables', (['policy'],)),
      ('report', ('actor/0/0/0', {'actor_steps': 1, 'actor_frames': 4})),
    )
  }
  samples = alternate(case, sides, min(rounds, _MAX_ROUNDS))
  sent = [calls * num_bytes / 1e6 for calls in samples['get_variables']]
  return [
    Comparison(f'{case}: parameters', 'MB/s', {'ours': sent}),
    Comparison(f'{case}: reports', 'calls/s', {'ours': samples['report']}),
  ]


def draw(by_number: Mapping[int, Sequence[Comparison]], path: pathlib.Path):
  """Writes a PNG with what `run` measured, against the number of fetchers."""
  pyplot = plotting.pyplot()
  figure, axes = pyplot.subplots(1, 2, figsize=(9, 4), constrained_layout=True)
  numbers = list(by_number)
  for side in (_DIRECT, _CACHED):
    steps, sent, _ = zip(*by_number.values(), strict=True)
    axes[0].plot(numbers, [x.ratio(side, LIMIT) for x in steps], 'o-', label=side)
    axes[1].plot(numbers, [x.median(side) for x in sent], 'o-', label=side)
  axes[0].set_ylabel('learner steps/s, to those without fetchers')
  axes[1].set_ylabel('MB/s sent by the learner')
  for axis in axes:
    axis.set_xscale('log', base=2)
    axis.set_xticks(numbers, map(str, numbers))
    axis.set_xlabel('fetchers')
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize='small')
  path.parent.mkdir(exist_ok=True)
  figure.savefig(path, dpi=120)
  pyplot.close(figure)


class _Served:
  """Serves what a learner's node does, and has processes that end with this one.

  Attributes:
    address: of the server.
    num_sent: how often it has sent the parameters.
  """

  def __init__(self, learner: R2D2Learner):
    self.num_sent = 0
    self._learner = learner
    self._server = courier.Server()
    for method in (self.get_variables, self.get_new_variables):
      self._server.Bind(method.__name__, method)
    self._server.Bind('report', counts_lib.Ledger({}).report)
    self._server.Start()
    self.address = self._server.address
    self._connections: list[Any] = []

  def start(self, function: Callable[..., None], *args: Any):
    """Starts a process; returns a connection to it, its first argument."""
    ours, theirs = _CONTEXT.Pipe()
    _CONTEXT.Process(target=function, args=(theirs, *args), daemon=True).start()
    self._connections.append(ours)  # it ends when this is closed
    return ours

  def get_variables(self, names):
    self.num_sent += 1
    return self._learner.get_variables(names)

  def get_new_variables(self, names, known):
    version, new = self._learner.get_new_variables(names, known)
    self.num_sent += bool(new)
    return version, new


def learn_and_serve(
  config: R2D2Config, num_fetchers: int, num_cachers: int, cores: list[int]
) -> Callable[[], np.ndarray]:
  """Side: learner steps/s on a batch in memory, and fetches/s, its own and all.

  Args:
    config: of the learner.
    num_fetchers: that fetch and report while it is measured.
    num_cachers: that they fetch from; 0 for the learner itself.
    cores: that these may use.
  """
  runtime.limit_threads(machine.num_cores())
  batch = our_parts.real_batch(config)
  learner = our_parts.make_builder(config).make_learner(itertools.repeat(batch))
  served = _Served(learner)
  learner.step()
  cachers = [served.start(_cache, served.address, cores) for _ in range(num_cachers)]
  sources = [cacher.recv() for cacher in cachers] or [served.address]
  is_measured, tally = _CONTEXT.Event(), _CONTEXT.Array('q', 2)
  served.start(
    *(_fetch_regularly, served.address, sources, num_fetchers, is_measured, tally),
    cores,
  ).recv()

  def measure() -> np.ndarray:
    before = np.array([served.num_sent, tally[1]])
    is_measured.set()
    start, steps = time.monotonic(), 0
    while time.monotonic() - start < _MEASURED:
      learner.step()
      steps += 1
    is_measured.clear()
    seconds = time.monotonic() - start
    sent = np.array([served.num_sent, tally[1]]) - before
    while tally[0] != tally[1]:  # the others are not measured before all have ended
      time.sleep(0.1)
    return np.array([steps, *sent]) / seconds

  return measure


def serve_alone(
  config: R2D2Config, method: str, arguments: tuple, cores: list[int]
) -> Callable[[], float]:
  """Side: calls/s of a learner's node that does not learn.

  Args:
    config: of the learner.
    method: that is called.
    arguments: of the calls.
    cores: that the clients may use.
  """
  served = _Served(our_parts.make_builder(config).make_learner(iter([])))
  connection = served.start(_call, served.address, method, arguments, cores)
  connection.recv()

  def measure() -> float:
    connection.send(True)
    return connection.recv()

  return measure


def _is_asked(connection) -> bool:
  """Waits for something to arrive; ends the process if the other side has ended."""
  try:
    return connection.recv()
  except (EOFError, OSError):
    runtime.exit_now(0)


def _cache(connection, learner: str, cores: list[int]):
  """Runs a cacher and sends its address."""
  measuring.pin(cores)
  node = nodes.CacherNode(courier.Client(learner), stop=threading.Event())
  server = courier.Server()
  server.Bind('get_variables', node.get_variables)
  server.Start()
  threading.Thread(target=node.run, daemon=True).start()
  connection.send(server.address)
  _is_asked(connection)


def _fetch_regularly(
  connection,
  learner: str,
  sources: list[str],
  number: int,
  is_measured,
  tally,
  cores: list[int],
):
  """Runs so many clients, whose turns are spread over the period.

  Args:
    connection: that is sent something once they are ready.
    learner: the address that they report to.
    sources: the addresses that they fetch from, each as many of them.
    number: of clients.
    is_measured: an event that is set while they shall fetch.
    tally: the numbers of fetches that were begun, and that were ended.
    cores: that the process may use.
  """
  measuring.pin(cores)

  def count(index: int):
    with tally.get_lock():
      tally[index] += 1

  def fetch(index: int):
    client = courier.Client(sources[index * len(sources) // number])
    while True:
      is_measured.wait()
      time.sleep(_FETCH_PERIOD * (index + 0.5) / number)
      while is_measured.is_set():
        due = time.monotonic() + _FETCH_PERIOD
        count(0)
        client.get_variables(['policy'])
        count(1)
        time.sleep(max(0.0, due - time.monotonic()))

  def report():
    client = courier.Client(learner)
    for index in itertools.cycle(range(number)):
      is_measured.wait()
      due = time.monotonic() + _REPORT_PERIOD / number
      client.report(f'actor/{index}/0/0', {'actor_steps': 1, 'actor_frames': 4})
      time.sleep(max(0.0, due - time.monotonic()))

  for index in range(number):
    threading.Thread(target=fetch, args=(index,), daemon=True).start()
  if number:
    threading.Thread(target=report, daemon=True).start()
  connection.send(True)
  _is_asked(connection)


def _call(connection, address: str, method: str, arguments: tuple, cores: list[int]):
  """Calls without a pause whenever it is asked to, and sends the calls/s."""
  measuring.pin(cores)
  clients = [courier.Client(address) for _ in range(_NUM_SATURATING)]

  def call(client: courier.Client, num_calls: list[int], deadline: float):
    while time.monotonic() < deadline:
      getattr(client, method)(*arguments)
      num_calls.append(1)

  connection.send(True)
  while _is_asked(connection):
    num_calls: list[int] = []
    start = time.monotonic()
    threads = [
      threading.Thread(target=call, args=(client, num_calls, start + _SATURATED))
      for client in clients
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    connection.send(len(num_calls) / (time.monotonic() - start))
