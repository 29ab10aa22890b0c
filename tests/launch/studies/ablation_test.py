"""`launch/studies/ablation.py`: each case leaves out what it says, and learns once."""

import csv
import dataclasses
import json
import sys

import numpy as np
import pytest
import study
from studies import ablation, cue_recall, runner

from r2d2_acme import config as config_lib
from r2d2_acme.results import tables
from tests.launch.studies import study_helpers


@pytest.mark.parametrize('config', [cue_recall.CONFIG, config_lib.laptop()])
def test_each_case_leaves_out_what_it_says_and_nothing_else(config):
  configs = ablation.make_configs(config)
  full = configs['full']
  assert full == config
  left_out = {
    'full': (),
    'no_actor_priorities': (('actor_priorities', True, False),),
    'no_prioritization': (('priority_exponent', 0.9, 0.0),),
    'no_rescaling': (('value_rescaling', True, False),),
    'no_burn_in': (('burn_in_length', config.burn_in_length, 0),),
    'zero_state': (('state_strategy', 'stored', 'zero'),),
    'zero_state_no_burn_in': (
      ('burn_in_length', config.burn_in_length, 0),
      ('state_strategy', 'stored', 'zero'),
    ),
    'no_memory': (('recurrent', True, False),),
  }
  assert config.burn_in_length
  for case, differences in left_out.items():
    before, after = (dataclasses.asdict(x) for x in (full, configs[case]))
    changed = [(f, before[f], after[f]) for f in before if before[f] != after[f]]
    assert sorted(changed) == sorted(differences), case
  assert configs.keys() == left_out.keys()


def test_figure_has_all_cases(monkeypatch, tmp_path):
  def train(case, experiment, workdir):
    returns = [0, experiment.config.seed]
    study_helpers.write_actor_log(workdir, [200, 1200], [0.01, 0.01], returns)

  monkeypatch.setattr(runner.Case, 'train', train)
  study_helpers.run_in_this_process(monkeypatch, study.main)
  flags = ['--max_steps=2000', f'--workdir={tmp_path}', f'--out={tmp_path / "out"}']
  monkeypatch.setattr(sys, 'argv', ['study.py', 'ablation', '--seeds=2', *flags])
  assert study.main() == 0
  out = tmp_path / 'out' / 'cue_recall'
  with open(out / 'curves.csv') as file:
    rows = list(csv.DictReader(file))
  assert list(dict.fromkeys(row['case'] for row in rows)) == list(ablation.CASES)
  assert {row['mean'] for row in rows if row['x'] == '1150'} == {'0.5'}
  assert (out / 'returns.png').stat().st_size > 500


def test_runs_learn_in_processes_of_their_own_and_only_once(tmp_path):
  workdir = tmp_path / 'work' / 'cue_recall_1900'

  def run():
    ended = study_helpers.run_program(
      'ablation',
      '--cases=zero_state',
      '--seeds=1',
      '--max_steps=1900',
      f'--workdir={tmp_path / "work"}',
      f'--out={tmp_path / "out"}',
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout

  assert 'zero_state/0: finished' in run()
  path = workdir / 'zero_state' / '0' / 'logs'
  episodes = tables.read_csv(path / 'actor' / 'logs.csv')
  assert len(episodes['episode_return']) == pytest.approx(1900 / 26, abs=8)
  epsilons = [0.4 ** (1 + 5 * i / 7) for i in range(8)]
  assert sorted(set(episodes['epsilon']), reverse=True) == pytest.approx(epsilons)
  learned = tables.read_csv(path / 'learner' / 'logs.csv')
  assert learned['learner_steps'][0] >= 1
  assert np.isfinite(learned['loss']).all()
  about = json.loads((tmp_path / 'out' / 'cue_recall' / 'about.json').read_text())
  assert about['runs']['zero_state/0']['config']['state_strategy'] == 'zero'

  before = (path / 'actor' / 'logs.csv').read_text()
  assert 'finished' not in run()
  assert (path / 'actor' / 'logs.csv').read_text() == before
