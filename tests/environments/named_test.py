"""Environments of the extra `envs` train, each by its command: `make test` skips them.

`make install EXTRAS=envs`, and then `make test ARGS=tests/environments/named_test.py`.
"""

import importlib.util
import pathlib

import pytest

from r2d2_acme.workdir import checkpointing
from tests import helpers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

_SMALL = ('--preset=memory', '--config.min_replay_size=20', '--noevaluator')
# Images: what two cores can do in minutes.
_IMAGES = (
  *('--preset=laptop', '--envs_per_actor=2', '--noevaluator'),
  *('--config.min_replay_size=20', '--config.max_replay_size=100'),
  *('--config.batch_size=4', '--config.samples_per_insert=1'),
)
_POPGYM = (
  *('RepeatPrevious', 'RepeatFirst', 'CountRecall', 'Autoencode', 'Battleship'),
  *('HigherLower', 'Concentration', 'MineSweeper', 'MultiarmedBandit'),
  *('PositionOnlyCartPole', 'VelocityOnlyCartpole', 'NoisyPositionOnlyCartPole'),
)
# By id: the module that it needs, the number of steps, and flags.
_TRAINED = {
  'minigrid:MiniGrid-MemoryS7-v0': ('minigrid', 10_000, _SMALL),
  'vizdoom.gymnasium_wrapper:VizdoomMyWayHome-v1': ('vizdoom', 10_000, _IMAGES),
  'CarRacing-v3': ('Box2D', 10_000, (*_IMAGES, '--env_kwargs={"continuous": false}')),
  **{f'popgym:popgym-{task}Easy-v0': ('popgym', 4000, _SMALL) for task in _POPGYM},
}


def _require(module: str):
  if importlib.util.find_spec(module) is None:
    pytest.skip(f'{module} is not installed: make install EXTRAS=envs')


@pytest.mark.parametrize('env', _TRAINED)
def test_environment_trains(start, tmp_path: pathlib.Path, env):
  module, num_steps, flags = _TRAINED[env]
  _require(module)
  ended = start(
    *(f'--env={env}', f'--max_actor_steps={num_steps}', *flags, '--workdir=run'),
    script=helpers.LAUNCH / 'single_process.py',
    seconds=1700,
  )
  assert ended.code == 0, (ended.out, ended.err)
  assert 'Traceback' not in ended.err
  counts = checkpointing.verify(str(tmp_path / 'run'))
  assert counts['actor_steps'] >= num_steps
  assert counts['learner_steps'] > 10


@pytest.mark.parametrize('task', ['PositionOnlyPendulum', 'NoisyPositionOnlyPendulum'])
def test_task_with_continuous_actions_is_refused_in_one_line(refuse, task):
  _require('popgym')
  line = refuse(f'--env=popgym:popgym-{task}Easy-v0')
  assert 'has continuous actions, R2D2 needs Discrete ones' in line
