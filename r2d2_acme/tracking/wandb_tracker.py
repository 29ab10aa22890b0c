"""Weights & Biases. `WANDB_MODE`, `WANDB_PROJECT` and so on are the user's."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import wandb


class Tracker:
  """See `base.Tracker`."""

  def __init__(self, workdir: str, name: str, content: Mapping[str, Any], run: str):
    self._run = wandb.init(
      project=os.environ.get('WANDB_PROJECT', 'r2d2_acme'),
      name=name,
      id=run or wandb.util.generate_id(),
      resume='allow' if run else None,
      dir=workdir,
      config=dict(content),
      allow_val_change=True,
      settings=wandb.Settings(console='off', silent=True),
    )
    self.run = self._run.id
    is_offline = self._run.settings._offline
    sync = f'offline; to upload: wandb sync {os.path.dirname(self._run.dir)}'
    self.where = sync if is_offline else str(self._run.url)
    self._labels: set[str] = set()

  def log(self, label: str, axis: str, rows: Sequence[Mapping[str, float]]):
    self._define(label, axis)
    for row in rows:
      self._run.log({f'{label}/{key}': value for key, value in row.items()})

  def log_video(self, path: str, actor_steps: int):
    self._define('evaluator', 'actor_steps')
    video = wandb.Video(path, format='gif')
    self._run.log({'evaluator/video': video, 'evaluator/actor_steps': actor_steps})

  def log_best(self, best: Mapping[str, Any], files: Sequence[str]):
    artifact = wandb.Artifact(f'best-{self.run}', 'model', metadata=dict(best))
    for file in files:
      artifact.add_file(file)
    self._run.log_artifact(artifact, aliases=['best'])

  def close(self):
    self._run.finish()

  def _define(self, label: str, axis: str):
    """Makes the steps the x-axis of a node's columns."""
    if label not in self._labels:
      self._labels.add(label)
      self._run.define_metric(f'{label}/*', step_metric=f'{label}/{axis}')
