"""The runs of a sweep: every task with every setting and every seed.

Each run is a program with a workdir of its own, `<task>/<setting>/<seed>`, which
resumes what is there. A run is done when its newest checkpoint counts the steps.
"""

import dataclasses
import itertools
import multiprocessing
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent import futures
from concurrent.futures import process
from typing import TypeVar

from r2d2_acme.system import processes, stopping
from studies import jobs

PROGRAMS = pathlib.Path(__file__).parent.parent
PATIENCE = 25.0  # seconds that a run's program may take to stop if this one is killed
_T = TypeVar('_T')
_U = TypeVar('_U')


@dataclasses.dataclass(frozen=True)
class Run:
  """A run of a sweep.

  Attributes:
    kind: the flag that names the task: 'game', 'env' or 'environment'.
    task: its value.
    setting: the values of the flags that the sweep varies.
    seed: of the run.
    root: the workdir of the sweep.
  """

  kind: str
  task: str
  setting: Mapping[str, str]
  seed: int
  root: str

  @property
  def label(self) -> str:
    """The setting in one word, such as `learning_rate=1e-4`; '' if nothing varies."""
    values = [f'{k.removeprefix("config.")}={v}' for k, v in self.setting.items()]
    return ','.join(values)

  @property
  def name(self) -> str:
    """The workdir relative to that of the sweep."""
    parts = [x.replace('/', '_') for x in (self.task, self.label) if x]
    return os.path.join(*parts, str(self.seed))

  @property
  def workdir(self) -> str:
    return os.path.join(self.root, self.name)


@dataclasses.dataclass(frozen=True)
class Training:
  """How the runs are trained.

  Attributes:
    program: the file name of the program, such as 'atari_distributed.py'.
    max_actor_steps: steps of each run, in total.
    flags: what else the program is given.
  """

  program: str
  max_actor_steps: int
  flags: Sequence[str]

  def command(self, run: Run) -> list[str]:
    return [
      *(sys.executable, str(PROGRAMS / self.program)),
      f'--{run.kind}={run.task}',
      *(f'--{name}={value}' for name, value in run.setting.items()),
      f'--seed={run.seed}',
      f'--workdir={run.workdir}',
      f'--max_actor_steps={self.max_actor_steps}',
      *self.flags,
    ]


def make_runs(
  tasks: Iterable[tuple[str, str]],
  values: Mapping[str, Sequence[str]],
  num_seeds: int,
  root: str,
) -> list[Run]:
  """Returns the runs of a sweep; seed follows seed, so that all settings compare soon.

  Args:
    tasks: each as its kind and its name.
    values: of each flag that is varied. Each value is combined with each other flag's.
    num_seeds: the number of runs of each task and setting.
    root: the workdir of the sweep.
  """
  settings = [
    dict(zip(values, chosen, strict=True))
    for chosen in itertools.product(*values.values())
  ]
  return [
    Run(kind, task, setting, seed, root)
    for seed in range(num_seeds)
    for kind, task in tasks
    for setting in settings
  ]


def check(runs: Sequence[Run], training: Training) -> int:
  """Returns 0, or the exit code of the first run that could not begin.

  The reason has been printed. Workdirs are not looked at: a run whose workdir cannot
  be used shall not keep others from training.
  """
  first_of_each = [run for run in runs if run.seed == 0]
  nowhere = [dataclasses.replace(run, root='/dev/null') for run in first_of_each]
  return _in_process(_check_commands, [training.command(run)[1:] for run in nowhere])


def train(
  runs: Sequence[Run], training: Training, num_at_once: int, requests: stopping.Requests
) -> list[str]:
  """Trains the runs that are not done; returns the names of those that fail.

  With several at once, what they print goes to files beside their workdirs.
  """

  def make_job(run: Run, steps_before: int) -> jobs.Job:
    known = [steps_before]

    def is_done() -> bool:
      steps = known.pop() if known else _count_steps([run])[0]
      return steps >= training.max_actor_steps

    output = pathlib.Path(run.root, f'{run.name.replace("/", "_")}.txt')
    return jobs.Job(
      run.name,
      training.command(run),
      is_done,
      output if num_at_once > 1 else None,
      is_quiet=True,
    )

  steps = _count_steps(runs)
  num_done = sum(x >= training.max_actor_steps for x in steps)
  print(f'{num_done} of {len(runs)} runs are done', flush=True)
  chains = [[make_job(*pair)] for pair in zip(runs, steps, strict=True)]
  return jobs.run(chains, num_at_once, patience=PATIENCE, requests=requests)


def _count_steps(runs: Sequence[Run]) -> list[int]:
  """Returns the actor steps of each run's newest checkpoint; 0 without one."""
  workdirs = [run.workdir for run in runs]
  if not any(os.path.isdir(os.path.join(w, 'checkpoints')) for w in workdirs):
    return [0 for _ in workdirs]
  try:
    return _in_process(_read_steps, workdirs)
  except process.BrokenProcessPool:  # the terminal's Ctrl-C reached it, too
    return [0 for _ in workdirs]  # programs with nothing left to do end at once


def _read_steps(workdirs: Sequence[str]) -> list[int]:
  """Is `_count_steps` in the process that imports TensorFlow."""
  from r2d2_acme.workdir import checkpointing

  def read(workdir: str) -> int:
    try:
      prefixes = checkpointing.find(workdir)
      counts = checkpointing.read_counts(prefixes[-1]) if prefixes else {}
    except checkpointing.CheckpointError:
      return 0  # the run's program will refuse the workdir and print the reason
    return int(counts.get('actor_steps', 0))

  return [read(workdir) for workdir in workdirs]


def _check_commands(commands: Sequence[Sequence[str]]) -> int:
  """Is `check` in the process that imports TensorFlow; a fork checks each command."""
  import importlib

  import experiment_flags

  from r2d2_acme import experiment

  def main() -> int:
    described = experiment_flags.from_flags()
    experiment.check_tracker(described)
    experiment.begin(dataclasses.replace(described, workdir=None, track=None))
    return 0

  for command in commands:
    importlib.import_module(pathlib.Path(command[0]).stem)  # has flags of its own
    pid = os.fork()
    if not pid:
      code = 1
      try:
        sys.argv = list(command)
        experiment_flags.run(main)
      except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 1
      finally:
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
      return code
  return 0


def _in_process(function: Callable[[_T], _U], argument: _T) -> _U:
  """Calls a function that imports TensorFlow in another process; returns its result.

  TensorFlow's memory is thus free again when runs train.
  """
  with (
    processes.Family(patience=0.0) as family,
    family.marking('reader'),
    futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool,
  ):
    return pool.submit(function, argument).result()
