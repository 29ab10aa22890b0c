"""Environments that fail among others: what replay, the log and the rest see of it."""

import collections
import gc
import itertools
import sys
from typing import NamedTuple

import numpy as np
import pytest
import reverb
from acme.utils import counting, loggers

from r2d2_acme import environments
from r2d2_acme.acting.loop import VectorEnvironmentLoop
from r2d2_acme.builder import R2D2Builder
from r2d2_acme.environments import EpisodeLost, TooManyFailures, lifetime
from tests import helpers
from tests.acting.worlds import merge_tapes
from tests.helpers import Episode, Key

_LENGTHS = (6, 9, 5, 1, 7)
_REMADE = 10  # environments that are made again have this index and the next ones


def _raise(timestep):
  raise OSError('the cable fell out')


def _exit(timestep):
  sys.exit(0)


def _spoil(timestep, value):
  observation = timestep.observation.copy()
  observation[-1] = value
  return timestep._replace(observation=observation)


_FAULTS = {
  'raises': _raise,
  'exits': _exit,
  'no time step': lambda timestep: tuple(timestep),
  'shape': lambda x: x._replace(observation=x.observation[:-1]),
  'dtype': lambda x: x._replace(observation=x.observation.astype(np.float64)),
  'nan observation': lambda x: _spoil(x, np.nan),
  'inf observation': lambda x: _spoil(x, -np.inf),
  'nan reward': lambda x: x._replace(reward=np.float32(np.nan)),
  'two rewards': lambda x: x._replace(reward=np.ones(2)),
}


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
  monkeypatch.setattr(lifetime, '_PAUSE', 0.01)


class _Faulty(helpers.ScriptedEnvironment):
  """Has a fault at one step of one episode."""

  def __init__(self, index: int, image: bool, at: tuple[int, int], fault):
    episodes = [Episode(length, length % 2 == 0) for length in _LENGTHS * 9]
    super().__init__(episodes, index, image)
    self._at = at
    self._fault = fault
    self.num_closed = 0

  def reset(self):
    return self._fail_if_due(super().reset())

  def step(self, action):
    return self._fail_if_due(super().step(action))

  def close(self):
    self.num_closed += 1

  def _fail_if_due(self, timestep):
    if self._key[1:] != self._at:
      return timestep
    del self.tape[self._key]
    return self._fault(timestep)


class _Run(NamedTuple):
  made: list[_Faulty]
  network: helpers.RecordingNetwork
  counts: dict[str, float]
  rows: list
  windows: list
  config: object


def _run(at, fault, *, image=False, max_failures=20, remade_at=(-1, -1)) -> _Run:
  """Plays 3 environments, of which number 1 has the fault."""
  config = helpers.make_config(envs_per_actor=3, priority_exponent=0.0)
  builder = R2D2Builder(config, helpers.make_spec(image))
  network = helpers.RecordingNetwork(builder.make_network())
  made: list[_Faulty] = []
  remade = itertools.count(_REMADE)

  def make(seed: int):
    is_first = len(made) < 3
    assert is_first == (seed < 3)
    index = seed if is_first else next(remade)
    never = (-1, -1)
    made.append(
      _Faulty(
        index,
        image,
        at if index == 1 else remade_at if index == _REMADE else never,
        fault,
      )
    )
    return made[-1]

  server, client = helpers.start_server(
    builder.make_tables(reverb.rate_limiters.MinSize(1))
  )
  counter, logger = counting.Counter(), loggers.InMemoryLogger()

  def act():
    actor = builder.make_actor(network=network, replay_clients=[client])
    with environments.opened(make, [0, 1, 2], max_failures) as fleet:
      loop = VectorEnvironmentLoop(fleet, actor, counter, logger)
      loop.run(num_steps=100)
    actor.flush()

  act()
  windows = helpers.read_windows(config, builder, client)
  gc.collect()
  server.stop()
  return _Run(made, network, counter.get_counts(), logger.data, windows, config)


def _check_replay(run: _Run, failed: dict[tuple[int, int], int]):
  """Checks that replay holds what it should of each episode, and nothing else.

  Args:
    run: whose replay is checked.
    failed: the step that failed by environment and episode.
  """
  tape = merge_tapes(run.made)
  burn_in, trace = run.config.burn_in_length, run.config.trace_length
  trained = collections.Counter()
  for window in run.windows:
    keys = set()
    for row in np.flatnonzero(window.mask):
      key = helpers.key_of(window.observations.observation[row])
      keys.add(key[:2])
      transition = (
        window.observations.action[row],
        window.observations.reward[row],
        window.discount[row],
      )
      assert transition == tuple(map(np.float32, tape[key]))
      if row > burn_in:
        trained[key] += 1
    assert len(keys) == 1, 'a window of two episodes'
  assert max(trained.values()) == 1
  lengths = collections.Counter(key[:2] for key in tape if key.step)
  for (index, episode), length in lengths.items():
    if (index, episode) in failed:
      assert length == failed[index, episode] - 1
      expected = length // trace * trace  # those of whole windows
    elif (index, episode + 1) in lengths:
      expected = length
    else:
      continue  # at the end of the run it was under way
    steps = [key.step for key in trained if key[:2] == (index, episode)]
    assert sorted(steps) == list(range(1, expected + 1))


