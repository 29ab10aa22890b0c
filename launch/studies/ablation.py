"""What is each part of R2D2 worth? Learning curves of agents that lack one of them.

python launch/study.py ablation                         cue recall, minutes for each run
python launch/study.py ablation --game=pong --seeds=1   the laptop preset, hours

The cases are full, no_actor_priorities, no_prioritization, no_rescaling, no_burn_in,
zero_state, zero_state_no_burn_in and no_memory.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from r2d2_acme import config as config_lib
from r2d2_acme.config import R2D2Config
from studies import cue_recall, curves, drawing
from studies.runner import Study

# What is changed in the config of the full agent, which is drawn in black.
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


def add_flags(parser: argparse.ArgumentParser):
  curves.add_flags(parser, 'ablation')


def make_study(args: argparse.Namespace) -> Study:
  """Makes the study that the flags describe; exits if they cannot work."""
  return curves.make_study(
    args,
    on_cue_recall=(make_configs(cue_recall.CONFIG), 50_000),
    on_others=(make_configs(config_lib.laptop()), 1_000_000),
    summarize=curves.summarize_returns,
    plots={'returns.png': plot},
  )


def make_configs(full: R2D2Config) -> dict[str, R2D2Config]:
  """Returns the config of each case, from that of the full agent."""
  return {case: dataclasses.replace(full, **CASES[case]) for case in CASES}


def plot(rows: Sequence[tuple], title: str, path: pathlib.Path):
  """Writes the figure of return against steps."""
  styles = {
    case: {'color': 'black', 'linewidth': 2} if case == 'full' else {'color': f'C{i}'}
    for i, case in enumerate(CASES)
  }
  drawing.plot_returns(rows, styles, title, path)
