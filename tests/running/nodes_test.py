"""The nodes at work without any launcher, on a real Reverb server."""

import contextlib
import dataclasses
import pickle
import threading
import time
from collections.abc import Iterator
from unittest import mock

import acme
import courier
import numpy as np
import portpicker
import pytest
import reverb
from acme.utils import loggers as acme_loggers

from r2d2_acme import environments
from r2d2_acme import experiment as experiment_lib
from r2d2_acme.builder import R2D2Builder
from r2d2_acme.experiment import Experiment
from r2d2_acme.learning import learner as learner_lib
from r2d2_acme.learning.learner import R2D2Learner
from r2d2_acme.replay.adder import Stopped
from r2d2_acme.running import nodes
from r2d2_acme.running.nodes import base
from r2d2_acme.running.nodes import cacher as cacher_lib
from r2d2_acme.system import heartbeats
from r2d2_acme.workdir import checkpointing, manifests
from tests import helpers

pytestmark = pytest.mark.timeout(300)

_CONFIG = helpers.make_config(
  num_actors=2,
  envs_per_actor=2,
  min_replay_size=20,
  max_replay_size=200,
  evaluation_period=0.1,
)


def make_cue_recall(seed: int):
  return environments.make_cue_recall(seed=seed)


class Rows(acme_loggers.Logger):
  """Keeps the rows of the nodes of this process."""

  rows: dict[tuple[str, int], list] = {}

  def __init__(self, workdir, role: str, index: int):
    self._rows = Rows.rows.setdefault((role, index), [])
    self.workdir = workdir

  def write(self, data):
    self._rows.append(dict(data))

  def close(self):
    pass


