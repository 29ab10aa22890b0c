"""What launchers find in a program."""

import launchpad as lp

from r2d2_acme.running import wiring


class _Server:
  def run(self):
    pass


class _Client:
  def __init__(self, *servers):
    pass


def test_nodes_that_know_an_address_are_found_with_whose_it_is():
  program = lp.Program('any')
  with program.group('learner'):
    learner = program.add_node(lp.CourierNode(_Server))
  with program.group('cacher'):
    cachers = [program.add_node(lp.CourierNode(_Client, learner)) for _ in range(2)]
  with program.group('actor'):
    for cacher in cachers:
      program.add_node(lp.PyClassNode(_Client, 7, [cacher]))
  assert wiring.find_servers(program) == {
    'learner/0': set(),
    'cacher/0': {'learner/0'},
    'cacher/1': {'learner/0'},
    'actor/0': {'cacher/0'},
    'actor/1': {'cacher/1'},
  }


def test_nodes_that_others_need_stop_last():
  client, server = lp.PyClassNode(_Client), lp.CourierNode(_Server)
  replay = lp.ReverbNode(lambda: [])
  orders = [wiring.stop_order(node) for node in (client, server, replay)]
  assert orders == sorted(orders) and len(set(orders)) == 3
