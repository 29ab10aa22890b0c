"""The Ray actor of a node. Workers import it, so it imports little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ray

from r2d2_acme.running import hosting


class RayHost(hosting.NodeHost):
  """A `NodeHost` that Ray places. Its calls run in order, beside one that watches."""

  def locate(
    self, packages: Sequence[str], workdir: str | None, env: Mapping[str, str]
  ) -> tuple[str, hosting.Facts]:
    """Returns the address of this host as Ray knows it, and what `describe` does."""
    return ray.util.get_node_ip_address(), self.describe(packages, workdir, env)

  @ray.method(concurrency_group='watching')
  def watch(self, num_lines: int, news: tuple, period: float) -> hosting.Report:
    """See `NodeHost.watch`."""
    return super().watch(num_lines, news, period)
