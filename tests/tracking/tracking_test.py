"""Trackers: what arrives in them, and what happens if they fail.

Those of wandb and MLflow run where their extras are installed.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import pathlib
import subprocess
import sys
import time

import psutil
import pytest

from r2d2_acme import config as config_lib
from r2d2_acme.tracking import KINDS, news, process, sending
from r2d2_acme.workdir import description
from tests import helpers

_GIF = b'GIF89a\1\0\1\0\x80\0\0\0\0\0\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;'
_BEST = {'checkpoint': 'ckpt-3', 'mean_return': 1.5, 'episodes': 2, 'learner_steps': 9}
_NOWHERE = 'http://127.0.0.1:9'  # a port at which nobody listens


@pytest.fixture
def run(tmp_path, monkeypatch) -> pathlib.Path:
  """The workdir of a run that has begun."""
  monkeypatch.setattr(process, '_PATIENCE', 200.0)  # the machine may be busy
  run = tmp_path / 'run'
  run.mkdir()
  description.write(
    *(str(run), config_lib.memory(), {'game': 'pong'}, {}),
    env_kwargs={},
    is_atari=True,
  )
  return run


def _write(run: pathlib.Path, *steps: int):
  """Writes what a sitting does: rows with these steps, a video, a best checkpoint."""
  for label in ('learner', 'actor_1'):
    (run / 'logs' / label).mkdir(parents=True, exist_ok=True)
    with open(run / 'logs' / label / 'logs.csv', 'a') as file:
      if not file.tell():
        file.write('actor_steps,learner_steps,loss\r\n')
      file.writelines(f'{10 * i},{i},{i / 4}\r\n' for i in steps)
  folder = run / 'checkpoints' / 'learner'
  for path in (folder, run / 'videos'):
    path.mkdir(parents=True, exist_ok=True)
  (folder / 'best.json').write_text(json.dumps(_BEST))
  (folder / 'ckpt-3.index').write_text('the index')
  (folder / 'ckpt-3.data-00000-of-00001').write_text('the weights')
  (run / 'videos' / 'evaluator_000000000070.gif').write_bytes(_GIF)


def _is_installed(kind: str) -> bool:
  with contextlib.suppress(importlib.metadata.PackageNotFoundError):
    return bool(importlib.metadata.version(KINDS[kind][0].partition('==')[0]))
  return False


@pytest.fixture
def files(tmp_path, monkeypatch) -> str:
  """The address of MLflow's store in files, which this process may read."""
  monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
  return f'file://{tmp_path}/mlruns'


def test_mlflow_gets_a_run_over_two_sittings(run, files, monkeypatch):
  mlflow = pytest.importorskip('mlflow')
  monkeypatch.setenv('MLFLOW_TRACKING_URI', files)
  for steps in ((1, 2), (3,)):
    with process.tracked('mlflow', str(run)):
      _write(run, *steps)
  client = mlflow.MlflowClient(files)
  experiment = client.get_experiment_by_name('r2d2_acme')
  (found,) = client.search_runs([experiment.experiment_id])
  assert (found.info.run_name, found.info.status) == ('run', 'FINISHED')
  assert found.data.params['game'] == 'pong'
  assert found.data.params['batch_size'] == '32'
  assert found.data.tags['mlflow.source.git.commit'] == description.revision()
  for name, axis in (('learner/loss', 1), ('actor_1/loss', 10)):
    history = client.get_metric_history(found.info.run_id, name)
    sent = [(metric.step, metric.value) for metric in history]
    assert sent == [(i * axis, i / 4) for i in (1, 2, 3)]
  artifacts = pathlib.Path(found.info.artifact_uri.removeprefix('file://'))
  sent = {str(p.relative_to(artifacts)) for p in artifacts.rglob('*') if p.is_file()}
  assert sent == {
    'config.json',
    'videos/evaluator_000000000070.gif',
    'best_checkpoint/best.json',
    'best_checkpoint/ckpt-3.index',
    'best_checkpoint/ckpt-3.data-00000-of-00001',
  }


def test_what_a_tracker_that_is_down_has_missed_is_sent_later(
  run, files, monkeypatch, capfd
):
  mlflow = pytest.importorskip('mlflow')
  monkeypatch.setenv('MLFLOW_TRACKING_URI', _NOWHERE)
  with process.tracked('mlflow', str(run)):
    _write(run, 1, 2)
  err = capfd.readouterr().err
  assert err.count('mlflow does not work') == 1
  assert 'training goes on, and what is missing is sent when it does' in err
  monkeypatch.setenv('MLFLOW_TRACKING_URI', files)
  sender = sending.Sender('mlflow', str(run))
  sender.send(at_end=True)
  sender.close()
  client = mlflow.MlflowClient(files)
  run_id = news.Seen.read(str(run), 'mlflow').run
  history = client.get_metric_history(run_id, 'learner/loss')
  assert [m.step for m in history] == [1, 2]


