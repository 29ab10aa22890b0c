"""What each of R2D2's parts is worth: learning curves with one of them left out.

python launch/ablation.py                           cue recall, minutes for each run
python launch/ablation.py --game=pong --seeds=1     the laptop preset, hours

Cases are those of `CASES` below.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

try:
  from r2d2_acme.system import doctor, stopping
except ModuleNotFoundError:
  sys.exit('r2d2_acme is not in this Python: run `make install`, then .venv/bin/python')
if __name__ == '__main__':
  stopping.end_at_once(
    message='Stopped. Start again to go on after the last finished run.\n'
  )
doctor.check_installation()

import dm_env  # noqa: E402
import studies  # noqa: E402

from r2d2_acme import config as config_lib  # noqa: E402
from r2d2_acme.config import R2D2Config  # noqa: E402
from r2d2_acme.results import plotting  # noqa: E402
from r2d2_acme.system import runtime  # noqa: E402

# What to change in the full agent's config; `full` is drawn in black.
CASES: Mapping[str, Mapping[str, Any]] = {
  'full': {},
  'no_actor_priorities': {'actor_priorities': False},
  'no_prioritization': {'priority_exponent': 0.0},
  'no_rescaling': {'value_rescaling': False},
  'no_burn_in': {'burn_in_length': 0},
  'zero_state': {'state_strategy': 'zero'},
  'zero_state_no_burn_in': {'state_strategy': 'zero', 'burn_in_length': 0},
  'no_memory': {'recurrent': False},
}


def make_study(
  name: str,
  make_environment: Callable[[int], dm_env.Environment],
  config: R2D2Config,
  max_steps: int,
) -> studies.Study:
  cases = {case: dataclasses.replace(config, **CASES[case]) for case in CASES}
  return studies.Study(name, make_environment, cases, max_steps)


def summarize(
  runs: Mapping[str, Sequence[pathlib.Path]], max_steps: int
) -> list[tuple]:
  """The returns of each case, over steps."""
  rows: list[tuple] = []
  for case, workdirs in runs.items():
    rows += studies.return_rows(case, workdirs, max_steps)
  return rows


def plot(rows: Sequence[tuple], title: str, path: pathlib.Path):
  """Return against steps, a line for each case."""
  styles = {
    case: {'color': 'black', 'linewidth': 2} if case == 'full' else {'color': f'C{i}'}
    for i, case in enumerate(CASES)
  }
  figure, axis = plotting.pyplot().subplots(figsize=(8, 5))
  studies.draw_returns(axis, rows, styles)
  axis.legend(fontsize=8)
  studies.save(figure, title, path)


def main() -> int:
  args = studies.make_parser('ablation.py', __doc__, 'ablation').parse_args()
  environment = studies.make_environment_from(args)
  if environment:
    study = make_study(*environment, config_lib.laptop(), max_steps=1_000_000)
  else:
    make = studies.make_cue_recall
    study = make_study('cue_recall', make, studies.CUE_RECALL, max_steps=50_000)
  return studies.main(study, args, studies.train, summarize, {'returns.png': plot})


if __name__ == '__main__':
  code = main()
  runtime.exit_now(code)
