"""The whole program, in threads of this process, on a real game."""

import contextlib
import dataclasses
import math
import pathlib
import signal
import subprocess
import sys
import types
from typing import Any, NamedTuple

import acme
import courier
import dm_env
import launchpad as lp
import numpy as np
import pytest
import reverb
from absl import flags
from absl.testing import flagsaver

from r2d2_acme import environments
from r2d2_acme import experiment as experiment_lib
from r2d2_acme import program as program_lib
from r2d2_acme.acting.exploration import epsilon_ladder
from r2d2_acme.acting.policy import BatchedActor
from r2d2_acme.builder import R2D2Builder, environment_seed, evaluator_seed
from r2d2_acme.experiment import Experiment
from r2d2_acme.system import machine
from r2d2_acme.workdir import checkpointing, manifests
from r2d2_acme.workdir import sittings as sittings_lib
from r2d2_acme.workdir import status as status_lib
from tests import helpers

_LAUNCH = helpers.LAUNCH
_TIMEOUT = 240  # seconds; it takes a tenth on an idle machine
_CONFIG = helpers.make_config(
  burn_in_length=4,
  trace_length=8,
  sequence_period=8,
  batch_size=4,
  num_actors=2,
  envs_per_actor=2,
  min_replay_size=20,
  max_replay_size=200,
  variable_update_period=10,
  target_update_period=5,
  evaluation_period=0.1,
)


_seeds: list[int] = []


def _make_pong(seed: int) -> dm_env.Environment:
  """With episodes of a hundred steps."""
  _seeds.append(seed)
  return environments.make_atari('pong', seed=seed, max_episode_frames=400)


class _Run(NamedTuple):
  """What a program did.

  Attributes:
    groups: number of nodes by group.
    rows: by label.
    priorities: of windows in the table.
    initial: the network's variables before the first learner step.
    final: what the learner served at the end: variables and learner steps.
    learner_steps: of the last row before that.
    counts: of the last checkpoint.
    seeds: of the environments that nodes made.
    fetched: learner steps behind the parameters that the evaluator fetched.
    sittings: of the workdir.
  """

  groups: dict[str, int]
  rows: dict[str, list[dict[str, float]]]
  priorities: list[float]
  initial: list[np.ndarray]
  final: list[Any]
  learner_steps: int
  counts: dict[str, float]
  seeds: list[int]
  fetched: list[int]
  sittings: list[sittings_lib.Sitting]


@pytest.fixture(scope='module', autouse=True)
def launchpad():
  """Launchpad reads flags, and leaves its signal handlers behind."""
  numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGALRM)
  handlers = {number: signal.getsignal(number) for number in numbers}
  with flagsaver.flagsaver(lp_termination_notice_secs=_TIMEOUT):
    flags.FLAGS.mark_as_parsed()
    yield
  for number, handler in handlers.items():
    signal.signal(number, handler)


def _read_rows(workdir: pathlib.Path) -> dict[str, list[dict[str, float]]]:
  paths = workdir.glob('logs/*/logs.csv')
  return {path.parent.name: helpers.read_rows(path) for path in paths}


def _is_done(rows) -> bool:
  labels = ('learner', 'actor', 'actor_1', 'evaluator')
  return all(rows.get(label) for label in labels) and (
    rows['learner'][-1]['learner_steps'] > _CONFIG.target_update_period
    and rows['learner'][-1]['parameter_age'] < rows['learner'][-1]['learner_steps']
    and rows['evaluator'][-1]['learner_steps'] > 0
  )


@pytest.fixture(scope='module')
def fetched():
  """Learner steps behind the parameters of each `BatchedActor.fetch`."""
  steps: list[int] = []
  fetch = BatchedActor.fetch

  def fetch_and_note(actor: BatchedActor, source):
    fetch(actor, source)
    steps.append(actor.learner_steps)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(BatchedActor, 'fetch', fetch_and_note)
    yield steps


@contextlib.contextmanager
def _launched(workdir: pathlib.Path):
  """The nodes of a program that runs for as long."""
  program = program_lib.make_program(
    Experiment(_CONFIG, _make_pong, workdir=str(workdir))
  )
  nodes = program.groups
  _seeds.clear()
  cleanups: list[Any] = []
  lp.launch(
    program,
    launch_type='test_mt',
    test_case=types.SimpleNamespace(addCleanup=cleanups.append),
  )
  try:
    yield nodes
  finally:
    for cleanup in cleanups:
      cleanup()
    # Who still waits for it in C++ must be gone before this process is.
    nodes['replay'][0]._server.stop()


