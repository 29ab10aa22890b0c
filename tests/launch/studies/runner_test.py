"""`launch/studies/runner.py`: which runs start, and what stays of them."""

import dataclasses
import json
import sys

import pytest
from studies import curves, runner

from r2d2_acme import config as config_lib
from tests.launch.studies import study_helpers

# It learns after 20 windows of a step each.
_CONFIG = dataclasses.replace(
  config_lib.memory(),
  trace_length=2,
  sequence_period=1,
  n_step=1,
  min_replay_size=20,
)


@pytest.fixture
def run(monkeypatch, tmp_path):
  """Runs a study with these flags; returns its exit code and the runs that it trained.

  `fail` is a run that fails; `config` is what both cases have.
  """

  def run(*flags, fail='', config=None):
    config = config or _CONFIG
    trained = []

    class Case(runner.Case):
      def train(self, experiment, workdir):
        trained.append(f'{workdir.parent.name}/{workdir.name}')
        if trained[-1] == fail:
          raise RuntimeError('no')

    def summarize(runs, max_steps):
      return [
        (case, 'metric', 'steps', max_steps, i, 0, 1, len(workdirs))
        for case, workdirs in runs.items()
        for i, workdir in enumerate(workdirs)
        if workdir.is_dir()
      ]

    def plot(rows, title, path):
      path.write_text(f'{title}, {len(rows)} rows')

    def main():
      args = study_helpers.parse('ablation', *sys.argv[1:])
      cases = ({'a': config, 'b': config}, 100)
      plots = {'plot.png': plot}
      study = curves.make_study(args, cases, cases, summarize, plots, Case)
      return runner.main(study, args)

    study_helpers.run_in_this_process(monkeypatch, main)
    out = f'--out={tmp_path / "out"}'
    monkeypatch.setattr(sys, 'argv', ['study', f'--workdir={tmp_path}', out, *flags])
    return main(), trained

  return run


def test_finished_runs_are_skipped_seed_by_seed(run, tmp_path):
  assert run('--seeds=1') == (0, ['a/0', 'b/0'])
  code, trained = run('--seeds=3', '--cases=b,a,b')
  assert (code, trained) == (0, ['b/1', 'a/1', 'b/2', 'a/2'])
  out = tmp_path / 'out' / 'cue_recall'
  assert (out / 'plot.png').read_text().endswith('of 3 seeds, 6 rows')
  rows = (out / 'curves.csv').read_text().split()
  assert rows[0] == 'case,metric,over,x,mean,low,high,seeds'
  assert rows[1:4] == [f'b,metric,steps,100,{i},0,1,3' for i in range(3)]


def test_runs_of_another_config_are_trained_again(run, tmp_path):
  run('--seeds=1')
  other = dataclasses.replace(_CONFIG, n_step=2)
  assert run('--seeds=1', config=other)[1] == ['a/0', 'b/0']
  assert run('--seeds=1', config=other)[1] == []
  about = json.loads((tmp_path / 'out' / 'cue_recall' / 'about.json').read_text())
  assert about['command'] == ['study', '--seeds=1']
  assert about['runs'].keys() == {'a/0', 'b/0'}
  assert about['runs']['a/0']['config']['n_step'] == 2
  assert about['runs']['a/0']['revision']


def test_runs_of_another_length_are_others(run):
  run('--seeds=1')
  assert run('--seeds=1', '--max_steps=50') == (0, ['a/0', 'b/0'])


def test_failed_run_is_said_and_tried_again(run, tmp_path, capsys):
  assert run('--seeds=1', fail='a/0') == (1, ['a/0', 'b/0'])
  assert 'a/0: not finished, code 1, see ' in capsys.readouterr().out
  assert not (tmp_path / 'out').exists()
  assert run('--seeds=1') == (0, ['a/0'])


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--cases=a,c', "'c' is not a case: give some of a, b"),
    ('--seeds=0', '--seeds: must be a number, at least 1'),
    ('--max_steps=x', '--max_steps: must be a number, at least 1'),
    ('--processes=0', '--processes: must be a number, at least 1'),
    ('--max_steps=39', 'learning begins after some 20; give at least 40'),
  ],
)
def test_bad_input_is_one_line_and_code_2(run, capsys, flag, message):
  with pytest.raises(SystemExit) as exit_:
    run(flag)
  assert exit_.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert message in line


@pytest.mark.parametrize('content', ['[]', 'null', '3', '"x"', '[' * 100_000, '\0'])
def test_damaged_note_of_a_finished_run_is_none(tmp_path, content):
  (tmp_path / runner._FINISHED).write_text(content)
  assert runner.read_finished(tmp_path) == {}