@pytest.mark.parametrize(
  ('fault', 'step'),
  [
    *((fault, 5) for fault in _FAULTS),
    *(('raises', step) for step in (1, 4, 6)),
    *(('raises', 9), ('nan reward', 9)),  # the episode's last
  ],
)
def test_episode_of_a_failed_step_is_dropped_and_the_others_go_on(fault, step, capsys):
  run = _run((1, step), _FAULTS[fault])
  failed, remade = run.made[1], run.made[3]
  assert len(run.made) == 4
  assert failed.num_closed == 1
  _check_replay(run, {(1, 1): step})
  # No environment has lost a step: that of the failure started a new episode.
  assert len(run.made[0].tape) == len(run.made[2].tape)
  assert len(failed.tape) + len(remade.tape) == len(run.made[0].tape)
  tape = merge_tapes(run.made)
  assert run.counts['steps'] == sum(key.step > 0 for key in tape)
  played = collections.defaultdict(list)
  for key, transition in tape.items():
    if key.step:
      played[key[:2]].append(transition.reward)
  returns = [  # the failed episode has none
    sum(rewards)
    for (_, episode), rewards in played.items()
    if len(rewards) == _LENGTHS[episode % len(_LENGTHS)]
  ]
  np.testing.assert_allclose(
    sorted(row['episode_return'] for row in run.rows), sorted(returns), rtol=1e-6
  )
  assert run.rows[-1]['environment_failures'] == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f'_Faulty failed in step {step} of episode 2: ')
  assert '(failure 1 of at most 20 in an hour)' in line


@pytest.mark.parametrize('fault', ['raises', 'shape'])
def test_failed_reset_is_repeated_and_nothing_else_changes(fault, capsys):
  run = _run((1, 0), _FAULTS[fault])
  _check_replay(run, {})
  assert run.rows[-1]['environment_failures'] == 1
  assert len(run.made[0].tape) == len(run.made[1].tape) + len(run.made[3].tape)
  assert 'failed in the reset before episode 2: ' in capsys.readouterr().err


def test_new_episode_starts_clean():
  run = _run((1, 5), _raise, image=True)
  acted = run.network.acted[Key(_REMADE, 0, 0)]
  for state in acted.core_state:
    assert not state.any()
  assert acted.observation.action == acted.observation.reward == 0
  for channel in range(3):  # no earlier frame
    assert not acted.observation.observation[..., channel].any()
  assert helpers.key_of(acted.observation.observation) == Key(_REMADE, 0, 0)
  _check_replay(run, {(1, 1): 5})


def test_environment_may_fail_again_and_again():
  run = _run((1, 5), _raise, remade_at=(0, 0))  # the first reset after it, too
  assert [env.num_closed for env in run.made] == [1] * 5
  _check_replay(run, {(1, 1): 5})
  assert run.rows[-1]['environment_failures'] == 2


def test_budget_ends_it_with_the_number_and_the_cause():
  with pytest.raises(TooManyFailures) as error:
    _run((1, 5), _raise, remade_at=(0, 0), max_failures=1)
  message = str(error.value)
  assert message.startswith('2 failures of environments in an hour are more than ')
  assert 'max_environment_failures=1' in message
  assert 'failed in the reset before episode 3: OSError: the cable fell out' in message
  assert '\n' not in message


def test_without_a_budget_the_first_failure_ends_it():
  with pytest.raises(environments.EnvironmentFailed, match='_Faulty failed') as error:
    _run((1, 5), _raise, max_failures=0)
  assert type(error.value) is environments.EnvironmentFailed


def test_stop_ends_the_attempts_to_make_an_environment_again():
  config = helpers.make_config()
  made = []

  def make(seed: int):
    if made:
      raise OSError('no licence is left')
    made.append(_Faulty(0, False, (0, 3), _raise))
    return made[0]

  is_stopped = False

  def should_stop():
    return is_stopped

  with environments.opened(make, [0], 1_000) as fleet:
    builder = R2D2Builder(config, helpers.make_spec(image=False))
    actor = builder.make_actor()
    drop_episode, num_dropped = actor.drop_episode, 0

    def count(index):
      nonlocal num_dropped, is_stopped
      num_dropped += 1
      is_stopped = num_dropped == 5
      drop_episode(index)

    actor.drop_episode = count
    loop = VectorEnvironmentLoop(
      fleet, actor, counting.Counter(), loggers.NoOpLogger(), should_stop
    )
    with pytest.raises(EpisodeLost, match='no licence is left'):
      loop.run()
  assert num_dropped == 5
