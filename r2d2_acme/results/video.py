"""A video of an episode: the screen and, beside it, the Q-values of every step."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import dm_env
import numpy as np
from dm_env import specs

from r2d2_acme.observations import scaling
from r2d2_acme.workdir import paths

_MIN_HEIGHT = 420  # pixels: of an Atari screen, doubled
_PANEL_WIDTH = 300
_ROW_HEIGHT = 22  # for each action
_NAME_WIDTH = 120
_WHITE, _GREY, _GREEN = (235, 235, 235), (120, 120, 120), (70, 200, 90)  # RGB
_EMULATOR_RATE = 60  # frames per second


class Recorder:
  """Writes an MP4: a frame for each call, until `close`."""

  def __init__(self, path: str, environment: dm_env.Environment):
    self.path = path
    self._screen = screen_of(environment)
    self._names = action_names(environment)
    self._frames_per_second = frames_per_second(environment)
    self._writer: cv2.VideoWriter | None = None
    self._total = 0.0

  def __call__(self, timestep: dm_env.TimeStep, q: np.ndarray, action: int):
    """Adds what was seen, the Q-values of it, float32 [A], and the action then taken.

    Raises:
      OSError: the file cannot be written.
    """
    self._total += timestep.reward or 0.0
    frame = compose(self._screen(timestep), q, action, self._names, self._total)
    if self._writer is None:
      height, width = frame.shape[:2]
      folder, name = os.path.split(os.path.abspath(self.path))
      # OpenCV crashes at a path that is not UTF-8.
      with paths.opened(folder) as plain_folder:
        self._writer = cv2.VideoWriter(
          os.path.join(plain_folder, name),
          cv2.VideoWriter.fourcc(*'mp4v'),  # in OpenCV itself: needs no ffmpeg program
          self._frames_per_second,
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
  """One frame of the video.

  Args:
    screen: uint8 [H, W, 3], shown enlarged by a whole factor.
    q: float32 [A], as the network gives them, that is rescaled. The longest bar is
      the largest of them, the smallest has none.
    action: that was taken; its bar is green.
    names: of the A actions.
    total: the return so far.

  Returns:
    uint8 RGB, of even height and width.
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
  low, high = float(q.min()), float(q.max())
  _write(frame, f'return {total:g}   max Q {high:.3f}', left, 0, _WHITE)
  for i, (name, value) in enumerate(zip(names, q, strict=True)):
    color = _GREEN if i == action else _GREY
    _write(frame, name, left, i + 1, _GREEN if i == action else _WHITE)
    length = (value - low) / (high - low) if high > low else 0.0
    top = (i + 1) * _ROW_HEIGHT + 4
    start = left + _NAME_WIDTH
    end = start + 1 + round(float(length) * (_PANEL_WIDTH - _NAME_WIDTH - 24))
    frame[top : top + _ROW_HEIGHT - 8, start:end] = color
  return frame


def screen_of(
  environment: dm_env.Environment,
) -> Callable[[dm_env.TimeStep], np.ndarray]:
  """What shows the environment as it is now, uint8 RGB [H, W, 3].

  The emulator's screen for Atari, otherwise what the environment renders, and where
  it does not, the observation.
  """
  base = _innermost(environment)
  spec = environment.observation_spec()
  if hasattr(base, 'ale'):
    return lambda timestep: base.ale.getScreenRGB()
  if base is not None and 'rgb_array' in base.metadata.get('render_modes', ()):
    base.render_mode = 'rgb_array'  # was made without: training never looks

    def render(timestep: dm_env.TimeStep) -> np.ndarray:
      try:
        return np.asarray(base.render(), np.uint8)
      except Exception:  # anyone's renderer: it may miss a library, or a display
        return _draw(timestep.observation, spec)

    return render
  return lambda timestep: _draw(timestep.observation, spec)


def action_names(environment: dm_env.Environment) -> list[str]:
  """Atari's words for them; elsewhere numbers."""
  base = _innermost(environment)
  if hasattr(base, 'get_action_meanings'):
    return list(base.get_action_meanings())
  return [str(i) for i in range(environment.action_spec().num_values)]


def frames_per_second(environment: dm_env.Environment) -> float:
  """At which the environment runs as fast as for a person."""
  base = _innermost(environment)
  if hasattr(base, 'ale'):
    return _EMULATOR_RATE / getattr(environment, 'frames_per_step', 1)
  return float(getattr(base, 'metadata', {}).get('render_fps') or 15)


def _innermost(environment: dm_env.Environment) -> Any:
  """The Gymnasium environment without its wrappers, where there is one."""
  return getattr(getattr(environment, 'gymnasium_env', None), 'unwrapped', None)


def _draw(observation: np.ndarray, spec: specs.Array) -> np.ndarray:
  """Images by their bounds, vectors as a row of fields, as bright as they are large."""
  x = observation.astype(np.float32)
  if observation.ndim == 3:
    minimum, span = scaling.by_bounds(spec) or (0.0, 1.0)
    x = (x - minimum) / span
    low, high = min(x.min(), 0.0), max(x.max(), 1.0)  # others than 0, 1 if unbounded
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
