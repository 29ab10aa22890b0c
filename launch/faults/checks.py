"""What must hold for a program whatever befalls it."""

import pathlib
import shutil
import tempfile
import time
from collections.abc import Sequence

import reverb
import tensorflow as tf
from reverb.cc.checkpointing import checkpoint_pb2

from faults.program import CHECKPOINT_PERIOD, Program, Sample
from r2d2_acme import builder, experiment
from r2d2_acme.workdir import replay_checkpoints, status

_ROW_PERIOD = 6.0  # seconds: the learner's rows, which the status counts by
_STATUS_PERIOD = 1.5  # seconds: it is written every second, when a worker was looked at
_NUM_NEW_SAMPLES = 3  # in which all nodes must run
_SLACK = 40 << 20  # bytes of memory that a node may gain: its caches, while it warms up
_WARM_UP = 120.0  # seconds
# What must grow from row to row of a node's log, and what must not fall.
_GROWS = {
  'learner': ('learner_steps', 'wall_time'),
  'evaluator': ('wall_time',),
  'actor': (),  # several episodes may end in one step
}
_FALLS_NOT = ('actor_steps', 'actor_frames', 'learner_steps')


class Violation(Exception):
  """Something does not hold that must; the message is one line."""


def wait_for_progress(program: Program) -> float:
  """Waits until all nodes run, and the program acts and learns.

  Returns:
    The seconds that this took.

  Raises:
    Violation: it took too long, or the program has ended.
  """
  start = time.monotonic()
  known = time.time() + _STATUS_PERIOD  # from then on the status tells of the fault
  before: status.Status | None = None
  reached = 0
  while time.monotonic() - start < program.recovery:
    if program.poll() is not None:
      raise Violation(f'it ended with code {program.poll()}: {_last(program)}')
    new = [x.status for x in program.samples if x.status.written_at > known]
    if new and before is None:
      before = new[0]
    if before is not None and _has_progressed(before, new[-1]):
      reached += 1
      if reached >= _NUM_NEW_SAMPLES:
        return time.monotonic() - start
    time.sleep(0.25)
  states = {name: node.state for name, node in new[-1].nodes.items()} if new else {}
  raise Violation(f'no progress in {program.recovery:.0f} s; nodes: {states}')


def _last(program: Program) -> str:
  """Returns what it printed last, before the command that resumes."""
  return ' / '.join(x for x in program.lines[-3:] if not x.startswith('resume with'))


def _has_progressed(before: status.Status, now: status.Status) -> bool:
  counts = ('actor_steps', 'learner_steps')
  return all(
    now.counts.get(count, 0) > before.counts.get(count, 0) for count in counts
  ) and all(node.state == 'running' for node in now.nodes.values())


def check_steps(before: Sequence[Sample], now: float, first_row: float):
  """Checks that no more than a period of learning is lost.

  Args:
    before: samples from the last recovery until the fault.
    now: the time of the fault.
    first_row: learner steps of the first row that was logged after it.

  Raises:
    Violation: more was lost.
  """
  lost_since = now - 2 * CHECKPOINT_PERIOD - _ROW_PERIOD
  old = [x.status.counts.get('learner_steps', 0) for x in before if x.time < lost_since]
  if old and first_row < old[-1]:
    raise Violation(
      f'learner steps fell to {first_row:.0f}; {old[-1]:.0f} were reached '
      f'{now - lost_since:.0f} s before'
    )


def check_rows(program: Program):
  """Checks that the logs have no row twice, and none out of order.

  Raises:
    Violation: one has.
  """
  for label, columns in _GROWS.items():
    rows = program.rows(label)
    for before, after in zip(rows, rows[1:], strict=False):
      for column in (*columns, *_FALLS_NOT):
        is_less = after[column] < before[column]
        if is_less or (after[column] == before[column] and column in columns):
          raise Violation(
            f'{label}: {column} is {after[column]:.0f} after {before[column]:.0f}'
          )


def check_memory(samples: Sequence[Sample]):
  """Checks that no process of a node grows once it has warmed up.

  Raises:
    Violation: one does.
  """
  series: dict[tuple[str, int | None], list[tuple[float, int]]] = {}
  for sample in samples:
    for name, size in sample.bytes.items():
      key = name, sample.status.nodes[name].pid
      series.setdefault(key, []).append((sample.time, size))
  for (name, _), points in series.items():
    start = points[0][0] + _WARM_UP
    warm = [size for moment, size in points if moment >= start]
    if warm and warm[-1] > warm[0] + _SLACK:
      raise Violation(
        f'{name} grew by {(warm[-1] - warm[0]) >> 20} MiB in '
        f'{points[-1][0] - start:.0f} s'
      )


def check_replay(workdir: pathlib.Path):
  """Checks that a restored replay has what was saved: windows, priorities, counts.

  Args:
    workdir: of a run that has ended.

  Raises:
    Violation: it has not.
  """
  run = experiment.from_workdir(str(workdir))
  assert run.environment_spec is not None
  tables = builder.R2D2Builder(run.config, run.environment_spec).make_tables()
  paths = replay_checkpoints.find(str(workdir))
  with tempfile.TemporaryDirectory() as folder:
    shutil.copytree(workdir / 'checkpoints', pathlib.Path(folder, 'checkpoints'))
    server = replay_checkpoints.start_server(folder, tables)
    again = reverb.Client(f'localhost:{server.port}').checkpoint()
    saved, restored = _read_table(paths[-1]), _read_table(again)
    server.stop()
  if saved != restored:
    raise Violation(f'of {len(saved[0])} windows, {len(restored[0])} were restored')


def _read_table(checkpoint: str) -> tuple[dict[int, float], tuple[int, int]]:
  """Returns a table's priorities by key, and how much was inserted and sampled."""
  path = str(pathlib.Path(checkpoint, 'tables.tfrecord'))
  (record,) = tf.data.TFRecordDataset(path)
  table = checkpoint_pb2.PriorityTableCheckpoint.FromString(record.numpy())
  limiter = table.rate_limiter
  priorities = {item.key: item.priority for item in table.items}
  return priorities, (limiter.insert_count, limiter.sample_count)


def check_end(program: Program):
  """Stops the program and checks that it ends well and leaves nothing behind.

  Raises:
    Violation: it does not.
  """
  code = program.stop()
  if code != 0:
    raise Violation(f'it ended with code {code}: {_last(program)}')
  time.sleep(1)
  if left := [process.pid for process in program.processes()]:
    raise Violation(f'processes {left} are left')