def _work(experiment: Experiment) -> nodes.LearnerNode:
  """Runs all nodes in threads until one of them stops the program; returns one."""
  run = pickle.loads(pickle.dumps(experiment_lib.begin(experiment)))
  stop = threading.Event()
  config = run.experiment.config
  replays = [
    nodes.ReplayNode(run, shard, stop=stop) for shard in range(config.num_replay_shards)
  ]
  clients = [reverb.Client(f'localhost:{replay.server.port}') for replay in replays]
  learner = nodes.LearnerNode(run, clients, stop=stop, stop_program=stop.set)
  cachers = [nodes.CacherNode(learner, stop=stop) for _ in range(config.num_cachers)]
  others = [
    *replays,
    *cachers,
    *(
      nodes.ActorNode(
        run, i, clients, learner, cacher=cachers[i] if cachers else None, stop=stop
      )
      for i in range(2)
    ),
    nodes.EvaluatorNode(run, learner, stop=stop),
  ]
  failures = []

  def target(node):
    try:
      node.run()
    except BaseException as error:
      failures.append(error)

  threads = [
    threading.Thread(target=target, args=(node,), daemon=True)
    for node in (learner, *others)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(240)
  for replay in replays:
    replay.server.stop()
  assert not failures
  assert not any(thread.is_alive() for thread in threads)
  return learner


class _Opened(Exception):
  """Ends a node when it opens its environments."""


@pytest.mark.parametrize('counts', [{}, {'actor_steps': 0.0}, {'actor_steps': 7.0}])
def test_nodes_know_whether_environments_of_the_run_have_worked(monkeypatch, counts):
  known = []

  def open_environments(*args, have_worked):
    known.append(have_worked)
    raise _Opened

  monkeypatch.setattr(environments, 'opened', open_environments)
  learner = mock.create_autospec(nodes.LearnerNode, instance=True)
  learner.report.return_value = counts
  run = experiment_lib.Run(
    Experiment(_CONFIG, make_cue_recall, logger_factory=Rows), {}, 0, mock.Mock()
  )
  stop = threading.Event()
  for node in (
    nodes.ActorNode(run, 0, [], learner, stop=stop),
    nodes.EvaluatorNode(run, learner, stop=stop),
  ):
    with pytest.raises(_Opened):
      node.run()
  assert known == [counts == {'actor_steps': 7.0}] * 2


def test_nodes_train_to_the_limit_and_save_counts_with_the_weights(tmp_path):
  workdir = str(tmp_path / 'run')
  learner = _work(
    Experiment(_CONFIG, make_cue_recall, workdir=workdir, max_learner_steps=30)
  )
  counts = checkpointing.verify(workdir)
  assert counts['learner_steps'] >= 30
  assert counts['actor_steps'] > 0
  assert counts['actor_episodes'] > 0
  assert counts['evaluator_episodes'] > 0
  served = learner.get_counts()
  for name in ('actor_steps', 'actor_episodes', 'evaluator_episodes'):
    assert 0 < counts[name] <= served[name]  # others report until they end
  # Learning goes on until the process ends.
  *_, num_steps = learner.get_variables(['policy'])[0]
  assert num_steps >= counts['learner_steps']

  resumed = _work(
    Experiment(_CONFIG, make_cue_recall, workdir=workdir, max_learner_steps=60)
  )
  again = checkpointing.verify(workdir)
  assert again['learner_steps'] >= 60
  assert again['actor_steps'] > counts['actor_steps']
  reporting = {name.split(':')[1] for name in again if name.startswith('reported:')}
  assert reporting == {'actor/0/1/0', 'actor/1/1/0', 'evaluator/0/1/0'}
  assert resumed.get_counts()['wall_time'] > counts['wall_time']


def test_shards_train_as_one_replay_and_are_resumed(tmp_path, capfd):
  config = dataclasses.replace(_CONFIG, num_replay_shards=2, evaluation_period=60.0)
  experiment = Experiment(config, make_cue_recall, workdir=str(tmp_path))
  _work(dataclasses.replace(experiment, max_learner_steps=30))
  (row, *_) = helpers.read_rows(tmp_path / 'logs/learner/logs.csv')
  assert row['replay_size'] >= _CONFIG.min_replay_size
  *_, manifest = manifests.read_sound(str(tmp_path)).values()
  assert {replay.shard for replay in manifest.replays} == {0, 1}
  _work(dataclasses.replace(experiment, max_learner_steps=60))
  assert capfd.readouterr().out.count('The replay goes on with') == 2
  three = dataclasses.replace(config, num_replay_shards=3)
  with pytest.raises(experiment_lib.BadInput, match='num_replay_shards=2, not 3'):
    experiment_lib.begin(dataclasses.replace(experiment, config=three))


def test_every_node_has_a_logger_of_the_experiments_own():
  Rows.rows.clear()
  _work(Experiment(_CONFIG, make_cue_recall, logger_factory=Rows, max_learner_steps=30))
  assert Rows.rows.keys() == {
    ('learner', 0),
    ('actor', 0),
    ('actor', 1),
    ('evaluator', 0),
  }
  assert all(Rows.rows.values())
  (first, *_) = Rows.rows['learner', 0]
  assert np.isfinite(first['loss'])


def test_learner_counts_for_all(tmp_path):
  run = experiment_lib.begin(
    Experiment(_CONFIG, make_cue_recall, workdir=str(tmp_path))
  )
  server = reverb.Server(run.builder.make_tables())
  client = reverb.Client(f'localhost:{server.port}')
  learner = nodes.LearnerNode(
    run, [client], stop=threading.Event(), stop_program=lambda: None
  )
  assert learner.increment(actor_steps=3)['actor_steps'] == 3
  assert learner.increment(actor_steps=4)['actor_steps'] == 7
  assert learner.get_counts()['wall_time'] > 0
  server.stop()


def test_what_a_thread_raises_after_the_stop_is_no_failure():
  stop, has_stopped = threading.Event(), threading.Event()
  stop.set()

  def work():
    has_stopped.wait()
    raise ValueError('I/O operation on closed file.')

  def close():
    has_stopped.set()
    time.sleep(0.5)

  base.work_until_stopped(stop, work, on_stop=close)


def test_what_a_thread_raises_before_the_stop_is_raised_after_the_save():
  saved = []
  with pytest.raises(ZeroDivisionError):
    base.work_until_stopped(
      threading.Event(), lambda: 1 / 0, on_stop=lambda: saved.append(1)
    )
  assert saved == [1]


@pytest.fixture
def fast(monkeypatch):
  """Cachers that look for new parameters all the time."""
  monkeypatch.setattr(cacher_lib, 'PERIOD', 0.02)


def test_actors_of_cachers_act_with_new_parameters(fast, monkeypatch):
  monkeypatch.setattr(learner_lib, '_LOG_PERIOD', 0.0)  # a row for each step
  Rows.rows.clear()
  config = dataclasses.replace(_CONFIG, actors_per_cacher=1, variable_update_period=5)
  _work(Experiment(config, make_cue_recall, logger_factory=Rows, max_learner_steps=60))
  last = Rows.rows['learner', 0][-1]
  assert last['learner_steps'] >= 60
  assert last['parameter_age'] < last['learner_steps']


def _make_learner() -> R2D2Learner:
  spec = acme.make_environment_spec(make_cue_recall(0))
  return R2D2Builder(_CONFIG, spec).make_learner(iter([]))


def _set(learner: R2D2Learner, num_steps: int, value: float):
  """Goes to some learner steps, with this number in place of all weights."""
  state = learner.save()
  network = [np.full_like(x, value) for x in state['network']]
  learner.restore({**state, 'network': network, 'num_steps': [np.int64(num_steps)]})


def _served(source) -> tuple[int, float]:
  """Returns what `_set` was given last for the parameters that a node serves."""
  ((*network, num_steps),) = source.get_variables(['policy'])
  (value,) = {float(x) for array in network for x in np.ravel(array)}
  return int(num_steps), value


class _Sent:
  """A learner that notes how often it returns each version."""

  def __init__(self, learner: R2D2Learner):
    self.num_sent = 0
    self.num_calls = 0
    self._learner = learner

  def get_new_variables(self, names, known):
    version, new = self._learner.get_new_variables(names, known)
    self.num_calls += 1
    self.num_sent += bool(new)
    return version, new


@contextlib.contextmanager
def _caching(learner) -> Iterator[nodes.CacherNode]:
  """A cacher at work in a thread, which must end with the stop."""
  stop = threading.Event()
  node = nodes.CacherNode(learner, stop=stop)
  thread = threading.Thread(target=node.run, daemon=True)
  thread.start()
  try:
    yield node
  finally:
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


def test_cacher_gets_each_version_once_whoever_asks_and_follows_the_learner_back(fast):
  learner = _make_learner()
  sent = _Sent(learner)
  _set(learner, 900, 0.5)
  with _caching(sent) as cacher:
    for version in ((900, 0.5), (1000, 1.0), (900, 0.5), (900, 2.0)):
      _set(learner, *version)
      helpers.wait_until(lambda: _served(cacher) == version)  # noqa: B023
    before = sent.num_calls, sent.num_sent
    for _ in range(10):
      assert _served(cacher) == (900, 2.0)
    helpers.wait_until(lambda: sent.num_calls > before[0] + 3)
    assert sent.num_sent == before[1]


def test_cacher_looks_every_two_seconds_however_often_it_is_asked():
  sent = _Sent(_make_learner())
  with _caching(sent) as cacher:
    start = time.monotonic()
    while time.monotonic() - start < 3:
      cacher.get_variables(['policy'])
      time.sleep(0.01)
    assert sent.num_calls == 2


@contextlib.contextmanager
def _serving(learner: R2D2Learner, port: int):
  server = courier.Server(port=port)
  server.Bind('get_new_variables', learner.get_new_variables)
  server.Start()
  try:
    yield
  finally:
    server.Stop()
    server.Join()


def test_cacher_waits_for_its_learner_goes_on_without_it_and_follows_the_next(
  fast, tmp_path, monkeypatch
):
  watched = heartbeats.Watched(str(tmp_path / 'cacher'))
  monkeypatch.setenv(heartbeats.VARIABLE, watched.path)

  def beats() -> bool:
    seen = watched._time
    watched.look()
    return watched._time > max(seen, heartbeats._ANNOUNCED)

  port = portpicker.pick_unused_port()
  old, new = _make_learner(), _make_learner()
  _set(old, 1000, 1.0)
  _set(new, 900, 0.5)
  with _caching(courier.Client(f'localhost:{port}')) as cacher:
    helpers.wait_until(beats)  # it waits for the first parameters
    with _serving(old, port):
      assert _served(cacher) == (1000, 1.0)  # as an actor does that is there first
    for _ in range(2):
      helpers.wait_until(beats)
      assert _served(cacher) == (1000, 1.0)
    with _serving(new, port):
      helpers.wait_until(lambda: _served(cacher) == (900, 0.5))


def test_stop_ends_those_who_wait_for_a_cachers_first_parameters():
  learner = courier.Client(f'localhost:{portpicker.pick_unused_port()}')
  stopped = []

  def fetch():
    with pytest.raises(Stopped):
      cacher.get_variables(['policy'])
    stopped.append(True)

  with _caching(learner) as cacher:
    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
  thread.join(10)
  assert stopped
