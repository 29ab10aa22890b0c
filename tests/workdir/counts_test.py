"""Counts are exact whatever is lost, late or repeated, and whoever starts again."""

import random
import threading
import time

from r2d2_acme.workdir import counts as counts_lib
from tests import helpers


def _without_time(counts):
  return {name: count for name, count in counts.items() if name != 'wall_time'}


def test_counts_are_the_sum_of_all_sources_and_the_own():
  ledger = counts_lib.Ledger({'actor_steps': 100, 'learner_steps': 7})
  ledger.report('actor/0/0/0', {'actor_steps': 10, 'actor_episodes': 1})
  ledger.report('actor/1/0/0', {'actor_steps': 20})
  counts = ledger.increment(learner_steps=2)
  assert _without_time(counts) == {
    'actor_steps': 130,
    'actor_episodes': 1,
    'learner_steps': 9,
  }
  # A node that was started again counts from 0.
  counts = ledger.report('actor/0/0/1', {'actor_steps': 5})
  assert counts['actor_steps'] == 135


def test_lost_late_and_repeated_reports_do_no_harm():
  rng = random.Random(1)
  ledger = counts_lib.Ledger({})
  totals = dict.fromkeys(('a', 'b', 'c'), 0)
  late, before = [], 0
  for _ in range(2_000):
    source = rng.choice('abc')
    totals[source] += rng.randrange(5)
    late.append((source, {'steps': totals[source]}))
    if rng.random() < 0.2:
      continue  # lost, so far
    for report in rng.choices(late, k=2):  # in any order, and more than once
      now = ledger.report(*report)['steps']
      assert now >= before
      before = now
  for source, total in totals.items():
    ledger.report(source, {'steps': total})
  assert ledger.get_counts()['steps'] == sum(totals.values())


def test_learner_that_starts_again_is_brought_up_to_date_by_the_next_reports():
  ledger = counts_lib.Ledger({'actor_steps': 100, 'wall_time': 50.0})
  ledger.increment(learner_steps=3)
  ledger.report('a', {'actor_steps': 10})
  ledger.report('b', {'actor_steps': 20})
  saved = ledger.save()
  ledger.report('a', {'actor_steps': 17})
  ledger.increment(learner_steps=2)
  again = counts_lib.Ledger(saved)
  counts = again.get_counts()
  assert _without_time(counts) == {'actor_steps': 130, 'learner_steps': 3}
  assert counts['wall_time'] >= 50.0
  again.report('a', {'actor_steps': 18})
  again.report('c', {'actor_steps': 1})
  # Those of b, which is gone, stay.
  assert again.get_counts()['actor_steps'] == 100 + 18 + 20 + 1
  assert counts_lib.Ledger(again.save()).get_counts()['actor_steps'] == 139


def test_report_of_one_of_many_nodes_costs_no_more_than_that_of_one_of_few():
  def seconds(num_nodes: int) -> float:
    reported = {f'reported:{i}:steps': 1 for i in range(num_nodes)}
    ledger = counts_lib.Ledger({'steps': num_nodes, **reported})
    start = time.process_time()
    for _ in range(100):
      ledger.report('0', {'steps': 1})
    return time.process_time() - start

  assert seconds(10_000) < 20 * min(seconds(1) for _ in range(3))


def test_checkpoint_without_the_totals_of_nodes_has_their_sums():
  ledger = counts_lib.Ledger({'actor_steps': 100})
  ledger.report('actor/0/0/0', {'actor_steps': 10})
  counts = counts_lib.without_reports(ledger.save())
  assert set(counts) == {'actor_steps', 'wall_time'}
  assert counts['actor_steps'] == 110
  next_sitting = counts_lib.Ledger(counts)
  assert next_sitting.report('actor/0/1/0', {'actor_steps': 1})['actor_steps'] == 111
  assert set(counts_lib.Ledger(counts).save()) == {'actor_steps', 'wall_time'}


def test_no_increment_of_any_thread_is_lost():
  ledger = counts_lib.Ledger({})

  def count(source: str):
    for number in range(1, 2_001):
      ledger.increment(learner_steps=1)
      ledger.report(source, {'actor_steps': number})

  threads = [threading.Thread(target=count, args=(name,)) for name in 'abcd']
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  expected = {'learner_steps': 8_000, 'actor_steps': 8_000}
  assert _without_time(ledger.get_counts()) == expected


class _Learner:
  """A learner's node that can be away, and start again."""

  def __init__(self):
    self.ledger: counts_lib.Ledger | None = counts_lib.Ledger({})

  def report(self, source, totals):
    if self.ledger is None:
      raise RuntimeError('nobody answers')
    return self.ledger.report(source, totals)


def test_counts_of_a_node_that_starts_again_do_not_fall():
  learner = _Learner()
  learner.ledger.report('before', {'actor_steps': 1000})  # of 1010
  reporter = counts_lib.Reporter(
    learner, 'after', {'actor_steps': 1010, 'actor_episodes': 3}
  )
  assert reporter.get_counts()['actor_steps'] == 1010
  assert reporter.get_counts()['actor_episodes'] == 3
  assert reporter.increment(actor_steps=9)['actor_steps'] == 1010
  assert reporter.increment(actor_steps=9)['actor_steps'] == 1018


def test_reporter_counts_on_while_the_learner_is_away():
  learner = _Learner()
  learner.ledger.increment(learner_steps=5)
  learner.ledger.report('other', {'actor_steps': 1000})
  reporter = counts_lib.Reporter(learner, 'ours')
  assert reporter.increment(actor_steps=3)['actor_steps'] == 1003
  helpers.wait_until(lambda: learner.ledger.get_counts()['actor_steps'] == 1003, 10)
  learner.ledger = None
  for expected in (1004, 1005):
    assert reporter.increment(actor_steps=1)['actor_steps'] == expected
  time.sleep(1.5 * counts_lib._PERIOD)
  assert reporter.get_counts()['actor_steps'] == 1005
  # It is back, from a checkpoint of two steps earlier, and the other is gone.
  learner.ledger = counts_lib.Ledger({'actor_steps': 900, 'learner_steps': 3})
  helpers.wait_until(lambda: reporter.get_counts()['learner_steps'] == 3, 10)
  assert learner.ledger.get_counts()['actor_steps'] == 905
  assert reporter.get_counts()['actor_steps'] == 1005  # never backwards
  learner.ledger.report('other', {'actor_steps': 1000})
  reporter.increment(actor_steps=1)
  helpers.wait_until(lambda: reporter.get_counts()['actor_steps'] == 1906, 10)