@pytest.fixture(scope='module')
def workdir(tmp_path_factory) -> pathlib.Path:
  return tmp_path_factory.mktemp('workdir')


@pytest.fixture(scope='module')
def run(launchpad, fetched, workdir) -> _Run:
  with _launched(workdir) as nodes:
    helpers.wait_until(lambda: _is_done(_read_rows(workdir)), timeout=_TIMEOUT)
    rows = _read_rows(workdir)
    learner = courier.Client(nodes['learner'][0].courier_address.resolve())
    (final,) = learner.get_variables(['policy'])
    replay = reverb.Client(nodes['replay'][0].reverb_address.resolve())
    samples = list(replay.sample('windows', 50, emit_timesteps=False))
  seeds = list(_seeds)
  spec = acme.make_environment_spec(_make_pong(0))
  return _Run(
    groups={name: len(group) for name, group in nodes.items()},
    rows=_read_rows(workdir),
    priorities=[sample.info.priority for sample in samples],
    initial=[v.numpy() for v in R2D2Builder(_CONFIG, spec).make_network().variables],
    final=final,
    learner_steps=int(rows['learner'][-1]['learner_steps']),
    counts=checkpointing.verify(str(workdir)),
    seeds=seeds,
    fetched=list(fetched),
    sittings=sittings_lib.read(str(workdir)),
  )


def test_every_part_is_a_node(run):
  assert run.groups == {
    'replay': 1,
    'learner': 1,
    'actor': 2,
    'evaluator': 1,
  }


def test_every_environment_has_a_seed_of_its_own(run):
  seeds = [environment_seed(_CONFIG, i) for i in range(_CONFIG.num_environments)]
  assert len({*seeds, evaluator_seed(_CONFIG)}) == 5
  assert sorted(run.seeds) == sorted([*seeds, evaluator_seed(_CONFIG)])


def test_learner_learns(run):
  for row in run.rows['learner']:
    assert all(math.isfinite(value) for value in row.values()), row
    assert row['loss'] > 0
    assert row['gradient_norm'] > 0
  steps = [row['learner_steps'] for row in run.rows['learner']]
  assert steps == sorted(set(steps))
  *final, num_steps = run.final
  assert num_steps >= run.learner_steps
  moved = [not np.array_equal(a, b) for a, b in zip(run.initial, final, strict=True)]
  assert all(moved)


def test_priorities_are_the_windows_own(run):
  assert all(priority > 0 for priority in run.priorities)
  assert len(set(run.priorities)) > 10


def test_actors_write_their_own_rows_with_epsilons_of_their_own(run):
  ladder = epsilon_ladder(_CONFIG)
  for label, share in {'actor': ladder[:2], 'actor_1': ladder[2:]}.items():
    rows = run.rows[label]
    assert {row['epsilon'] for row in rows} <= set(share)
    assert all(row['episode_length'] == 100 for row in rows)
    assert all(row['steps_per_second'] > 0 for row in rows)


def test_all_nodes_count_together(run):
  for rows in run.rows.values():
    assert all(row['actor_frames'] == 4 * row['actor_steps'] for row in rows)
  # Nodes hear of each other once a second.
  for label in ('actor', 'actor_1'):
    assert run.rows[label][-1]['actor_episodes'] > len(run.rows[label])
  assert run.counts['actor_steps'] >= run.rows['learner'][0]['actor_steps'] > 0


def test_evaluator_plays_each_episode_with_fresh_parameters(run):
  rows = run.rows['evaluator']
  assert all(row['episode_length'] == 100 for row in rows)
  assert len(run.fetched) in (len(rows), len(rows) + 1)  # one may have been cut short
  assert run.fetched == sorted(run.fetched)
  assert run.fetched[-1] > 0
  # Its rows say which parameters those were, not how far the program was at the end.
  assert [row['learner_steps'] for row in rows] == run.fetched[: len(rows)]


def test_evaluator_stays_out_of_the_actors_counts(run):
  rows = run.rows['evaluator']
  assert [row['evaluator_episodes'] for row in rows] == list(range(1, len(rows) + 1))


def test_actors_act_with_new_parameters(run):
  last = run.rows['learner'][-1]
  # With the first parameters for ever, the age would be the number of steps.
  assert last['parameter_age'] < last['learner_steps']


def test_learner_saves_when_the_program_stops(run):
  assert run.counts['learner_steps'] >= run.rows['learner'][-1]['learner_steps']


def test_replay_is_filled_at_the_ratio(run):
  last = run.rows['learner'][-1]
  assert last['replay_size'] >= _CONFIG.min_replay_size
  # The first windows are for filling only, and the rest within the limiter's bounds.
  assert 0 < last['sampled_to_inserted'] <= _CONFIG.samples_per_insert


