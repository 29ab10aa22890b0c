"""What Launchpad's own launchers do with a program: nothing else uses its privates."""

from collections.abc import Callable, Mapping
from typing import Any

import launchpad as lp


def connect(
  program: lp.Program,
  launch_type: lp.LaunchType,
  stop: Callable[[], None],
  configs: Mapping[str, Any],
):
  """Gives the nodes of a program their contexts and each other's handles.

  Args:
    program: has no ports yet.
    launch_type: what the nodes see as their launch type.
    stop: what `lp.stop` calls in a node.
    configs: Launchpad's launch configs, by group.
  """
  for group, nodes in program.groups.items():
    for node in nodes:
      node.launch_context.initialize(launch_type, configs.get(group), stop)
  for group, nodes in program.groups.items():
    for node in nodes:
      for handle in node.input_handles:
        handle.connect(node, group)


def make_executables(
  program: lp.Program,
  launch_type: lp.LaunchType,
  stop: Callable[[], None],
  configs: Mapping[str, Any],
) -> dict[str, list[Any]]:
  """Connects the nodes, as `connect` does, and gives them ports of this machine.

  Returns:
    By group, the nodes' commands (`local_mp`) or functions (`local_mt`).
  """
  connect(program, launch_type, stop, configs)
  for node in program.get_all_nodes():
    node.bind_addresses()
  return {
    group: nodes[0].to_executables(nodes, group, nodes[0].launch_context)
    for group, nodes in program.groups.items()
  }


def find_servers(program: lp.Program) -> dict[str, set[str]]:
  """Returns, by the name of each node, the names of those whose addresses it knows."""
  nodes = {
    f'{group}/{index}': node
    for group, nodes in program.groups.items()
    for index, node in enumerate(nodes)
  }
  owners = {
    id(handle): name for name, node in nodes.items() for handle in node._created_handles
  }
  return {
    name: {owners[id(handle)] for handle in node.input_handles if id(handle) in owners}
    for name, node in nodes.items()
  }


def stop_replays(program: lp.Program):
  """Stops the replays of a program whose nodes are threads of this process."""
  for node in program.get_all_nodes():
    if isinstance(node, lp.ReverbNode) and hasattr(node, '_server'):
      node._server.stop()


def stop_order(node: Any) -> int:
  """Returns a larger number for nodes that others need until their own end."""
  kinds = (lp.CourierNode, lp.ReverbNode)
  return next((i for i, kind in enumerate(kinds, 1) if isinstance(node, kind)), 0)
