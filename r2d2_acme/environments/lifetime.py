"""Makes environments and closes them at the end: some have processes of their own."""

import contextlib
import sys
from collections.abc import Iterable, Iterator

import dm_env
import gymnasium

from r2d2_acme.environments import base
from r2d2_acme.environments.checks import EnvironmentFailed, checked
from r2d2_acme.environments.factories import EnvironmentFactory
from r2d2_acme.environments.gymnasium_adapter import name_of
from r2d2_acme.environments.gymnasium_ids import adapt


@contextlib.contextmanager
def opened(
  factory: EnvironmentFactory, seeds: Iterable[int]
) -> Iterator[list[dm_env.Environment]]:
  """Makes a `checked` environment from each seed; closes all of them at the end.

  An error in `close` is printed and not raised, because it would hide an earlier one.

  Args:
    factory: makes a `dm_env` or Gymnasium environment from a seed. If it raises, those
      that it has made are closed.
    seeds: of the environments.

  Raises:
    ValueError: what it makes is neither, or R2D2 does not fit it.
  """
  with contextlib.ExitStack() as stack:
    environments = []
    for seed in seeds:
      environment = factory(seed)
      try:
        if isinstance(environment, gymnasium.Env):
          environment = adapt(environment, name_of(environment), seed)
        environment = checked(environment)
      finally:
        stack.callback(_close, environment)
      environments.append(environment)
    yield environments


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
