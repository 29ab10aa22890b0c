"""`Experiment` in programs of a user's own: what is refused, kept and released."""

import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import acme
import numpy as np
import pytest
from acme.utils import loggers as acme_loggers

from r2d2_acme import config as config_lib
from r2d2_acme import environments
from r2d2_acme import experiment as experiment_lib
from r2d2_acme.agent import R2D2, run_experiment
from r2d2_acme.environments import NamedFactory, describe
from r2d2_acme.experiment import BadInput, Experiment
from r2d2_acme.workdir import locking
from tests import helpers

_CONFIG = helpers.make_config(num_actors=1, envs_per_actor=2, min_replay_size=20)


def make_cue_recall(seed: int):
  return environments.make_cue_recall(seed=seed)


def _wrapped(function):
  return functools.wraps(function)(lambda seed: function(seed))


class Task:
  def make(self, seed: int):
    return environments.make_cue_recall(seed=seed)

  @staticmethod
  def make_one(seed: int):
    return environments.make_cue_recall(seed=seed)


@pytest.mark.parametrize('name', ['max_actor_steps', 'max_learner_steps'])
def test_limits_become_integers_or_are_refused(name):
  for limit in (1e6, np.int64(10**6), 1_000_000):
    run = experiment_lib.begin(Experiment(_CONFIG, make_cue_recall, **{name: limit}))
    assert json.dumps(getattr(run.experiment, name)) == '1000000'
  for limit in (0, -1, 1.5):
    with pytest.raises(BadInput, match=f'{name}={limit} is no limit'):
      experiment_lib.begin(Experiment(_CONFIG, make_cue_recall, **{name: limit}))


def test_named_game_has_the_actions_that_the_config_says(tmp_path):
  config = config_lib.laptop()
  workdir = str(tmp_path)
  run = experiment_lib.begin(
    Experiment(config, NamedFactory('game', 'pong'), workdir=workdir)
  )
  spec = run.experiment.environment_spec
  assert spec.actions.num_values == 6
  assert experiment_lib.from_workdir(workdir).environment_spec == spec


@pytest.mark.parametrize(
  ('factory', 'expected'),
  [
    (make_cue_recall, f'{__name__}:make_cue_recall'),
    (Task.make_one, f'{__name__}:Task.make_one'),
    (Task().make, ''),
    (_wrapped(make_cue_recall), ''),
    (lambda seed: None, ''),
    (functools.partial(environments.make, 'CartPole-v1'), ''),
  ],
)
def test_factory_is_described_by_a_name_that_leads_back_to_it(factory, expected):
  assert describe(factory) == {'environment': expected}


def test_start_with_a_nameless_factory_keeps_the_name_of_the_run(tmp_path):
  workdir = str(tmp_path)
  named = NamedFactory('env', 'CartPole-v1')
  experiment_lib.begin(Experiment(_CONFIG, named, workdir=workdir))
  experiment_lib.begin(Experiment(_CONFIG, lambda seed: named(seed), workdir=workdir))
  assert describe(experiment_lib.from_workdir(workdir).environment_factory) == {
    'env': 'CartPole-v1'
  }


def test_run_whose_environments_no_other_program_can_make_is_refused(tmp_path):
  workdir = str(tmp_path)
  experiment_lib.begin(
    Experiment(_CONFIG, lambda seed: make_cue_recall(seed), workdir=workdir)
  )
  with pytest.raises(BadInput, match='a function that is in no module'):
    experiment_lib.from_workdir(workdir)


_SCRIPT = """
from r2d2_acme import Experiment, environments, run_experiment
from r2d2_acme.config import memory

def make_environment(seed):
  return environments.make_cue_recall(seed=seed)

run_experiment(Experiment(memory(), make_environment, workdir='run', max_actor_steps=9))
"""


def test_script_that_trains_when_it_is_imported_is_not_run_by_others(tmp_path):
  (tmp_path / 'training.py').write_text(_SCRIPT)
  run = functools.partial(
    subprocess.run, cwd=tmp_path, capture_output=True, text=True, timeout=200
  )
  assert run([sys.executable, 'training.py']).returncode == 0
  before = (tmp_path / 'run' / 'config.json').read_text()
  assert json.loads(before)['environment'] == {
    'environment': 'training:make_environment'
  }
  evaluate = [sys.executable, helpers.LAUNCH / 'evaluate.py', '--workdir=run']
  ended = run(evaluate)
  assert ended.returncode == 2
  assert ended.stderr.count('\n') == 1
  assert "put what it runs under `if __name__ == '__main__':`" in ended.stderr
  assert (tmp_path / 'run' / 'config.json').read_text() == before


