"""Environments of the extra `envs` train, each by its command: `make test` skips them.

`make install EXTRAS=envs`, and then `make test ARGS=tests/environments/named_test.py`.
"""

import importlib.util
import pathlib

import pytest

from r2d2_acme.workdir import checkpointing
from tests import helpers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

_NUM_STEPS = 10_000
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
_TRAINED = {
  'minigrid:MiniGrid-MemoryS7-v0': ('minigrid', _SMALL),
  'vizdoom.gymnasium_wrapper:VizdoomMyWayHome-v1': ('vizdoom', _IMAGES),
  'CarRacing-v3': ('Box2D', (*_IMAGES, '--env_kwargs={"continuous": false}')),
  **{
    f'popgym:popgym-{task}Easy-v0': ('popgym', (*_SMALL, '--max_actor_steps=2000'))
    for task in _POPGYM
  },
}


def _require(module: str):
  if importlib.util.find_spec(module) is None:
    pytest.skip(f'{module} is not installed: make install EXTRAS=envs')


@pytest.mark.parametrize('env', _TRAINED)
def test_environment_trains(start, tmp_path: pathlib.Path, env):
  module, flags = _TRAINED[env]
  _require(module)
  ended = start(
    *(f'--env={env}', f'--max_actor_steps={_NUM_STEPS}', *flags, '--workdir=run'),
    script=helpers.LAUNCH / 'single_process.py',
  )
  assert ended.code == 0, (ended.out, ended.err)
  assert 'Traceback' not in ended.err
  counts = checkpointing.verify(str(tmp_path / 'run'))
  assert counts['actor_steps'] >= 2000
  assert counts['learner_steps'] > 10


@pytest.mark.parametrize('task', ['PositionOnlyPendulum', 'NoisyPositionOnlyPendulum'])
def test_task_with_continuous_actions_is_refused_in_one_line(refuse, task):
  _require('popgym')
  line = refuse(f'--env=popgym:popgym-{task}Easy-v0')
  assert 'has continuous actions, R2D2 needs Discrete ones' in line
