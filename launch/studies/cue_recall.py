"""Cue recall at a tenth of the paper's lengths: a run takes minutes on one core."""

import dm_env

from r2d2_acme import environments
from r2d2_acme.config import R2D2Config


def make_cue_recall(seed: int) -> dm_env.Environment:
  """Makes five questions about one cue, in episodes of 26 steps."""
  return environments.make_cue_recall(delay=4, num_questions=5, seed=seed)


# An episode's windows train the transitions [0, 8), [6, 14), [12, 20) and [18, 26).
# Each of them has a question, but only the first has the cue, and the burn-in of no
# other window reaches back to it.
CONFIG = R2D2Config(
  burn_in_length=4,
  trace_length=8,
  sequence_period=6,
  n_step=3,
  discount=0.99,
  batch_size=32,
  learning_rate=1e-3,
  adam_epsilon=1e-6,
  target_update_period=50,
  max_replay_size=4_000,
  min_replay_size=150,
  samples_per_insert=8.0,
  num_actors=1,
  envs_per_actor=8,
  variable_update_period=1,
  epsilon_alpha=5.0,
  torso_size=32,
  core_size=32,
  head_size=32,
)