def test_damaged_checkpoint_is_found_before_any_node_starts(tmp_path):
  experiment = Experiment(_CONFIG, _make_pong, workdir=str(tmp_path))
  experiment_lib.begin(experiment)
  folder = pathlib.Path(checkpointing.directory(str(tmp_path)))
  folder.mkdir(parents=True)
  (folder / 'ckpt-1.index').touch()
  with pytest.raises(checkpointing.CheckpointError):
    program_lib.make_program(experiment)


def test_rows_and_the_list_of_sittings_have_its_number(run):
  for rows in run.rows.values():
    assert {row['sitting'] for row in rows} == {0}
  ((number, counts),) = run.sittings
  assert number == 0
  assert set(counts.values()) == {0}


def test_resumed_program_has_other_seeds_and_counts_on(run, workdir):
  num_rows = len(run.rows['actor'])
  with _launched(workdir):
    helpers.wait_until(
      lambda: len(_read_rows(workdir)['actor']) > num_rows, timeout=_TIMEOUT
    )
    helpers.wait_until(lambda: len(_seeds) == 5, timeout=_TIMEOUT)
  seeds = [environment_seed(_CONFIG, i, 1) for i in range(_CONFIG.num_environments)]
  assert sorted(_seeds) == sorted([*seeds, evaluator_seed(_CONFIG, 1)])
  assert not set(_seeds) & set(run.seeds)
  _, second = sittings_lib.read(str(workdir))
  assert second.number == 1
  assert second.counts == {name: run.counts[name] for name in second.counts}
  row = _read_rows(workdir)['actor'][num_rows]
  assert row['sitting'] == 1
  assert row['actor_steps'] > run.counts['actor_steps']


def test_evaluator_is_optional():
  program = program_lib.make_program(Experiment(_CONFIG, _make_pong, evaluator=False))
  assert set(program.groups) == {'replay', 'learner', 'actor'}


def test_actors_share_cachers():
  config = dataclasses.replace(_CONFIG, num_actors=5, actors_per_cacher=2)
  groups = program_lib.make_program(Experiment(config, _make_pong)).groups
  fetched_from = [
    [cacher for cacher in groups['cacher'] if _knows(actor, cacher)]
    for actor in groups['actor']
  ]
  a, b, c = groups['cacher']
  assert fetched_from == [[a], [a], [b], [b], [c]]
  (learner,) = groups['learner']
  (evaluator,) = groups['evaluator']
  # Counts and returns go to the learner.
  assert all(_knows(node, learner) for node in (a, b, c, *groups['actor'], evaluator))


def _knows(node: lp.PyClassNode, other: lp.CourierNode) -> bool:
  handles = [x for x in node.input_handles if isinstance(x, lp.CourierHandle)]
  return any(handle._address is other.courier_address for handle in handles)


def test_cachers_are_counted_in_the_memory(monkeypatch):
  monkeypatch.setattr(machine, 'memory_limit', lambda: 3 << 30)
  config = dataclasses.replace(_CONFIG, num_actors=3)
  experiment_lib.begin(Experiment(config, _make_pong), config.num_actors + 3)
  config = dataclasses.replace(config, actors_per_cacher=2)
  with pytest.raises(experiment_lib.BadInput, match='3.5 GiB for 8 processes'):
    program_lib.make_program(Experiment(config, _make_pong))


_SMALL = (
  '--env=CartPole-v1',
  '--noevaluator',
  '--num_actors=1',
  '--envs_per_actor=2',
  '--config.max_replay_size=1000',
)


@pytest.mark.parametrize('launch_type', ['local_mp', 'local_mt'])
def test_last_checkpoint_has_the_counts_that_reached_the_limit(tmp_path, launch_type):
  """In a folder with a name that TensorFlow, for one, would take for a pattern."""
  workdir = tmp_path / 'run [1]*?\\%d\n'
  command = [sys.executable, _LAUNCH / 'atari_distributed.py', *_SMALL]
  command += [f'--lp_launch_type={launch_type}', f'--workdir={workdir}']
  # It ends before learning starts, so that no learner step makes it save.
  command += ['--max_actor_steps=300', '--config.min_replay_size=900']
  subprocess.run(command, check=True, timeout=_TIMEOUT, stdin=subprocess.DEVNULL)
  counts = checkpointing.verify(str(workdir))
  assert counts['actor_steps'] >= 300
  assert counts['learner_steps'] == 0
  assert len(checkpointing.find(str(workdir))) == 1


