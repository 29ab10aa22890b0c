"""A video of an episode: the screen with the Q-values of every step beside it."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import dm_env
import numpy as np

from r2d2_acme.observations import layouts, scaling
from r2d2_acme.types import INVALID_Q
from r2d2_acme.workdir import paths

_MIN_HEIGHT = 420  # pixels: an Atari screen, doubled
_PANEL_WIDTH = 300  # pixels, of the Q-values beside the screen
_ROW_HEIGHT = 22  # pixels, for each action
_NAME_WIDTH = 120  # pixels, of an action's name
_WHITE, _GREY, _GREEN = (235, 235, 235), (120, 120, 120), (70, 200, 90)  # RGB
_EMULATOR_RATE = 60  # frames per second


class Camera:
  """Draws the steps of one episode.

  Attributes:
    frames_per_second: the speed at which a person would see the environment.
  """

  def __init__(self, environment: dm_env.Environment):
    self.frames_per_second = frames_per_second(environment)
    self._screen = screen_of(environment)
    self._names = action_names(environment)
    self._total = 0.0

  def __call__(
    self, timestep: dm_env.TimeStep, q: np.ndarray, action: int
  ) -> np.ndarray:
    """Returns the frame of a step; see `compose`.

    Args:
      timestep: the time step that the environment has just returned.
      q: float32 [A], the Q-values for it.
      action: the action that is taken next.
    """
    self._total += timestep.reward or 0.0
    return compose(self._screen(timestep), q, action, self._names, self._total)


class Recorder:
  """Writes an MP4 with a frame for each call, until `close`."""

  def __init__(self, path: str, environment: dm_env.Environment):
    self.path = path
    self._camera = Camera(environment)
    self._writer: cv2.VideoWriter | None = None

  def __call__(self, timestep: dm_env.TimeStep, q: np.ndarray, action: int):
    """Adds a step; see `Camera`.

    Raises:
      OSError: the file cannot be written.
    """
    frame = self._camera(timestep, q, action)
    if self._writer is None:
      height, width = frame.shape[:2]
      folder, name = os.path.split(os.path.abspath(self.path))
      # OpenCV crashes at a path that is not UTF-8.
      with paths.opened(folder) as plain_folder:
        self._writer = cv2.VideoWriter(
          os.path.join(plain_folder, name),
          cv2.VideoWriter.fourcc(*'mp4v'),  # in OpenCV itself: needs no ffmpeg program
          self._camera.frames_per_second,
          (width, height),
        )
      if not self._writer.isOpened():
        raise OSError(f'cannot write {paths.shown(self.path)}')
    self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

  def close(self):
    if self._writer is not None:
      self._writer.release()


def compose(
  screen: np.ndarray, q: np.ndarray, action: int, names: Sequence[str], total: float
) -> np.ndarray:
  """Returns one frame of the video.

  Args:
    screen: uint8 RGB [H, W, 3]. It is enlarged by a whole factor.
    q: float32 [A], the network's outputs, which are rescaled Q-values. The largest has
      the longest bar and the smallest has none.
    action: the action that is taken. Its bar is green.
    names: the names of the A actions.
    total: the return so far.

  Returns:
    uint8 RGB. Height and width are even, as MP4 needs them.
  """
  scale = max(1, round(_MIN_HEIGHT / screen.shape[0]))
  screen = screen.repeat(scale, axis=0).repeat(scale, axis=1)
  num_rows = len(q) + 2
  height = max(screen.shape[0], num_rows * _ROW_HEIGHT)
  frame = np.zeros(
    (height + height % 2, screen.shape[1] + screen.shape[1] % 2 + _PANEL_WIDTH, 3),
    np.uint8,
  )
  frame[: screen.shape[0], : screen.shape[1]] = screen
  left = frame.shape[1] - _PANEL_WIDTH + 8
  low, high = float(q[q != INVALID_Q].min(initial=q.max())), float(q.max())
  _write(frame, f'return {total:g}   max Q {high:.3f}', left, 0, _WHITE)
  for i, (name, value) in enumerate(zip(names, q, strict=True)):
    color = _GREEN if i == action else _GREY
    _write(frame, name, left, i + 1, _GREEN if i == action else _WHITE)
    length = max(0.0, (value - low) / (high - low)) if high > low else 0.0
    top = (i + 1) * _ROW_HEIGHT + 4
    start = left + _NAME_WIDTH
    end = start + 1 + round(float(length) * (_PANEL_WIDTH - _NAME_WIDTH - 24))
    frame[top : top + _ROW_HEIGHT - 8, start:end] = color
  return frame


def screen_of(
  environment: dm_env.Environment,
) -> Callable[[dm_env.TimeStep], np.ndarray]:
  """Returns a function that shows the environment's present state.

  The function returns uint8 RGB [H, W, 3]: the emulator's screen for Atari, otherwise
  what the environment renders, and the observation if the environment cannot render.
  """
  base = _innermost(environment)
  spec = environment.observation_spec()
  if hasattr(base, 'ale'):
    return lambda timestep: base.ale.getScreenRGB()
  if base is not None and 'rgb_array' in base.metadata.get('render_modes', ()):
    base.render_mode = 'rgb_array'  # not set at its making, as training never renders

    def render(timestep: dm_env.TimeStep) -> np.ndarray:
      try:
        return np.asarray(base.render(), np.uint8)
      except Exception:  # a renderer may lack a library or a display
        return _draw(timestep.observation, spec)

    return render
  return lambda timestep: _draw(timestep.observation, spec)


def action_names(environment: dm_env.Environment) -> list[str]:
  """Returns the names of Atari's actions, such as 'FIRE', and numbers elsewhere."""
  base = _innermost(environment)
  if hasattr(base, 'get_action_meanings'):
    return list(base.get_action_meanings())
  return [str(i) for i in range(environment.action_spec().num_values)]