@pytest.mark.parametrize(
  ('code', 'words'),
  [
    ('def make():\n  pass', 'TypeError: make() takes 0 positional arguments'),
    ('def make(seed):\n  return 1 / 0', 'ZeroDivisionError: division by zero'),
    ('def make(seed):\n  exit()', 'SystemExit'),
    ('make = 3', "there is no function 'make'"),
  ],
)
def test_function_that_makes_no_environment_is_one_line(
  tmp_path, monkeypatch, code, words
):
  monkeypatch.chdir(tmp_path)
  module = f'task_{abs(hash(code))}'
  pathlib.Path(f'{module}.py').write_text(code)
  with pytest.raises(BadInput) as error:
    experiment_lib.begin(
      Experiment(_CONFIG, NamedFactory('environment', f'{module}:make'))
    )
  assert words in str(error.value)
  assert '\n' not in str(error.value)


class Rows(acme_loggers.Logger):
  """Notes what is closed."""

  closed: list[str] = []

  def __init__(self, workdir, role: str, index: int):
    self._role = role

  def write(self, data):
    pass

  def close(self):
    Rows.closed.append(self._role)


def _is_free(workdir: str) -> bool:
  code = f'from r2d2_acme.workdir import locking; locking.hold_program({workdir!r})'
  return not subprocess.run([sys.executable, '-c', code], cwd=helpers.ROOT).returncode


def test_training_in_this_process_releases_all_that_it_took(tmp_path):
  workdir = str(tmp_path)
  (tmp_path / 'status.json').write_text('of a program before')
  Rows.closed.clear()
  run_experiment(
    Experiment(
      _CONFIG,
      make_cue_recall,
      workdir=workdir,
      logger_factory=Rows,
      max_actor_steps=50,
    )
  )
  assert sorted(Rows.closed) == ['actor', 'evaluator', 'learner']
  assert not os.path.exists(tmp_path / 'status.json')
  assert _is_free(workdir)


def test_agent_that_could_not_be_made_lets_go_of_the_workdir(tmp_path):
  (tmp_path / 'logs').write_text('in the place of a folder')
  spec = acme.make_environment_spec(make_cue_recall(0))
  with pytest.raises(OSError) as error:  # which keeps all that was there
    R2D2(spec, _CONFIG, workdir=str(tmp_path))
  assert _is_free(str(tmp_path)), error


def test_closed_agent_lets_go_of_the_workdir(tmp_path):
  spec = acme.make_environment_spec(make_cue_recall(0))
  agent = R2D2(spec, _CONFIG, workdir=str(tmp_path))
  assert not _is_free(str(tmp_path))
  agent.close()
  assert _is_free(str(tmp_path))


def test_run_whose_checkpoints_do_not_fit_on_the_disk_is_refused(tmp_path, monkeypatch):
  workdir = tmp_path / 'run'
  usage = shutil._ntuple_diskusage(10**9, 10**9 - 10**5, 10**5)
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
  experiment = Experiment(_CONFIG, make_cue_recall, workdir=str(workdir))
  with pytest.raises(BadInput) as error:
    experiment_lib.begin(experiment)
  message = str(error.value)
  assert re.search(r'needs about \d+ MiB of disk in .* there are 0 MiB', message)
  assert '--config.max_replay_size or --config.num_checkpoints' in message
  assert '\n' not in message
  assert not workdir.exists()
  # What is held already needs no more room.
  (workdir / 'checkpoints').mkdir(parents=True)
  (workdir / 'checkpoints/held').write_bytes(bytes(10**7))
  experiment_lib.begin(experiment)


def test_refused_start_lets_go_of_the_workdir(tmp_path):
  (tmp_path / 'logs').write_text('in the place of a folder')
  with pytest.raises(BadInput):
    experiment_lib.begin(Experiment(_CONFIG, make_cue_recall, workdir=str(tmp_path)))
  assert not locking.is_held(str(tmp_path))
  assert _is_free(str(tmp_path))


def test_beginning_leaves_the_process_its_choice_of_threads():
  code = (
    'import r2d2_acme, tensorflow as tf\n'
    'from r2d2_acme import environments, experiment\n'
    'from r2d2_acme.config import memory\n'
    'make = lambda seed: environments.make_cue_recall(seed=seed)\n'
    'experiment.begin(experiment.Experiment(memory(), make))\n'
    'tf.config.threading.set_inter_op_parallelism_threads(1)'
  )
  subprocess.run([sys.executable, '-c', code], check=True, cwd=helpers.ROOT)


def test_memory_of_this_machine_does_not_limit_nodes_on_others():
  experiment = Experiment(helpers.make_config(num_actors=100_000), make_cue_recall)
  with pytest.raises(BadInput, match='GiB of memory'):
    experiment_lib.begin(experiment, 100_003)
  experiment_lib.begin(experiment, 0)
