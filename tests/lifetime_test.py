"""`environments.opened`: whoever makes environments closes them."""

import pytest

from r2d2_acme import environments
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
