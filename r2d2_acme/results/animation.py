"""An animated GIF for a web page: an episode with its Q-values and its learning curve.

Beside what `video` shows stands the run's learning curve. A marker shows how far
training had come when the checkpoint that plays was saved.
"""

import io
import itertools
from collections.abc import Sequence

import dm_env
import numpy as np
from PIL import Image

from r2d2_acme.results import plotting, video

MAX_BYTES = 1_500_000  # pages with larger pictures load slowly
_CURVE_WIDTH = 400  # pixels
_DPI = 100
_NUM_COLORS = 64
_UNIT = 1e6  # frames per unit of the x-axis


class Recorder:
  """Writes the first seconds of an episode; its file is complete after `close`."""

  def __init__(
    self,
    path: str,
    environment: dm_env.Environment,
    run: plotting.Run,
    actor_frames: float,
    *,
    seconds: float = 10.0,
  ):
    """Opens the file.

    Args:
      path: the GIF to write.
      environment: the one that plays the episode.
      run: what to draw the learning curve of.
      actor_frames: the position of the marker on the curve's x-axis.
      seconds: how much of the episode to show, at the speed of `video`.

    Raises:
      OSError: the file cannot be written.
    """
    self.path = path
    self._file = open(path, 'wb')
    self._camera = video.Camera(environment)
    self._run = run
    self._actor_frames = actor_frames
    self._num_frames = max(1, round(seconds * self._camera.frames_per_second))
    self._frames: list[np.ndarray] = []

  def __call__(self, timestep: dm_env.TimeStep, q: np.ndarray, action: int):
    """Adds a step; see `video.Camera`. Steps after the last second are left out."""
    if len(self._frames) < self._num_frames:
      self._frames.append(self._camera(timestep, q, action))

  def close(self):
    """Writes the frames that were added."""
    with self._file:
      if self._frames:
        curve = draw_curve(self._run, self._actor_frames, self._frames[0].shape[0])
        frames = [np.hstack([frame, curve]) for frame in self._frames]
        self._file.write(encode(frames, self._camera.frames_per_second))


def draw_curve(run: plotting.Run, actor_frames: float, height: int) -> np.ndarray:
  """Draws a run's learning curve against emulator frames, on black.

  Args:
    run: the run; without an episode the axes are empty.
    actor_frames: where to draw the marker, a vertical line.
    height: of the picture, in pixels.

  Returns:
    uint8 RGB [height, 400, 3].
  """
  plt = plotting.pyplot()
  with plt.style.context('dark_background'):
    # Half a pixel more: Matplotlib rounds down.
    size = ((_CURVE_WIDTH + 0.5) / _DPI, (height + 0.5) / _DPI)
    figure, axes = plt.subplots(figsize=size, dpi=_DPI, layout='constrained')
    plotting.draw_group(axes, [run], 'actor_frames', _UNIT, 'evaluator', 'tab:blue')
    axes.axvline(actor_frames / _UNIT, color='tab:orange', label='now playing')
    axes.set_xlabel('million frames')
    axes.set_ylabel('return')
    axes.set_title(plotting.escape(run.environment))
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    labels = [label.removeprefix('evaluator, ') for label in labels]  # of one run
    axes.legend(handles, labels, fontsize='small', loc='lower right')
    figure.canvas.draw()
    picture = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
    plt.close(figure)
  return picture


def encode(
  frames: Sequence[np.ndarray], frames_per_second: float, max_bytes: int = MAX_BYTES
) -> bytes:
  """Returns frames as an animated GIF that repeats for ever.

  If the GIF is too large, it has only every second frame, or every third, and so on.
  Its duration stays the same.

  Args:
    frames: uint8 RGB [H, W, 3] each, at least one.
    frames_per_second: the speed of `frames`. GIFs round to hundredths of a second.
    max_bytes: the largest size, which a single frame may exceed.
  """
  # One palette for all frames, from some of them, so that what stands still does not
  # change its colour; and no dithering, because it flickers and compresses badly.
  sample = np.vstack(frames[:: max(1, len(frames) // 8)])
  palette = Image.fromarray(sample).quantize(_NUM_COLORS)
  images = [
    Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
    for frame in frames
  ]
  for stride in itertools.count(1):
    first, *others = images[::stride]
    ends = np.arange(len(others) + 2) * stride / frames_per_second  # seconds
    durations = 10 * np.diff(np.round(100 * ends))  # milliseconds
    file = io.BytesIO()
    first.save(
      file,
      format='GIF',
      save_all=True,
      append_images=others,
      duration=durations.tolist(),
      loop=0,
    )
    if file.tell() <= max_bytes or not others:
      return file.getvalue()
  raise AssertionError
