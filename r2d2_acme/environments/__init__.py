"""Environments with the `dm_env` interface: Atari, any Gymnasium task, a memory test.

Every one has an attribute `frames_per_step`: emulator frames that pass in one step.
"""

from r2d2_acme.environments.atari import make_atari
from r2d2_acme.environments.gymnasium_adapter import make_gymnasium
from r2d2_acme.environments.memory import make_cue_recall

__all__ = ['make_atari', 'make_cue_recall', 'make_gymnasium']
