"""What a tracker does."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Tracker(Protocol):
  """A run of a tracker. All methods may raise any exception, and are called again.

  Attributes:
    run: the tracker's own name of the run, by which a later sitting goes on with it.
    where: where the user finds the run.
  """

  run: str
  where: str

  def __init__(self, workdir: str, name: str, content: Mapping[str, Any], run: str):
    """Begins a run, or goes on with one.

    Args:
      workdir: of the run.
      name: for people.
      content: of `config.json`.
      run: what the attribute was in an earlier sitting; '' for a new run.
    """

  def log(self, label: str, axis: str, rows: Sequence[Mapping[str, float]]):
    """Sends rows of a node; `axis` is the column with the steps."""

  def log_video(self, path: str, actor_steps: int):
    """Sends an animated GIF."""

  def log_best(self, best: Mapping[str, Any], files: Sequence[str]):
    """Sends the best checkpoint; `best` says which it is, and its mean return."""

  def close(self):
    """Waits until all is sent."""
