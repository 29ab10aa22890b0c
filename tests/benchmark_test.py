"""`launch/benchmark.py`: its arithmetic, how it measures, and how it fails."""

import pathlib
import subprocess
import sys
import time

import dm_env
import numpy as np
import pytest
from acme import specs
from benchmarks import learner, measuring, report

from tests import helpers

_ROOT = pathlib.Path(__file__).parent.parent


def _record(name, path):
  """A side that writes when it works."""

  def measure():
    with open(path, 'a') as file:
      file.write(f'{name} ')
    return 2.0

  return measure


def _raise():
  raise ValueError('no such part')


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


@pytest.mark.parametrize(
  'function, timeout, message',
  [
    (_raise, 60, 'no such part'),
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
  samples = {report.OURS: [4.0], report.ACME: [8.0]}
  assert report.Comparison('case', 's/step', samples).ratio('ours', 'Acme') == 2.0


def test_acme_has_our_weights():
  from benchmarks import acme_parts, our_parts

  config = helpers.make_config()

  def count(network):
    return sum(int(v.shape.num_elements()) for v in network.variables)

  ours = our_parts.make_builder(config).make_network()
  assert count(acme_parts.make_network(config)) == count(ours)


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
  assert timesteps[8].first()  # from the beginning
