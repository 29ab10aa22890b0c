"""Exported policies play where nothing but TensorFlow is installed."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from acme import specs

from r2d2_acme.builder import R2D2Builder
from r2d2_acme.experiment import BadInput
from r2d2_acme.observations import kinds
from r2d2_acme.policies import exporting
from tests import helpers
from tests.policies import runs

_EXPORT = helpers.LAUNCH / 'export.py'
_PLAY = pathlib.Path(__file__).with_name('only_tensorflow.py')
_ENVIRONMENTS = {
  'game': runs.GAME,
  'vector': runs.VECTOR,
  'image': runs.IMAGE,
}


@pytest.fixture(scope='module')
def folders(tmp_path_factory, run_of) -> dict[str, pathlib.Path]:
  """Folders with a model, a greedy episode of evaluate.py, and what the model did."""
  folders = {}
  for name, environment in _ENVIRONMENTS.items():
    folders[name] = folder = tmp_path_factory.mktemp(name)
    exporting.export(str(run_of(environment)), str(folder / 'model'))
    played = runs.evaluate(run_of(environment), epsilon=0)
    np.savez(folder / 'episode.npz', **played._asdict())
  subprocess.run([sys.executable, '-I', _PLAY, *folders.values()], check=True)
  return folders


@pytest.mark.parametrize('name', _ENVIRONMENTS)
def test_actions_are_those_of_evaluate_for_a_whole_episode(folders, name):
  evaluated = np.load(folders[name] / 'episode.npz')
  played = np.load(folders[name] / 'played.npz')
  assert np.ptp(evaluated['q'], axis=0).max() > 0.01  # it depends on what is seen
  for prefix in ('', 'signature_'):
    assert played[f'{prefix}actions'].tolist() == evaluated['actions'].tolist()
    # float32 in another batch, and perhaps without oneDNN
    np.testing.assert_allclose(
      played[f'{prefix}q'], evaluated['q'], rtol=1e-4, atol=1e-4
    )


def test_config_and_scores_are_assets(folders, run_of):
  assets = json.loads((folders['vector'] / 'assets.json').read_text())
  stored = json.loads((run_of(runs.VECTOR) / 'config.json').read_text())
  assert assets['config'] == stored
  scores = assets['scores']
  assert scores['checkpoint'] == 'ckpt-2'
  assert scores['counts']['actor_frames'] == 800
  assert scores['returns'] == [0.0, 1.0]
  assert scores['mean_return'] == 0.5


def test_folder_that_has_something_is_left_alone(run_of, tmp_path):
  (tmp_path / 'file').write_text('mine')
  with pytest.raises(BadInput, match='exists: give another --out'):
    exporting.export(str(run_of(runs.VECTOR)), str(tmp_path))
  assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_program_writes_the_named_checkpoint_and_says_so(run_of, start, tmp_path):
  flags = [f'--workdir={run_of(runs.VECTOR)}', '--checkpoint=ckpt-1', '--out=a [b]/c*']
  ended = start(*flags, script=_EXPORT)
  assert (ended.code, ended.err) == (0, '')
  out = tmp_path / 'a [b]' / 'c*'
  assert ended.out == f'{out}: ckpt-1, mean return 0.0 of 1 episodes of the evaluator\n'
  scores = json.loads((out / 'assets' / 'scores.json').read_text())
  assert scores['checkpoint'] == 'ckpt-1'
  assert {path.name for path in out.iterdir()} == {
    *('assets', 'saved_model.pb', 'variables'),
  }


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    ((), 'give --workdir='),
    (('--workdir={run}',), '--out='),
    (('--workdir={run}', '--out=/proc/model'), 'cannot save in /proc/model'),
    (('--workdir={run}', '--out=x', '--checkpoint=ckpt-9'), 'no checkpoint ckpt-9'),
    (('--workdir=.', '--out=x'), 'is not the workdir of a run'),
    (('--workdir={run}', '--out=x', '--seed=1'), '--seed cannot be changed here'),
  ],
)
def test_program_refuses_in_one_line(run_of, start, tmp_path, flags, words):
  run = run_of(runs.VECTOR)
  ended = start(*(flag.format(run=run) for flag in flags), script=_EXPORT)
  assert ended.code == 2
  assert ended.err.startswith('error: ')
  assert words in ended.err
  assert ended.err.count('\n') == 1
  assert not (tmp_path / 'x').exists()


def test_parts_of_an_observation_with_the_same_flat_name_are_refused():
  frame = specs.Array((2,), np.float32)
  spec = {'a': {'b_c': frame}, 'a_b': {'c': frame}}
  environment_spec = helpers.make_spec()._replace(observations=spec)
  network = R2D2Builder(runs.CONFIG, environment_spec).make_network()
  with pytest.raises(ValueError, match='have the same name'):
    exporting.make_module(network, kinds.make(spec, runs.CONFIG), False)
