"""Learner steps/s while actors fetch its parameters over courier, as in the program."""

import dataclasses
import itertools
import multiprocessing
import os
import threading
import time
from collections.abc import Callable

import courier

from benchmarks import measuring, our_parts
from benchmarks.measuring import Side, alternate
from benchmarks.report import LIMIT, Comparison
from r2d2_acme import config as config_lib
from r2d2_acme.config import R2D2Config
from r2d2_acme.system import machine, runtime

_NUM_FETCHERS = (1, 4, 16, 64)
# Of each: an actor of one environment at the paper's 65 steps/s.
_FETCH_PERIOD = 400 / 65  # seconds
_MAX_ROUNDS = 3
_MEASURED = 2 * _FETCH_PERIOD  # seconds


def run(rounds: int) -> list[Comparison]:
  """Steps/s with so many fetchers; the limit is without any."""
  # Small batches: many steps, and gaps between them, in which a fetch could hinder.
  config = dataclasses.replace(
    config_lib.laptop(), torso_size=512, core_size=512, head_size=512, batch_size=4
  )
  cores = measuring.all_cores()
  half = len(cores) // 2  # where one machine has the actors, and the other the learner
  learner, actors = (cores[:half], cores[half:]) if half else (cores, cores)
  sides = {LIMIT: Side(learn_and_serve, (config, 0, actors), [learner])}
  for number in _NUM_FETCHERS:
    name = f'{number} fetcher{"s" if number > 1 else ""}'
    sides[name] = Side(learn_and_serve, (config, number, actors), [learner])
  case = 'learner, laptop windows, B = 4, width 512'
  samples = alternate(case, sides, min(rounds, _MAX_ROUNDS))
  num_bytes = sum(value.nbytes for value in _parameters(config))
  note = (
    f'limit: nobody fetches. Each fetcher takes {num_bytes / 1e6:.1f} MB every '
    f'{_FETCH_PERIOD:.2f} s, as an actor of one environment with the paper; 64 take '
    f'{64 * num_bytes / _FETCH_PERIOD / 1e6:.0f} MB/s. The learner has the cores '
    f'{learner}, the fetchers {actors}.'
  )
  return [Comparison(case, 'steps/s', samples, goal='>= 0.9 x limit', note=note)]


def _parameters(config: R2D2Config):
  learner = our_parts.make_builder(config).make_learner(iter([]))
  return learner.get_variables(['policy'])[0]


def learn_and_serve(
  config: R2D2Config, num_fetchers: int, cores: list[int]
) -> Callable[[], float]:
  """Side: learner steps/s on a batch held in memory.

  Args:
    config: of the learner.
    num_fetchers: that fetch while it is measured.
    cores: that these may use.
  """
  runtime.limit_threads(machine.num_cores())
  batch = our_parts.real_batch(config)
  learner = our_parts.make_builder(config).make_learner(itertools.repeat(batch))
  server = courier.Server()
  server.Bind('get_variables', learner.get_variables)
  server.Start()
  learner.step()
  context = multiprocessing.get_context('spawn')
  is_measured, is_ready = context.Event(), context.Event()
  fetchers = context.Process(
    target=_fetch_regularly,
    args=(server.address, num_fetchers, cores, is_measured, is_ready, os.getpid()),
    daemon=True,
  )
  fetchers.start()
  is_ready.wait()

  def measure() -> float:
    is_measured.set()
    start, steps = time.monotonic(), 0
    while time.monotonic() - start < _MEASURED:
      learner.step()
      steps += 1
    is_measured.clear()
    return steps / (time.monotonic() - start)

  measure.keep = server, fetchers  # type: ignore[attr-defined]
  return measure


def _fetch_regularly(
  address: str, number: int, cores: list[int], is_measured, is_ready, learner: int
):
  """Runs so many clients, whose turns are spread over the period.

  They end with the process `learner`.
  """
  measuring.pin(cores)

  def fetch(index: int):
    client = courier.Client(address)
    while True:
      is_measured.wait()
      time.sleep(_FETCH_PERIOD * (index + 1) / number)
      while is_measured.is_set():
        due = time.monotonic() + _FETCH_PERIOD
        client.get_variables(['policy'])
        time.sleep(max(0.0, due - time.monotonic()))

  threads = [
    threading.Thread(target=fetch, args=(index,), daemon=True)
    for index in range(number)
  ]
  for thread in threads:
    thread.start()
  is_ready.set()
  while os.getppid() == learner:
    time.sleep(1)
  runtime.exit_now(0)
