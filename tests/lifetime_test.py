"""`environments.opened`: makes environments, makes them again, and closes them."""

import time

import pytest

from r2d2_acme import environments
from r2d2_acme.environments import (
  EnvironmentFailed,
  EpisodeLost,
  TooManyFailures,
  lifetime,
)
from r2d2_acme.seeds import derive_seed
from tests import helpers


class _Closing(helpers.ScriptedEnvironment):
  def __init__(self, seed: int, closed: list[int]):
    super().__init__([])
    self._seed = seed
    self._closed = closed

  def close(self):
    self._closed.append(self._seed)
    if self._seed == 2:
      raise OSError('cannot close')


def test_environments_are_closed_at_the_end_each_of_them(capsys):
  closed: list[int] = []
  with environments.opened(lambda seed: _Closing(seed, closed), [1, 2, 3]) as opened:
    assert [environment._seed for environment in opened] == [1, 2, 3]
    assert closed == []
  assert closed == [3, 2, 1]
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('_Closing failed in close: OSError: cannot close (')


def test_error_of_close_does_not_hide_the_error_before():
  with pytest.raises(ValueError, match='the cause'):
    with environments.opened(lambda seed: _Closing(seed, []), [2]):
      raise ValueError('the cause')


def test_environments_are_checked():
  with environments.opened(lambda seed: _Closing(seed, []), [1]) as (environment,):
    assert environments.checked(environment) is environment


def test_what_is_no_environment_is_one_line_and_closed(capsys):
  for made in (None, object()):
    with pytest.raises(ValueError, match='must be dm_env.Environments, not '):
      with environments.opened(lambda seed, made=made: made, [1]):
        raise AssertionError
  assert not capsys.readouterr().err


def test_environments_are_closed_when_another_cannot_be_made():
  closed: list[int] = []

  def make(seed: int):
    if seed == 3:
      raise ValueError('no such environment')
    return _Closing(seed, closed)

  with pytest.raises(ValueError, match='no such'):
    with environments.opened(make, [1, 2, 3]):
      raise AssertionError
  assert closed == [2, 1]


@pytest.fixture
def no_pause(monkeypatch):
  monkeypatch.setattr(lifetime, '_PAUSE', 0.0)


class _Steps(helpers.ScriptedEnvironment):
  """Fails in every step after the given number of them."""

  def __init__(self, seed: int, num_steps: float, closed: list[int]):
    super().__init__([helpers.Episode(100, False)] * 9)
    self.seed = seed
    self._num_left = num_steps
    self._closed = closed

  def step(self, action):
    self._num_left -= 1
    if self._num_left < 0:
      raise OSError('no signal')
    return super().step(action)

  def close(self):
    self._closed.append(self.seed)
    raise OSError('cannot close')


def test_an_environment_that_failed_is_made_again_from_a_new_seed(no_pause, capsys):
  closed: list[int] = []
  with environments.opened(lambda seed: _Steps(seed, 2, closed), [5, 6], 9) as fleet:
    failing, other = fleet
    seeds = []
    for _ in range(3):
      failing.reset()
      failing.step(0)
      failing.step(0)
      seeds.append(failing.seed)
      with pytest.raises(EpisodeLost, match='_Steps failed in step 3 of episode '):
        failing.step(0)
    other.reset()
    other.step(0)
    assert other.seed == 6
  assert seeds == [5, derive_seed(5, 1), derive_seed(5, 2)]
  assert closed == [*seeds[:2], 6, seeds[2]]
  lines = capsys.readouterr().err.splitlines()
  assert sum('failed in close' in line for line in lines) == 4
  assert [line[-30:] for line in lines if 'it is made again' in line] == [
    f'(failure {i} of at most 9 in an hour)'[-30:] for i in (1, 2, 3)
  ]


@pytest.mark.parametrize('num_steps', [0, 1])
def test_what_fails_before_any_step_fails_at_once(num_steps):
  """It is a mistake in the environment, and would fail again and again."""
  error = EpisodeLost if num_steps else EnvironmentFailed
  with environments.opened(lambda seed: _Steps(seed, num_steps, []), [5], 9) as fleet:
    fleet[0].reset()
    with pytest.raises(EnvironmentFailed) as raised:
      for _ in range(num_steps + 1):
        fleet[0].step(0)
  assert type(raised.value) is error


def test_what_has_worked_in_an_earlier_start_is_made_again(no_pause):
  with environments.opened(
    lambda seed: _Steps(seed, 0, []), [5], 1, have_worked=True
  ) as (environment,):
    environment.reset()
    with pytest.raises(EpisodeLost, match='no signal'):
      environment.step(0)
    environment.reset()
    with pytest.raises(TooManyFailures, match='2 failures .* more than .*=1 .*signal'):
      environment.step(0)


def test_failures_count_for_an_hour(monkeypatch, no_pause):
  now = 0.0
  monkeypatch.setattr(lifetime.time, 'monotonic', lambda: now)
  with environments.opened(lambda seed: _Steps(seed, 1, []), [5, 6], 2) as fleet:
    for minute in (0, 30, 61, 91, 122):
      now = 60.0 * minute
      environment = fleet[minute % 2]  # of all environments together
      environment.reset()
      environment.step(0)
      with pytest.raises(EpisodeLost):
        environment.step(0)
    environment.reset()
    environment.step(0)
    with pytest.raises(TooManyFailures, match='3 failures .* more than .*=2 .*signal'):
      now = 60.0 * 150
      environment.step(0)


def test_what_cannot_be_made_again_fails_until_it_can(no_pause):
  made: list[_Steps] = []
  faults = [OSError('no licence'), SystemExit(1), None]

  def make(seed: int):
    if made and (fault := faults.pop(0)):
      raise fault
    made.append(_Steps(seed, 1, []))
    return made[-1]

  with environments.opened(make, [5], 9) as (environment,):
    environment.reset()
    environment.step(0)
    with pytest.raises(EpisodeLost, match='no signal'):
      environment.step(0)
    for match in ('made again: OSError: no licence', 'made again: SystemExit: 1'):
      with pytest.raises(EpisodeLost, match=match):
        environment.reset()
    assert environment.reset().first()
    assert len(made) == 2


def test_what_fails_at_once_is_not_made_again_without_a_pause():
  with environments.opened(lambda seed: _Steps(seed, 1, []), [5], 9) as (environment,):
    start = time.monotonic()
    for _ in range(2):
      environment.reset()
      environment.step(0)
      with pytest.raises(EpisodeLost):
        environment.step(0)
    assert time.monotonic() - start >= lifetime._PAUSE
