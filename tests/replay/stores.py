"""Tables of windows whose content does not matter, for the tests of replay."""

import numpy as np
import reverb
import tree

from r2d2_acme.replay import adder as adder_lib
from r2d2_acme.replay import tables
from r2d2_acme.types import Step, core_state_spec
from tests import helpers

SPEC = helpers.make_spec()


def add_windows(
  config, client, priorities, spec=SPEC, first=0, should_stop=lambda: False, **row
):
  """Inserts windows with these priorities; the i-th has `learner_steps` first + i.

  Args:
    **row: fields of `Step` to use instead of zeros.
  """
  remaining = list(priorities)
  adder = adder_lib.WindowAdder(
    client, config, spec, lambda *_: remaining.pop(0), should_stop
  )
  frame = np.zeros(spec.observations.shape, spec.observations.dtype)
  step = Step(frame, np.int32(0), np.float32(0), np.float32(1), np.float32(1))
  step = step._replace(**row)
  state = tree.map_structure(
    lambda spec: np.zeros(spec.shape, spec.dtype), core_state_spec(config)
  )
  q = np.zeros(helpers.NUM_ACTIONS, np.float32)
  for i in range(len(priorities)):
    adder.add(step, state, q, last=False, learner_steps=first + i)
    adder.add(step, state, q, last=True, learner_steps=first + i)


def read_infos(client, num_samples=100):
  """`SampleInfo` by the windows' `learner_steps`, of those drawn."""
  return {
    int(sample.data.learner_steps): sample.info
    for sample in client.sample(
      tables.TABLE, num_samples, emit_timesteps=False, unpack_as_table_signature=True
    )
  }


def make_tables(config, spec=SPEC):
  return tables.make_tables(config, spec, reverb.rate_limiters.MinSize(1))
