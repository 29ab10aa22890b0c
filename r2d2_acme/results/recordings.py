"""The recordings of an evaluation's first episode: a video, an animation, or both."""

import os

import dm_env

from r2d2_acme.results import animation, evaluation, plotting, video
from r2d2_acme.workdir import checkpointing, paths


class Recordings:
  """Records an episode to the files that are asked for."""

  def __init__(
    self,
    workdir: str,
    *,
    video_suffix: str | None = None,
    animation_path: str | None = None,
  ):
    """Asks for files.

    Args:
      workdir: of the run.
      video_suffix: names the MP4 `<workdir>/videos/<checkpoint><suffix>.mp4`; None for
        no video.
      animation_path: of a GIF with the learning curve; None for none.
    """
    self._workdir = workdir
    self._video_suffix = video_suffix
    self._animation_path = animation_path
    self._recorders: dict[str, video.Recorder | animation.Recorder] = {}

  def watch(
    self, environment: dm_env.Environment, checkpoint: str
  ) -> evaluation.Watcher:
    """Opens the files; returns what is to be shown each step.

    Args:
      environment: plays the episode.
      checkpoint: the prefix of the checkpoint that plays.

    Raises:
      OSError: a file cannot be written.
    """
    if self._video_suffix is not None:
      folder = os.path.join(self._workdir, 'videos')
      os.makedirs(folder, exist_ok=True)
      name = f'{os.path.basename(checkpoint)}{self._video_suffix}.mp4'
      path = os.path.join(folder, name)
      self._recorders['video'] = video.Recorder(path, environment)
    if self._animation_path is not None:
      (run,) = plotting.read_runs([self._workdir])
      num_frames = checkpointing.read_counts(checkpoint).get('actor_frames', 0)
      path = paths.resolve(self._animation_path)
      self._recorders['animation'] = animation.Recorder(
        path, environment, run, num_frames
      )

    def show(timestep, q, action):
      for recorder in self._recorders.values():
        recorder(timestep, q, action)

    return show

  def close(self) -> dict[str, str]:
    """Completes the files; returns their paths by kind."""
    for recorder in self._recorders.values():
      recorder.close()
    return {kind: recorder.path for kind, recorder in self._recorders.items()}
