"""Makes environments, makes those that fail again, and closes all of them at the end.

An environment may have processes of its own, and it may fail hours after its start.
"""

import collections
import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence

import dm_env
import gymnasium

from r2d2_acme.environments import base
from r2d2_acme.environments.checks import Checked, EnvironmentFailed, checked
from r2d2_acme.environments.factories import EnvironmentFactory
from r2d2_acme.environments.gymnasium_adapter import name_of
from r2d2_acme.environments.gymnasium_ids import adapt
from r2d2_acme.seeds import derive_seed

_BUDGET_PERIOD = 3600.0  # seconds
# Seconds of pause before an environment is made again that had failed at once.
_PAUSE = 1.0


class EpisodeLost(EnvironmentFailed):
  """An environment failed in an episode, and its next `reset` makes it again."""


class TooManyFailures(EnvironmentFailed):
  """Environments failed more often than is allowed; the message is one line."""


@contextlib.contextmanager
def opened(
  factory: EnvironmentFactory,
  seeds: Iterable[int],
  max_failures: int = 0,
  *,
  have_worked: bool = False,
) -> Iterator[Sequence[dm_env.Environment]]:
  """Makes a `checked` environment from each seed; closes all of them at the end.

  With `max_failures`, an environment that fails raises `EpisodeLost` and prints the
  cause to stderr. Its next `reset` closes it and makes it again, from a new seed. If
  that fails too, it counts as another failure. A failure before any of the environments
  has taken a step raises `EnvironmentFailed`, because it would only happen again. That
  is not so if others `have_worked` before.

  An error in `close` is printed and not raised, because it would hide an earlier one.

  Args:
    factory: makes a `dm_env` or Gymnasium environment from a seed. If it raises, those
      that it has made are closed.
    seeds: of the environments.
    max_failures: failures of all environments together in an hour, beyond which
      `TooManyFailures` is raised. With 0 the first one raises `EnvironmentFailed`.
    have_worked: whether environments of this run have taken a step before: in an
      earlier start of the program or of the node, or in another node.

  Raises:
    ValueError: what it makes is neither, or R2D2 does not fit it.
  """
  with contextlib.ExitStack() as stack:
    fleet: list[_Lasting] = []
    budget = _Budget(fleet, max_failures, have_worked)
    for seed in seeds:
      environment = _Lasting(factory, seed, budget)
      stack.callback(_close, environment)
      fleet.append(environment)
    yield fleet


class _Lasting(Checked):
  """A checked environment that `reset` makes again after a failure; see `opened`."""

  def __init__(self, factory: EnvironmentFactory, seed: int, budget: '_Budget'):
    self._factory = factory
    self._seed = seed
    self._budget = budget
    self._num_made = 0
    self._has_failed = False
    made = self._make()
    super().__init__(made._environment, made._name)

  @property
  def has_worked(self) -> bool:
    """Whether it has ever taken a step."""
    return self._num_episodes > 1 or self._num_steps > 0

  def reset(self) -> dm_env.TimeStep:
    if self._has_failed:
      self._is_over = True
      _close(self)
      if time.monotonic() - self._made_at < _PAUSE:
        time.sleep(_PAUSE)
      try:
        self._environment = self._make()._environment
      except base.FAULTS as error:
        cause = base.describe_error(error)
        raise self._failed(f'it cannot be made again: {cause}') from error
      self._has_failed = self._is_closed = False
    return super().reset()

  def _make(self) -> Checked:
    """Makes the environment from a seed that depends on how often it was made."""
    seed, number = self._seed, self._num_made
    self._num_made += 1
    self._made_at = time.monotonic()
    return _make(self._factory, derive_seed(seed, number) if number else seed)

  def _failed(self, reason: str) -> EnvironmentFailed:
    self._has_failed = True
    return self._budget.spend(super()._failed(reason))


class _Budget:
  """Decides whether environments that fail may be made again."""

  def __init__(self, fleet: Sequence[_Lasting], max_failures: int, have_worked: bool):
    """Stores the fleet and its budget, a number of failures in an hour."""
    self._fleet = fleet
    self._max_failures = max_failures
    self._have_worked = have_worked
    self._times: collections.deque[float] = collections.deque()  # of failures

  def spend(self, failure: EnvironmentFailed) -> EnvironmentFailed:
    """Counts a failure; returns the error to raise for it."""
    self._have_worked |= any(environment.has_worked for environment in self._fleet)
    if not (self._max_failures and self._have_worked):
      return failure
    now = time.monotonic()
    self._times.append(now)
    while self._times[0] < now - _BUDGET_PERIOD:
      self._times.popleft()
    number = len(self._times)
    if number > self._max_failures:
      return TooManyFailures(
        f'{number} failures of environments in an hour are more than '
        f'max_environment_failures={self._max_failures} allows; the last: {failure}'
      )
    print(
      f'{failure}; its episode is dropped, and it is made again (failure {number} of '
      f'at most {self._max_failures} in an hour)',
      file=sys.stderr,
      flush=True,
    )
    return EpisodeLost(str(failure))


def make_dm_env(factory: EnvironmentFactory, seed: int) -> dm_env.Environment:
  """Makes an environment from a seed, a Gymnasium one behind a `GymnasiumAdapter`.

  Raises:
    ValueError: R2D2 does not fit it.
  """
  environment = factory(seed)
  if not isinstance(environment, gymnasium.Env):
    return environment
  try:
    return adapt(environment, name_of(environment), seed)
  except BaseException:
    _close(environment)
    raise


def _make(factory: EnvironmentFactory, seed: int) -> Checked:
  """Makes a checked environment."""
  environment = make_dm_env(factory, seed)
  try:
    return checked(environment)
  except BaseException:
    _close(environment)
    raise


def _close(environment: dm_env.Environment):
  close = getattr(environment, 'close', None)
  if close is None:
    return  # it is not an environment
  try:
    close()
  except base.FAULTS as error:
    print(
      error if isinstance(error, EnvironmentFailed) else base.describe_error(error),
      file=sys.stderr,
      flush=True,
    )