def frames_per_second(environment: dm_env.Environment) -> float:
  """Returns the steps per second at which a person would see the environment."""
  base = _innermost(environment)
  if hasattr(base, 'ale'):
    return _EMULATOR_RATE / getattr(environment, 'frames_per_step', 1)
  return float(getattr(base, 'metadata', {}).get('render_fps') or 15)


def _innermost(environment: dm_env.Environment) -> Any:
  """Returns the Gymnasium environment without its wrappers; None if there is none."""
  return getattr(getattr(environment, 'gymnasium_env', None), 'unwrapped', None)


def _draw(observation: Any, spec: Any) -> np.ndarray:
  """Draws an image scaled by its bounds, or a vector as a row of grey fields.

  The larger a number of the vector is, the brighter is its field. Of a nest the first
  image is drawn, or else the first leaf.
  """
  leaves = layouts.numeric_leaves(spec)
  images = [leaf for leaf in leaves if layouts.image_shape(leaf.value) is not None]
  _, spec, path = (images or leaves)[0]
  x = layouts.get(observation, path).astype(np.float32)
  if images:
    minimum, span = scaling.by_bounds(spec) or (0.0, 1.0)
    x = layouts.as_image((x - minimum) / span)
    low, high = min(x.min(), 0.0), max(x.max(), 1.0)  # not 0 and 1 only if unbounded
    image = (255 * (x - low) / (high - low)).round().astype(np.uint8)
  else:
    x = np.ravel(x)
    low, high = x.min(), x.max()
    row = (x - low) / (high - low) if high > low else np.zeros_like(x)
    fields = (255 * row).astype(np.uint8)[np.newaxis, :, np.newaxis]
    image = fields.repeat(30, axis=0).repeat(30, axis=1)
  if image.shape[-1] != 3:
    image = image[..., -1:]
  return np.broadcast_to(image, (*image.shape[:2], 3))


def _write(frame: np.ndarray, text: str, left: int, row: int, color):
  """Writes text into a row of the panel."""
  cv2.putText(
    frame,
    text,
    (left, row * _ROW_HEIGHT + 16),
    cv2.FONT_HERSHEY_SIMPLEX,
    0.45,
    color,
    1,
    cv2.LINE_AA,
  )