def test_program_with_two_shards_trains_and_saves_both(tmp_path):
  command = [sys.executable, _LAUNCH / 'atari_distributed.py', *_SMALL]
  command += ['--config.num_replay_shards=2', '--config.min_replay_size=50']
  command += ['--config.batch_size=8', f'--workdir={tmp_path}']
  command += ['--max_learner_steps=20']
  subprocess.run(command, check=True, timeout=_TIMEOUT, stdin=subprocess.DEVNULL)
  assert checkpointing.verify(str(tmp_path))['learner_steps'] >= 20
  status = status_lib.read(str(tmp_path))
  assert {'replay/0', 'replay/1'} <= status.nodes.keys()
  *_, manifest = manifests.read_sound(str(tmp_path)).values()
  assert {replay.shard for replay in manifest.replays} == {0, 1}


_DIVERGING = """
import sys
from absl import app
from acme import wrappers
from r2d2_acme import environments, experiment, program
from r2d2_acme.running import launching
from tests import helpers

class Exploding(wrappers.EnvironmentWrapper):
  def step(self, action):
    return super().step(action)._replace(reward=1e30)

def main(_):
  return launching.launch(
    program.make_program(
      experiment.Experiment(
        helpers.make_config(),
        lambda seed: Exploding(environments.make_cue_recall(seed=seed)),
        workdir=sys.argv[1],
        evaluator=False,
      )
    ),
    sys.argv[2],
    sys.argv[1] + '/output',
  )

app.run(main)
"""


@pytest.mark.parametrize('launch_type', ['local_mp', 'local_mt'])
def test_learner_that_fails_saves(tmp_path, launch_type):
  command = [sys.executable, '-c', _DIVERGING, str(tmp_path), launch_type]
  ended = subprocess.run(
    command, timeout=_TIMEOUT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
  )
  assert ended.returncode == 1
  cause, last = ['', *ended.stderr.decode().splitlines()][-2:]
  assert last.startswith('learner/0 failed')
  assert 'the gradient was not finite' in cause + last
  assert checkpointing.verify(str(tmp_path))['learner_steps'] == 0


_IN_USE = """
import socket, sys
from unittest import mock
import portpicker
from absl import app
from r2d2_acme import environments, experiment, program
from r2d2_acme.running import launching, supervision
from tests import helpers

taken = socket.create_server(('', 0))
find_port = portpicker.pick_unused_port
ports = []

def pick(*args):
  ports.append(find_port(*args))
  return taken.getsockname()[1] if len(ports) == int(sys.argv[2]) else ports[-1]

def main(_):
  with mock.patch.object(portpicker, 'pick_unused_port', pick):
    return launching.launch(
      program.make_program(
        experiment.Experiment(
          helpers.make_config(),
          lambda seed: environments.make_cue_recall(seed=seed),
          workdir=sys.argv[1],
        )
      ),
      'local_mp',
      sys.argv[1] + '/output',
      network='host',
      policy=supervision.Policy(max_restarts=0),
    )

app.run(main)
"""


@pytest.mark.parametrize(('number', 'node'), [(1, 'replay/0'), (2, 'learner/0')])
def test_port_that_another_program_took_is_named(tmp_path, number, node):
  """It was free a moment before, when the launcher looked for one."""
  command = [sys.executable, '-c', _IN_USE, str(tmp_path), str(number)]
  ended = subprocess.run(
    command, timeout=_TIMEOUT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
  )
  assert ended.returncode == 1
  *_, cause, last = ['', '', *ended.stderr.decode().splitlines()]
  assert 'in use by another program' in cause + last
  assert last.startswith(f'{node} failed')


_WITHOUT_WORKDIR = """
import sys
from absl import app
from r2d2_acme import environments, experiment, program
from r2d2_acme.running import launching
from r2d2_acme.system import runtime
from tests import helpers

def main(_):
  code = launching.launch(
    program.make_program(
      experiment.Experiment(
        helpers.make_config(),
        lambda seed: environments.make_cue_recall(seed=seed),
        max_actor_steps=300,
      )
    ),
    'local_mt',
    sys.argv[1],
  )
  runtime.exit_now(code)  # threads may still wait in C++

app.run(main)
"""


def test_limit_holds_without_a_workdir(tmp_path):
  command = [sys.executable, '-c', _WITHOUT_WORKDIR, str(tmp_path / 'output')]
  subprocess.run(command, check=True, timeout=_TIMEOUT, stdin=subprocess.DEVNULL)
  assert not list(tmp_path.rglob('ckpt-*'))
