"""`status.json`: how a program in a workdir is doing, or how it ended."""

import contextlib
import dataclasses
import json
import os
import typing
from typing import Any

from r2d2_acme.workdir import json_files, locking
from r2d2_acme.workdir.paths import shown

_FILE = 'status.json'


class NoStatus(ValueError):
  """A workdir has no readable `status.json`; one line that names the cure."""


@dataclasses.dataclass
class Node:
  """How one node is doing.

  Attributes:
    pid: of its process; None if it was not started.
    state: 'starting' until it first makes progress, then 'running', 'stopping' once it
      was asked to stop, and at the end 'ended' or 'failed'.
    restarts: how often it was started again in this start of the program.
    seconds_since_progress: since its last heartbeat. For nodes without heartbeats,
      such as threads, since its log or its output last grew, or since the start if
      neither has; one of these without a log serves the others: its progress is theirs.
    host: the address of the machine that it runs on; empty for that of the program.
  """

  pid: int | None
  state: str
  restarts: int
  seconds_since_progress: float
  host: str = ''


@dataclasses.dataclass
class Status:
  """How a program is doing.

  Attributes:
    launch_type: 'local_mp', 'local_mt' or 'ray'.
    started_at, written_at: seconds since 1970.
    exit_code: of the program; None while it runs.
    message: what it printed at its end: why it failed, or nothing.
    limits: the program stops when one of these counts is reached; counts without a
      limit are left out.
    counts: such as 'actor_steps', 'actor_frames', 'learner_steps' and 'wall_time',
      over all starts in this workdir; up to some seconds old.
    rates: of 'actor_steps' and 'learner_steps', per second, over the last minute.
    replay: 'size', 'min_size', from which on the learner learns, and 'max_size', in
      windows, and 'sampled_to_inserted'; what is not known yet is left out.
    evaluator_returns: of the last ten episodes, in order.
    nodes: by name, such as 'actor/0'.
  """

  launch_type: str
  started_at: float
  written_at: float
  exit_code: int | None
  message: str
  limits: dict[str, int]
  counts: dict[str, float]
  rates: dict[str, float]
  replay: dict[str, float]
  evaluator_returns: list[float]
  nodes: dict[str, Node]


def write(workdir: str, status: Status):
  """Replaces the status of a workdir; readers see the old or the new one, whole.

  Raises:
    OSError: it cannot be written; the old one is then still there.
  """
  content = dataclasses.asdict(status)
  json_files.write(os.path.join(workdir, _FILE), content, durable=False)


def read(workdir: str) -> Status:
  """Reads the status of a workdir.

  Raises:
    NoStatus: there is none, or it is of another version or damaged.
  """
  path = os.path.join(workdir, _FILE)
  if not os.path.isdir(workdir):
    raise NoStatus(f'there is no folder {shown(workdir)}: give the --workdir of a run')
  try:
    with open(path) as file:
      stored = json.load(file)
    nodes = {name: _make(Node, node) for name, node in stored['nodes'].items()}
    return _make(Status, {**stored, 'nodes': nodes})
  except FileNotFoundError as error:
    raise NoStatus(
      f'{shown(workdir)} has no {_FILE}: give the --workdir of a program that '
      'launch/atari_distributed.py has started'
    ) from error
  except (OSError, *json_files.NOT_OURS) as error:
    raise NoStatus(
      f'{shown(path)} cannot be read ({shown(str(error) or repr(error))}): start the '
      'program again, or give another --workdir'
    ) from error


def remove(workdir: str):
  """Removes the status of an earlier start, if there is one.

  Raises:
    OSError: it cannot be removed.
  """
  with contextlib.suppress(FileNotFoundError):
    os.remove(os.path.join(workdir, _FILE))


def is_running(workdir: str, status: Status) -> bool:
  """Returns whether the program of a status runs: it has not ended, nor was killed."""
  return status.exit_code is None and locking.is_held(workdir)


def _make(kind: type, values: dict[str, Any]) -> Any:
  """Builds a dataclass from JSON.

  Raises:
    TypeError: fields are missing, too many, or of other types.
  """
  made = kind(**values)
  for field in dataclasses.fields(kind):
    value = getattr(made, field.name)
    if not _has_type(value, field.type):
      raise TypeError(f'{field.name} is {value!r}')
  return made


def _has_type(value: Any, annotation: Any) -> bool:
  outer = typing.get_origin(annotation)
  if outer not in (dict, list):
    return isinstance(value, (int, float) if annotation is float else annotation)
  items = value.values() if isinstance(value, dict) else value
  kind = typing.get_args(annotation)[-1]
  return isinstance(value, outer) and all(_has_type(item, kind) for item in items)
