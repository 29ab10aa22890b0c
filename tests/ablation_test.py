"""`launch/ablation.py`: each case leaves out what it says, and a run learns."""

import csv
import dataclasses
import sys

import ablation
import pytest
import studies

from tests import study_helpers


@pytest.mark.parametrize('case', ablation.CASES)
def test_each_case_differs_from_the_full_agent_in_its_fields_only(case):
  study = ablation.make_study('x', studies.make_cue_recall, studies.CUE_RECALL, 1)
  full, other = (dataclasses.asdict(study.cases[name]) for name in ('full', case))
  differing = {name: other[name] for name in full if full[name] != other[name]}
  assert differing == ablation.CASES[case]


def test_figure_has_all_cases(monkeypatch, tmp_path):
  def fake(case, seed, workdir):
    study_helpers.write_actor_log(workdir, [10, 60], [0.01, 0.01], [0, seed])

  study_helpers.fake_runs(monkeypatch, fake)
  flags = ['--max_steps=100', f'--workdir={tmp_path}', f'--out={tmp_path / "out"}']
  monkeypatch.setattr(sys, 'argv', ['ablation', '--seeds=2', *flags])
  assert ablation.main() == 0
  out = tmp_path / 'out' / 'cue_recall'
  with open(out / 'curves.csv') as file:
    rows = list(csv.DictReader(file))
  assert list(dict.fromkeys(row['case'] for row in rows)) == list(ablation.CASES)
  assert {row['mean'] for row in rows if row['x'] == '57.5'} == {'0.5'}
  for name in ('returns.png', 'about.json'):
    assert (out / name).stat().st_size > 500


def test_unknown_game_is_one_line_and_code_2(monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['ablation', '--game=no_such_game'])
  with pytest.raises(SystemExit) as exit_:
    ablation.main()
  assert exit_.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert 'no_such_game' in line


def test_the_program_trains_in_processes_of_its_own(tmp_path):
  flags = ['--cases=zero_state', '--seeds=1', '--max_steps=600']
  ended = study_helpers.run_program(
    'ablation.py',
    *flags,
    f'--workdir={tmp_path / "work"}',
    f'--out={tmp_path / "out"}',
  )
  assert ended.returncode == 0, ended.stderr
  assert 'zero_state/0: finished' in ended.stdout
  log = studies.read_csv(
    tmp_path / 'work' / 'cue_recall_600' / 'zero_state' / '0' / 'logs/actor/logs.csv'
  )
  assert len(log['episode_return']) == pytest.approx(600 / 16, abs=8)
  epsilons = [0.4 ** (1 + 5 * i / 7) for i in range(8)]
  assert sorted(set(log['epsilon']), reverse=True) == pytest.approx(epsilons)
