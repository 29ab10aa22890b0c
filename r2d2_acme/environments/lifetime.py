"""Environments are closed by who made them: some have processes of their own."""

import contextlib
import traceback
from collections.abc import Callable, Iterable, Iterator

import dm_env


@contextlib.contextmanager
def opened(
  factory: Callable[[int], dm_env.Environment], seeds: Iterable[int]
) -> Iterator[list[dm_env.Environment]]:
  """Makes an environment from each seed, and closes all of them at the end.

  An error of `close` is printed, not raised: it must not hide why the end came.

  Args:
    factory: makes an environment from a seed. If it raises, those that it has made are
      closed.
    seeds: of the environments.
  """
  with contextlib.ExitStack() as stack:
    environments = []
    for seed in seeds:
      environments.append(factory(seed))
      stack.callback(_close, environments[-1])
    yield environments


def _close(environment: dm_env.Environment):
  try:
    environment.close()
  except Exception:
    traceback.print_exc()
