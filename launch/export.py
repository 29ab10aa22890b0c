"""Writes a run's policy as a TensorFlow SavedModel, which needs only TensorFlow.

python launch/export.py --workdir=runs/pong --out=exported/pong
"""

import preamble  # noqa: F401

import experiment_flags
from absl import flags

from r2d2_acme.experiment import BadInput
from r2d2_acme.policies import exporting
from r2d2_acme.system import processes, runtime
from r2d2_acme.workdir import checkpointing, paths

_OUT = flags.DEFINE_string('out', None, 'The folder to make, such as exported/pong.')


def main() -> int:
  if not flags.FLAGS.workdir or not _OUT.value:
    raise BadInput('give --workdir=, that of a run, and --out=, the folder to make')
  processes.guard_children()
  runtime.hide_gpu()  # a run may need all of it
  runtime.limit_threads(1)
  out = paths.resolve(_OUT.value)
  name = flags.FLAGS['checkpoint']
  scores = exporting.export(
    paths.resolve(flags.FLAGS.workdir),
    out,
    str(name.value) if name.present else checkpointing.NEWEST,
  )
  played = 'before the first evaluation'
  if scores['returns']:
    played = f'mean return {scores["mean_return"]:.1f} of {len(scores["returns"])}'
    played += ' episodes of the evaluator'
  print(f'{paths.shown(out)}: {scores["checkpoint"]}, {played}')
  return 0


if __name__ == '__main__':
  experiment_flags.run(main, only=experiment_flags.OF_A_RUN)
