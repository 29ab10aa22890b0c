"""`launch/benchmark.py`: its arithmetic, how it measures, and how it fails."""

import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

import dm_env
import numpy as np
import psutil
import pytest
import reverb
import tree
from acme import specs
from benchmarks import end_to_end, learner, measuring, memory, report

from tests import helpers

_ROOT = helpers.ROOT


def _record(name, path):
  """A side that writes when it works."""

  def measure():
    with open(path, 'a') as file:
      file.write(f'{name} ')
    return 2.0

  return measure


def _raise():
  raise ValueError('no such part')


def _end_of_file():
  raise EOFError('in the set-up')


def _die():
  print('the end', flush=True)
  sys.stdout.flush()
  import os

  os.abort()


def _hang():
  time.sleep(1000)


def test_sides_take_turns(tmp_path):
  path = tmp_path / 'order'
  sides = {name: measuring.Side(_record, (name, path)) for name in 'ab'}
  sides['c'] = measuring.Side(_record, ('c', path), max_rounds=1)
  samples = measuring.alternate('case', sides, rounds=3)
  assert path.read_text().split() == list('abcabab')
  assert samples == {'a': [2.0] * 3, 'b': [2.0] * 3, 'c': [2.0]}


def test_rates_of_processes_that_work_at_once_add_up(tmp_path):
  side = measuring.Side(_record, ('a', tmp_path / 'order'), processes=(None, None))
  assert measuring.alternate('case', {'a': side}, rounds=1) == {'a': [4.0]}


def _affinities():
  """Of all threads, and of one that starts only now."""
  cores = {
    core
    for thread in os.listdir('/proc/self/task')
    for core in os.sched_getaffinity(int(thread))
  }
  new = threading.Thread(target=lambda: cores.update(os.sched_getaffinity(0)))
  new.start()
  new.join()
  return cores


def _look_at_affinities():
  threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
  num_cores = len(_affinities())
  return lambda: (num_cores, _affinities())


def test_worker_is_set_up_on_as_many_cores_as_it_may_use():
  core = measuring.all_cores()[-1]
  for _ in range(2):  # set up on one core, and on another
    with measuring.Worker('one', _look_at_affinities, cores=[core]) as worker:
      assert worker.measure() == (1, {core})
  with measuring.Worker('all', _look_at_affinities) as worker:
    assert worker.measure()[1] == set(measuring.all_cores())


def _serve_at(name):
  return lambda: (f'address of {name}', 'and more')


def _visit(name, address):
  assert address == f'address of {name}'
  return lambda: 1.0


def test_side_gets_the_address_of_its_server():
  sides = {
    name: measuring.Side(_visit, (name,), server=measuring.Side(_serve_at, (name,)))
    for name in 'ab'
  }
  assert measuring.alternate('case', sides, rounds=1) == {'a': [1.0], 'b': [1.0]}


def test_program_that_ends_is_named_with_its_last_words(tmp_path, monkeypatch):
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
  script = 'import sys; print("the cause", file=sys.stderr); sys.exit(1)'
  program = end_to_end.Program('the program', ['-c', script])
  with pytest.raises(measuring.SideFailed, match='the program: it ended: the cause'):
    end_to_end.alternate_programs('case', {'the program': program}, rounds=1)
  assert not list(tmp_path.iterdir())


def test_growth_is_the_slope_of_the_hour(tmp_path):
  path = tmp_path / 'samples.csv'
  rows = [
    (second, name, 1e9 + slope * second)
    for second in range(0, 4001, 20)
    for name, slope in (('actor/0', 100), ('learner/0', 0))
  ]
  path.write_text(''.join(f'{t},{name},{rss:.0f}\n' for t, name, rss in rows))
  series = memory.read(path)
  assert {name: seconds[0] for name, (seconds, _) in series.items()} == {
    'actor/0': 0,
    'learner/0': 0,
  }
  growths = {name: memory.growth(*samples) for name, samples in series.items()}
  assert growths == pytest.approx({'actor/0': 360_000, 'learner/0': 0}, abs=1)
  memory.draw(series, tmp_path / 'figure.png')
  assert (tmp_path / 'figure.png').stat().st_size > 10_000


def test_program_ends_with_all_its_processes(tmp_path):
  path = tmp_path / 'pids'
  script = (
    'import os, subprocess, sys, time\n'
    'code = "import time; time.sleep(99)"\n'
    'child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)\n'
    f'with open({str(path)!r} + ".tmp", "w") as file: file.write(str(child.pid))\n'
    f'os.rename({str(path)!r} + ".tmp", {str(path)!r})\n'
    'time.sleep(99)'
  )
  with end_to_end.Program('the program', ['-c', script]):
    helpers.wait_until(path.exists)
    child = psutil.Process(int(path.read_text()))
    assert child.is_running()
  helpers.wait_until(lambda: not child.is_running() or child.status() == 'zombie')


@pytest.mark.parametrize(
  'function, timeout, message',
  [
    (_raise, 60, 'no such part'),
    (_end_of_file, 60, 'in the set-up'),
    (_die, 60, 'its process died, exit code -6'),
    (_hang, 3, 'no answer in 3 s'),
  ],
)
def test_failing_side_is_named(function, timeout, message):
  with (
    pytest.raises(measuring.SideFailed, match=f'(?s)the side: .*{message}'),
    measuring.Worker('the side', function, timeout=timeout) as worker,
  ):
    worker.ready()