def test_training_in_this_process_is_tracked(tmp_path, files, monkeypatch):
  mlflow = pytest.importorskip('mlflow')
  from r2d2_acme import Experiment, environments, run_experiment

  monkeypatch.setenv('MLFLOW_TRACKING_URI', files)
  monkeypatch.setattr(process, '_PATIENCE', 200.0)
  config = dataclasses.replace(config_lib.memory(), envs_per_actor=2)
  factory = environments.NamedFactory('env', 'memory/cue_recall/3')
  workdir = str(tmp_path / 'run')
  run_experiment(
    Experiment(config, factory, workdir=workdir, max_actor_steps=100, track='mlflow')
  )
  client, name = mlflow.MlflowClient(files), news.Seen.read(workdir, 'mlflow').run
  history = client.get_metric_history(name, 'actor/episode_length')
  assert {metric.value for metric in history} == {5}
  assert client.get_run(name).data.params['env'] == 'memory/cue_recall/3'


def _read_wandb(path: pathlib.Path, kind: str):
  """Reads the records of one kind of an offline run."""
  from wandb.proto import wandb_internal_pb2
  from wandb.sdk.internal import datastore

  store = datastore.DataStore()
  store.open_for_scan(str(path))
  while (data := store.scan_data()) is not None:
    record = wandb_internal_pb2.Record()
    record.ParseFromString(data)
    if record.WhichOneof('record_type') == kind:
      yield getattr(record, kind)


def test_wandb_gets_a_run_over_two_sittings(run, monkeypatch):
  pytest.importorskip('wandb')
  monkeypatch.setenv('WANDB_MODE', 'offline')
  for steps in ((1, 2), (3,)):
    with process.tracked('wandb', str(run)):
      _write(run, *steps)
  name = news.Seen.read(str(run), 'wandb').run
  files = sorted(run.glob(f'wandb/offline-run-*/run-{name}.wandb'))
  assert len(files) == 2
  begun = [run for path in files for run in _read_wandb(path, 'run')]
  assert {(r.run_id, r.project, r.display_name) for r in begun} == {
    (name, 'r2d2_acme', 'run')
  }
  config = {item.key: json.loads(item.value_json) for item in begun[0].config.update}
  assert config['config']['batch_size'] == 32
  assert config['revision'] == description.revision()
  rows = [
    {'/'.join(x.nested_key) or x.key: json.loads(x.value_json) for x in history.item}
    for path in files
    for history in _read_wandb(path, 'history')
  ]
  losses = [
    (row['learner/learner_steps'], row['learner/loss'])
    for row in rows
    if 'learner/loss' in row
  ]
  assert losses == [(1, 0.25), (2, 0.5), (3, 0.75)]
  (video,) = [row for row in rows if any('evaluator/video' in key for key in row)]
  assert video['evaluator/actor_steps'] == 70
  (gif,) = run.glob('wandb/offline-run-*/files/media/videos/evaluator/*.gif')
  assert gif.read_bytes() == _GIF
  (artifact,) = [a for path in files for a in _read_wandb(path, 'artifact')]
  assert 'best' in artifact.aliases
  assert json.loads(artifact.metadata) == _BEST


def test_tracker_that_hangs_holds_the_end_up_for_some_seconds_only(
  run, monkeypatch, capfd
):
  monkeypatch.setattr(process, '_PATIENCE', 1.0)
  before = set(psutil.Process().children(recursive=True))
  with process.tracked('mlflow', str(run)):
    children = set(psutil.Process().children(recursive=True)) - before
    for child in children:
      if str(run) in helpers.command_line(child):
        child.suspend()
    started = time.monotonic()
  assert time.monotonic() - started < 20  # on a busy machine
  assert 'mlflow has not got all that the run wrote' in capfd.readouterr().err
  assert not any(child.is_running() for child in children)


def test_without_a_tracker_nothing_is_started(run):
  before = psutil.Process().children(recursive=True)
  with process.tracked(None, str(run)), process.tracked('wandb', None):
    assert psutil.Process().children(recursive=True) == before
  assert not (run / 'tracking.json').exists()


@pytest.mark.parametrize('kind', KINDS)
def test_missing_package_is_one_line_with_the_cure(kind):
  if _is_installed(kind):
    process.check(kind)
    return
  with pytest.raises(ValueError) as error:
    process.check(kind)
  cure = f'{sys.executable} -m pip install {" ".join(KINDS[kind])}'
  assert cure in str(error.value)
  assert '\n' not in str(error.value)


def test_cure_installs_what_the_extra_does():
  setup = (pathlib.Path(__file__).parents[2] / 'setup.py').read_text()
  assert all(f"'{pin}'," in setup for pins in KINDS.values() for pin in pins)


def test_sending_needs_no_tensorflow():
  code = 'import sys; from r2d2_acme.tracking import sending; print(*sys.modules)'
  ended = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert not {'tensorflow', 'acme', 'launchpad', 'reverb'} & {*ended.stdout.split()}
