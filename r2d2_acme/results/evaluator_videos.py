"""Videos of the evaluator's episodes, as animated GIFs: TensorBoard shows no others."""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping

import dm_env
import numpy as np

from r2d2_acme.config import R2D2Config
from r2d2_acme.results import animation, video
from r2d2_acme.system import stopping
from r2d2_acme.workdir import event_files
from r2d2_acme.workdir.write_errors import WriteErrors

_SECONDS = 30.0  # of an episode, at the speed of `video`
_MAX_SIZE = 256  # pixels of height or width; larger screens are thinned out


def make(
  workdir: str | None, config: R2D2Config, environment: dm_env.Environment
) -> 'Videos | None':
  """Returns the recorder that a run's config asks for, if any."""
  if workdir is None or not config.video_period:
    return None
  return Videos(workdir, config.video_period, environment)


class Videos:
  """Records the start of an episode every now and then.

  A video goes to `<workdir>/videos/evaluator_<actor steps>.gif` and to TensorBoard.
  """

  def __init__(self, workdir: str, period: float, environment: dm_env.Environment):
    """Records nothing yet.

    Args:
      workdir: of the run.
      period: seconds from the start of one recorded episode to that of the next.
      environment: plays the episodes.
    """
    self._workdir = workdir
    self._period = period
    self._environment = environment
    self._rate = video.frames_per_second(environment)
    self._frames: list[np.ndarray] = []
    self._is_recording = False
    self._next_time = 0.0
    self._errors = WriteErrors('training goes on without this video')

  def start(self):
    """Is called before each episode: records it if a video is due."""
    self._frames = []
    self._is_recording = time.monotonic() >= self._next_time
    if self._is_recording:
      self._next_time = time.monotonic() + self._period

  def __call__(self, timestep: dm_env.TimeStep, q: np.ndarray, action: int):
    """Watches a step of an episode; see `evaluation.Watcher`."""
    del q, action
    if self._is_recording and len(self._frames) < _SECONDS * self._rate:
      with self._drawing():
        # Each time, because the environment may have been made again.
        screen = video.screen_of(self._environment)(timestep)
        stride = -(-max(screen.shape[:2]) // _MAX_SIZE)
        self._frames.append(np.array(screen[::stride, ::stride]))

  @contextlib.contextmanager
  def _drawing(self) -> Iterator[None]:
    """Gives this video up at an error: what an environment draws is its own."""
    try:
      yield
    except Exception as error:
      self._is_recording, self._frames = False, []
      stopping.say(
        f'an episode cannot be drawn ({type(error).__name__}: {error}): training goes '
        'on without this video'
      )

  def write(self, counts: Mapping[str, float]):
    """Writes what was recorded, if anything; `counts` are those of the episode's row.

    If it cannot be written, for example on a full disk, a line on stderr says so.
    """
    frames, self._frames = self._frames, []
    gif = b''
    with self._drawing():
      gif = animation.encode(frames, self._rate) if frames else b''
    if not gif:
      return
    steps = int(counts.get('actor_steps', 0))
    path = os.path.join(self._workdir, 'videos', f'evaluator_{steps:012d}.gif')
    with self._errors.reported():
      os.makedirs(os.path.dirname(path), exist_ok=True)
      with open(f'{path}.new', 'wb') as file:
        file.write(gif)
      os.replace(f'{path}.new', path)
      event_files.write_gif(
        os.path.join(self._workdir, 'tb', 'evaluator_videos'),
        'evaluator/Video',
        steps,
        gif,
        frames[0].shape[:2],
      )