def test_flops_of_a_tiny_network():
  config = helpers.make_config(frame_stack=2, batch_size=3)  # channels 2, 3, 4
  spec = helpers.make_spec()._replace(
    observations=specs.Array((36, 36, 1), 'uint8'),
    actions=specs.DiscreteArray(3),
  )
  first = 2 * (8 * 8 * 2) * 8 * 8 * 2  # 36 -> 8 pixels; kernel x inputs x outputs
  second = 2 * (3 * 3) * 4 * 4 * 2 * 3  # 8 -> 3
  third = 2 * (1 * 1) * 3 * 3 * 3 * 4  # 3 -> 1
  torso = first + second + third + 2 * 4 * 8
  core = 2 * (8 + 3 + 1 + 6) * 4 * 6
  head = 2 * (6 * 8 + 8 * 1) + 2 * (6 * 8 + 8 * 3)
  forward = torso + core + head
  expected = 3 * (2 * 2 * (torso + core) + 5 * (4 * forward - first))
  assert learner.count_flops(config, spec) == expected


def test_exponent_is_that_of_the_power_law():
  x = [1, 2, 4, 8]
  assert report.fit_exponent(x, [3 * v**1.5 for v in x]) == pytest.approx(1.5)


def test_ratio_is_the_median_of_the_rounds():
  samples = {report.LIMIT: [1.0, 8.0, 2.0], report.OURS: [2.0, 2.0, 3.0]}
  rates = report.Comparison('case', 'steps/s', samples)
  assert rates.ratio(report.OURS, report.LIMIT) == 1.5  # of 2, 1/4 and 3/2
  assert rates.ratio(report.OURS, report.ACME) is None
  assert rates.ratio(report.LIMIT, report.LIMIT) is None


def test_ratio_is_of_the_rounds_in_which_both_were_measured():
  samples = {report.OURS: [2.0, 4.0, 9.0], report.ACME: [4.0, 4.0]}
  rates = report.Comparison('case', 'steps/s', samples)
  assert rates.ratio(report.OURS, report.ACME) == 0.75


def test_ratio_of_seconds_is_that_of_speeds():
  samples = {report.OURS: [4.0, 1.0], report.ACME: [8.0, 5.0]}
  assert report.Comparison('case', 's/step', samples).ratio('ours', 'Acme') == 3.5


def test_acme_has_our_weights():
  from benchmarks import acme_parts, our_parts

  config = helpers.make_config()

  def count(network):
    return sum(int(v.shape.num_elements()) for v in network.variables)

  ours = our_parts.make_builder(config).make_network()
  assert count(acme_parts.make_network(config)) == count(ours)


def test_acme_parts_write_windows_and_learn_from_them():
  from benchmarks import acme_parts, our_parts

  config = dataclasses.replace(helpers.make_config(), batch_size=2)
  measure = acme_parts.serve_filled(config)
  address, _ = measure()
  (table,) = reverb.Client(address).server_info().values()
  assert table.current_size >= our_parts.NUM_WINDOWS - 1
  dataset = acme_parts.make_dataset(config, address, num_parallel_calls=1)
  learner = acme_parts.make_learner(config, dataset, address=address)
  before = tree.map_structure(np.copy, learner.get_variables(['policy']))
  assert our_parts.seconds_per_call(learner.step)() > 0
  assert any(map(np.any, map(np.subtract, before[0], learner.get_variables([''])[0])))


def test_acme_program_writes_windows():
  with end_to_end._acme_program() as program:
    output = pathlib.Path(program._folder.name, 'output', 'replay', '0')

    def num_windows() -> int:
      assert program._process.poll() is None, program._process.communicate()
      ports = end_to_end._PORT.findall(output.read_text()) if output.exists() else []
      if not ports:
        return 0
      (table,) = reverb.Client(f'localhost:{ports[-1]}').server_info().values()
      return table.rate_limiter_info.insert_stats.completed

    helpers.wait_until(num_windows, 120)


def _run(*args):
  return subprocess.run(
    [sys.executable, str(_ROOT / 'launch' / 'benchmark.py'), *args],
    capture_output=True,
    text=True,
    timeout=280,
  )


@pytest.mark.parametrize('args', [('nonsense',), ('--rounds=0',), ('--what',)])
def test_bad_input_is_one_line_and_code_2(args):
  process = _run(*args)
  assert process.returncode == 2
  assert len(process.stderr.splitlines()) == 1 and not process.stdout


def test_bare_emulator_steps(monkeypatch):
  from benchmarks import emulator

  monkeypatch.setattr(emulator, '_SECONDS', 0.2)
  monkeypatch.setattr(emulator, '_WARM_UP', 1)
  assert emulator.bare('pong', 2)() > 10


def test_tape_plays_what_was_recorded_as_whole_episodes():
  from benchmarks import replay

  first, mid, last = dm_env.StepType
  rows = np.zeros(7, replay._ROW)
  rows['step_type'] = last, first, mid, last, first, mid, mid
  rows['reward'] = range(7)
  rows['frame'][:, 0, 0, 0] = range(7)
  tape = replay.Tape([rows, rows[3:6]])
  timesteps, num_over = [tape.reset()], []
  while tape.num_over < 2:
    timestep = timesteps[-1]
    timesteps.append(tape.reset() if timestep.last() else tape.step(0))
    num_over.append(tape.num_over)
  episodes = [first, mid, last], [first, mid, last], [first, last]
  assert [t.step_type for t in timesteps[:8]] == sum(episodes, [])
  assert [t.reward for t in timesteps[:8]] == [None, 2, 3, None, 5, 6, None, 5]
  assert num_over == [0, 0, 0, 0, 0, 1, 1, 2]
  frames = [int(t.observation[0, 0, 0]) for t in timesteps]
  assert frames == [1, 2, 3, 4, 5, 6, 4, 5, 1]  # and again
