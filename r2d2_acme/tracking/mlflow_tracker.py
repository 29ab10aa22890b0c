"""MLflow. `MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME` and so on are the user's."""

import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

# A server that is away is tried again later, by `sending`.
os.environ.setdefault('MLFLOW_HTTP_REQUEST_MAX_RETRIES', '1')
os.environ.setdefault('MLFLOW_HTTP_REQUEST_TIMEOUT', '10')
# Without a server mlflow-skinny has only files, and it asks for a confirmation.
os.environ.setdefault('MLFLOW_ALLOW_FILE_STORE', 'true')

import mlflow  # noqa: E402
from mlflow import entities  # noqa: E402

_MAX_METRICS = 1000  # of one call
_MAX_PARAMS = 100


class Tracker:
  """See `base.Tracker`."""

  def __init__(self, workdir: str, name: str, content: Mapping[str, Any], run: str):
    if 'MLFLOW_TRACKING_URI' not in os.environ:
      mlflow.set_tracking_uri(pathlib.Path(workdir).with_name('mlruns').as_uri())
    self._client = mlflow.MlflowClient()
    if not run or not self._has(run):
      run = self._create(name, content)
    self._client.update_run(run, status='RUNNING')
    self._client.set_tag(run, 'mlflow.source.git.commit', content['revision'])
    self._client.log_artifact(run, os.path.join(workdir, 'config.json'))
    self.run = run
    self.where = f'{mlflow.get_tracking_uri()}, run {run}'

  def log(self, label: str, axis: str, rows: Sequence[Mapping[str, float]]):
    now = int(1000 * time.time())
    metrics = [
      entities.Metric(f'{label}/{key}', value, now, int(row[axis]))
      for row in rows
      for key, value in row.items()
      if key != axis
    ]
    for i in range(0, len(metrics), _MAX_METRICS):
      self._client.log_batch(self.run, metrics=metrics[i : i + _MAX_METRICS])

  def log_video(self, path: str, actor_steps: int):
    del actor_steps  # the file's name says it
    self._client.log_artifact(self.run, path, 'videos')

  def log_best(self, best: Mapping[str, Any], files: Sequence[str]):
    del best  # one of the files is best.json
    for file in files:
      self._client.log_artifact(self.run, file, 'best_checkpoint')

  def close(self):
    self._client.set_terminated(self.run)

  def _has(self, run: str) -> bool:
    """Returns whether there is a run: it may have been deleted."""
    try:
      return self._client.get_run(run).info.lifecycle_stage == 'active'
    except mlflow.MlflowException as error:
      if error.error_code != 'RESOURCE_DOES_NOT_EXIST':
        raise
      return False

  def _create(self, name: str, content: Mapping[str, Any]) -> str:
    """Creates a run with the config as its parameters, which cannot change later."""
    experiment = os.environ.get('MLFLOW_EXPERIMENT_NAME', 'r2d2_acme')
    run = self._client.create_run(
      mlflow.set_experiment(experiment).experiment_id, run_name=name
    ).info.run_id
    values = {
      **content['environment'],
      **content.get('env_kwargs', {}),
      **content['config'],
    }
    if 'atari' in content:
      values['atari'] = content['atari']
    params = [entities.Param(key, str(value)) for key, value in values.items()]
    for i in range(0, len(params), _MAX_PARAMS):
      self._client.log_batch(run, params=params[i : i + _MAX_PARAMS])
    return run
