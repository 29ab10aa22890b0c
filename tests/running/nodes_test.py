"""The nodes at work without any launcher, on a real Reverb server."""

import dataclasses
import pickle
import threading
import time

import numpy as np
import pytest
import reverb
from acme.utils import loggers as acme_loggers

from r2d2_acme import environments
from r2d2_acme import experiment as experiment_lib
from r2d2_acme.experiment import Experiment
from r2d2_acme.running import nodes
from r2d2_acme.running.nodes import base
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
  replays = [
    nodes.ReplayNode(run, shard, stop=stop)
    for shard in range(run.experiment.config.num_replay_shards)
  ]
  clients = [reverb.Client(f'localhost:{replay.server.port}') for replay in replays]
  learner = nodes.LearnerNode(run, clients, stop=stop, stop_program=stop.set)
  others = [
    *replays,
    *(nodes.ActorNode(run, i, clients, learner, stop=stop) for i in range(2)),
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
    thread.join(120)
  for replay in replays:
    replay.server.stop()
  assert not failures
  assert not any(thread.is_alive() for thread in threads)
  return learner


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
