"""The limit of acting: the emulator with its preprocessing, and nothing else."""

import itertools
import time
from collections.abc import Callable

import dm_env
import numpy as np

from r2d2_acme.environments import make_atari

# Plays until the function given says stop; returns the number of steps.
Player = Callable[[Callable[[], bool]], int]


def make_environments(game: str, num: int, seed: int = 0) -> list[dm_env.Environment]:
  """Single uint8 frames, all 18 actions."""
  return [make_atari(game, seed=seed + i) for i in range(num)]


_SECONDS = 0.7  # of a measurement
_WARM_UP = 150  # calls: longer than a trace, after which a first window is written


def steps_per_second(play: Player) -> Callable[[], float]:
  """A `measure` that plays for `_SECONDS`."""
  calls = itertools.count()
  play(lambda: next(calls) >= _WARM_UP)

  def measure() -> float:
    start = time.monotonic()
    steps = play(lambda: time.monotonic() - start >= _SECONDS)
    return steps / (time.monotonic() - start)

  return measure


def bare(game: str, num: int) -> Callable[[], float]:
  """Side: `num` environments in turn, with random actions."""
  environments = make_environments(game, num)
  timesteps = [environment.reset() for environment in environments]
  rng = np.random.default_rng(0)
  num_actions = environments[0].action_spec().num_values

  def play(should_stop: Callable[[], bool]) -> int:
    steps = 0
    while not should_stop():
      actions = rng.integers(num_actions, size=num)
      for i, environment in enumerate(environments):
        if timesteps[i].last():
          timesteps[i] = environment.reset()
        else:
          timesteps[i] = environment.step(actions[i])
          steps += 1
    return steps

  return steps_per_second(play)
