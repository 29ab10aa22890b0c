"""The animated GIF: its frames, its size, its curve, and what the program makes."""

import io

import numpy as np
import pytest
from PIL import Image, ImageSequence

from r2d2_acme.environments import make_atari
from r2d2_acme.results import animation, plotting, video

_BLUE, _ORANGE = (31, 119, 180), (255, 127, 14)  # of the curve and of the marker


def _run(returns, environment='pong') -> plotting.Run:
  """A run with an evaluator episode after each million frames."""
  frames = 1e6 * np.arange(1, len(returns) + 1)
  evaluator = plotting.Episodes(frames, frames, np.array(returns, np.float64))
  none = plotting.Episodes(*3 * [np.zeros(0)])
  return plotting.Run('runs/pong', environment, {}, evaluator, none)


def _decode(data: bytes) -> tuple[list[np.ndarray], list[float]]:
  """Returns the frames of a GIF, uint8 RGB, and their durations in seconds."""
  with Image.open(io.BytesIO(data)) as image:
    assert image.info['loop'] == 0  # for ever
    frames = list(ImageSequence.all_frames(image))
  return (
    [np.asarray(frame.convert('RGB')) for frame in frames],
    [frame.info['duration'] / 1000 for frame in frames],
  )


def _columns_of(picture: np.ndarray, color) -> np.ndarray:
  """Returns the columns that have pixels of about this colour."""
  near = np.abs(picture.astype(int) - np.array(color)).sum(axis=-1) < 60
  return np.flatnonzero(near.any(axis=0))


def _noise(num_frames: int) -> list[np.ndarray]:
  rng = np.random.default_rng(0)
  return list(rng.integers(256, size=(num_frames, 40, 60, 3), dtype=np.uint8))


def test_gif_has_all_frames_at_their_speed():
  frames = []
  for i in range(12):
    frames.append(np.zeros((40, 60, 3), np.uint8))
    frames[-1][10:20, 4 * i : 4 * i + 8] = video._GREEN
  decoded, durations = _decode(animation.encode(frames, 10.0))
  np.testing.assert_array_equal(np.stack(decoded), np.stack(frames))
  assert durations == [0.1] * 12


def test_too_large_a_gif_leaves_out_frames_and_keeps_its_duration():
  frames = _noise(12)
  whole = animation.encode(frames, 10.0)
  smaller = animation.encode(frames, 10.0, max_bytes=len(whole) // 2)
  assert len(smaller) <= len(whole) // 2
  durations = _decode(smaller)[1]
  assert len(durations) == 4  # every third: headers and palette take space, too
  assert sum(durations) == pytest.approx(sum(_decode(whole)[1]))


def test_single_frame_is_written_whatever_its_size():
  assert len(_decode(animation.encode(_noise(5), 10.0, max_bytes=1))[0]) == 1


@pytest.mark.parametrize('height', [420, 426, 457, 462])
def test_curve_has_the_height_that_is_asked_for(height):
  picture = animation.draw_curve(_run([0, 1]), 1e6, height)
  assert picture.shape == (height, 400, 3)
  assert picture.dtype == np.uint8


def test_marker_is_where_training_was():
  run = _run([10, 10, 10, 10])  # half-way up, beside the legend
  early, late = (animation.draw_curve(run, frames, 420) for frames in (1.5e6, 3.5e6))
  for picture in (early, late):
    curve, marker = (_columns_of(picture[:300], color) for color in (_BLUE, _ORANGE))
    assert curve.size
    assert marker.size <= 5  # one vertical line
    share = (marker.mean() - curve.min()) / (curve.max() - curve.min())
    # The curve covers 1 to 4 million frames.
    expected = 0.5 / 3 if picture is early else 2.5 / 3
    assert share == pytest.approx(expected, abs=0.03)


def test_run_without_an_episode_has_empty_axes():
  picture = animation.draw_curve(_run([]), 0.0, 420)
  assert not _columns_of(picture, _BLUE).size
  assert _columns_of(picture, _ORANGE).size


def test_recorder_shows_the_first_seconds_of_a_game_beside_the_curve(tmp_path):
  path = tmp_path / 'pong.gif'
  environment = make_atari('pong', seed=0, full_action_space=False)
  run = _run([-21, -5, 20])
  recorder = animation.Recorder(str(path), environment, run, 2e6, seconds=2.0)
  camera = video.Camera(environment)
  rng = np.random.default_rng(0)
  timestep = environment.reset()
  expected = []
  for step in range(45):  # 3 seconds
    q, action = rng.normal(size=6).astype(np.float32), int(rng.integers(6))
    if step < 30:
      expected.append(camera(timestep, q, action))
    recorder(timestep, q, action)
    timestep = environment.step(action)
  recorder.close()
  frames, durations = _decode(path.read_bytes())
  assert sum(durations) == pytest.approx(2.0)
  assert path.stat().st_size <= animation.MAX_BYTES
  assert len(frames) == 30
  height, width = expected[0].shape[:2]
  for frame, wanted in zip(frames, expected, strict=True):
    assert frame.shape == (height, width + 400, 3)
    # 64 colours: letters have soft edges, but the game's colours are exact enough.
    error = np.abs(frame[:, :width].astype(int) - wanted)
    assert np.mean(error) < 2
    np.testing.assert_array_equal(frame[:, width:], frames[0][:, width:])
  assert not np.array_equal(frames[0][:, :width], frames[-1][:, :width])


def test_file_that_cannot_be_written_is_refused_before_the_episode(tmp_path):
  environment = make_atari('pong')
  with pytest.raises(OSError):
    animation.Recorder(f'{tmp_path}/missing/a.gif', environment, _run([1]), 0.0)
