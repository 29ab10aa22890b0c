"""The experiment: what is trained, where, and until when; and how a run of it begins.

Whatever can be wrong with it is found here, before any process starts.
"""

import contextlib
import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from acme import specs
from acme.utils import loggers as acme_loggers

from r2d2_acme import builder as builder_lib
from r2d2_acme import environments
from r2d2_acme.config import R2D2Config
from r2d2_acme.environments import EnvironmentFactory
from r2d2_acme.learning import devices, networks
from r2d2_acme.observations import layouts
from r2d2_acme.replay import tables
from r2d2_acme.system import machine
from r2d2_acme.tracking import process as tracking
from r2d2_acme.workdir import (
  checkpointing,
  description,
  event_files,
  locking,
  loggers,
  paths,
  replay_checkpoints,
)
from r2d2_acme.workdir.counts import without_reports
from r2d2_acme.workdir.paths import shown
from r2d2_acme.workdir.write_errors import WriteErrors

# From workdir, role ('learner', 'actor' or 'evaluator') and the node's index.
LoggerFactory = Callable[[str | None, str, int], acme_loggers.Logger]

_PROCESS_BYTES = 450 << 20  # of a node that imports TensorFlow and Reverb
_GIB = 1 << 30
_MAX_SITTINGS = 1 << 20  # so many have seeds of their own


class BadInput(ValueError):
  """What the user gave cannot work; one line that names the cure."""


@dataclasses.dataclass(frozen=True)
class Experiment:
  """What is trained, where, and until when.

  It is the one argument of `make_program`, which trains in many processes, and of
  `run_experiment`, which trains in this one.

  Attributes:
    config: the hyperparameters.
    environment_factory: makes an environment, of `dm_env` or of Gymnasium, from a seed.
      Images are single frames: the agent stacks them. For a program of several
      processes it must pickle. If it is a function of a module, `evaluate.py` can make
      the same environments later.
    environment_spec: of those environments; by default that of an environment which is
      made for the purpose.
    workdir: for logs and checkpoints. A run that begins in it again resumes. Without a
      workdir nothing is kept.
    logger_factory: makes the logger of a node from the workdir, the node's role
      ('learner', 'actor' or 'evaluator') and its index; must pickle. By default rows go
      to the terminal, to CSV files and to TensorBoard, see `loggers.make_logger`.
    torso_factory: makes the part of the network in front of the LSTM: a Sonnet module
      from the agent's inputs [N, ...] to float32 [N, D]. It is given the spec of an
      input, without N: an array's, with stacked frames if it is an image, or the nest
      of the environment without texts and without `action_mask`. Inputs have the
      environment's dtypes and are not scaled. It must be a function of a module,
      because it goes into `config.torso`, where `evaluate.py` finds it.
    evaluator: whether to evaluate beside, or between, the training.
    max_actor_steps, max_learner_steps: training ends at the first one reached. Steps
      are counted over all sittings.
    checkpoint: the checkpoint to go back to, such as 'ckpt-3' or 'best'; later ones are
      set aside. By default the run goes on from the newest.
    track: the tracker that gets what the run writes, 'wandb' or 'mlflow'; None for
      none. A Launchpad program is tracked by `launching.launch`.
  """

  config: R2D2Config
  environment_factory: EnvironmentFactory
  environment_spec: specs.EnvironmentSpec | None = None
  workdir: str | None = None
  logger_factory: LoggerFactory | None = None
  torso_factory: Callable[[Any], Any] | None = None
  evaluator: bool = True
  max_actor_steps: int | None = None
  max_learner_steps: int | None = None
  checkpoint: str | None = None
  track: str | None = None

  @property
  def limits(self) -> Mapping[str, int | None]:
    """The limits by the names of what they limit."""
    return {
      'actor_steps': self.max_actor_steps,
      'learner_steps': self.max_learner_steps,
    }


@dataclasses.dataclass(frozen=True)
class Run:
  """A sitting of an experiment, from which the parts of the agent are made. It pickles.

  Attributes:
    experiment: with an absolute workdir, if any, and with an environment spec.
    counts: of the checkpoint that the run goes on from; empty without one.
    sitting: the number of earlier starts in the workdir.
    builder: of the agent's parts.
    restarts: how often this node was started again in this sitting.
    begun_at: when the sitting began, in seconds since 1970.
  """

  experiment: Experiment
  counts: Mapping[str, float]
  sitting: int
  builder: builder_lib.R2D2Builder
  restarts: int = 0
  begun_at: float = dataclasses.field(default_factory=time.time)

  @property
  def stream(self) -> int:
    """The number that stands for this start of the node in its seeds."""
    return self.sitting + _MAX_SITTINGS * self.restarts

  def after_restarts(self, restarts: int) -> 'Run':
    """Returns the run for a node that was started again so many times."""
    run = dataclasses.replace(self, restarts=restarts)
    return dataclasses.replace(run, builder=self.builder.with_stream(run.stream))

  def make_logger(self, role: str, index: int = 0) -> acme_loggers.Logger:
    """Makes the logger of the `index`-th node of a role."""
    make = self.experiment.logger_factory
    if make is not None:
      return make(self.experiment.workdir, role, index)
    return loggers.make_logger(
      self.experiment.workdir, role, index, sitting=self.sitting
    )


def begin(experiment: Experiment, num_processes: int = 1) -> Run:
  """Begins a sitting: checks everything, then writes `config.json` in the workdir.

  From then on this process keeps other programs out of the workdir. In a workdir with a
  `config.json` the run described there goes on; only `description.FREE_FIELDS` may be
  other than they were.

  Args:
    experiment: what to train.
    num_processes: how many processes will train here, for the check of memory. If it is
      0, they train on other machines, and neither memory nor devices are checked.

  Raises:
    BadInput: the experiment cannot work, alone, on this machine or in its workdir.
    BadWorkdir: no folder can have the workdir's path.
    CheckpointError: the checkpoint to go back to is damaged, or none is sound.
  """
  try:
    environments.check_is_not_imported()
  except ValueError as error:
    raise BadInput(str(error)) from error
  check_tracker(experiment)
  experiment = _with_spec(_with_limits(_with_torso(experiment)))
  assert experiment.environment_spec is not None
  for line in _notes(experiment):
    print(f'Note: {line}.', flush=True)
  _check_torso(experiment)
  if num_processes:
    _check_devices(experiment.config)
    _check_memory(experiment, num_processes)
  if experiment.workdir is None:
    return begin_sitting(experiment, {})
  workdir = paths.resolve(experiment.workdir)
  experiment = dataclasses.replace(experiment, workdir=workdir)
  stored = read_resumed(workdir)
  factory = experiment.environment_factory
  environment = environments.describe(factory)
  env_kwargs = _as_json(environments.env_kwargs(factory))
  if stored:
    _check_resumed(workdir, stored, experiment, environment, env_kwargs)
    if not all(environment.values()):  # but it had a name before, perhaps
      environment = stored['environment']
  if experiment.checkpoint is not None:
    checkpointing.choose(workdir, experiment.checkpoint)  # is there one?
  _check_disk(experiment, workdir)
  counts = _claim(workdir, experiment.config, experiment.checkpoint)
  # Last: a start that is refused leaves the description of the one before it.
  with _writing(workdir):
    description.write(
      *(workdir, experiment.config, environment, stored),
      env_kwargs=env_kwargs,
      is_atari=environments.is_atari(factory),
    )
    run = begin_sitting(experiment, counts)
  with WriteErrors('TensorBoard does not show the config').reported():
    (name,) = environment.values()
    values = {'environment': name, **dataclasses.asdict(experiment.config)}
    event_files.write_hparams(os.path.join(workdir, 'tb'), values)
  return run


def begin_sitting(experiment: Experiment, counts: Mapping[str, float]) -> Run:
  """Numbers a sitting that goes on from the counts of a checkpoint.

  Args:
    experiment: checked, with an absolute workdir, if any, and an environment spec.
    counts: of the checkpoint; empty without one.

  Raises:
    ValueError: R2D2 does not fit the environment, see `layouts.check`.
    OSError: the workdir cannot be written.
  """
  assert experiment.environment_spec is not None
  counts = without_reports(counts)  # of nodes that are gone
  sitting = loggers.begin_sitting(experiment.workdir, counts)
  builder = builder_lib.R2D2Builder(
    experiment.config, experiment.environment_spec, sitting
  )
  return Run(experiment, counts, sitting, builder)


def from_workdir(workdir: str) -> Experiment:
  """Returns the experiment of a run, which may be going on; writes nothing.

  Raises:
    BadInput: there is no such run, it is of another version, or its environments or
      its torso can no longer be made.
    BadWorkdir: no folder can have that path.
  """
  workdir = paths.resolve(workdir)
  stored = read_stored(workdir)
  if not stored:
    raise BadInput(
      f'{shown(workdir)} is not the workdir of a run: it has no config.json'
    )
  config = R2D2Config(**stored['config'])
  ((kind, name),) = stored['environment'].items()
  if not name:
    raise BadInput(
      f'the environments of {shown(workdir)} were made by a function that is in no '
      'module, so that no other program can make them: train with a function of a '
      'module as environment_factory'
    )
  factory = environments.NamedFactory(
    kind, name, config.atari, stored.get('env_kwargs', {})
  )
  return _with_spec(_with_torso(Experiment(config, factory, workdir=workdir)))


def check_workdir(workdir: str):
  """Refuses what any start in a workdir would refuse, whatever its flags.

  If it does not, other programs are kept out until this process ends.

  Raises:
    BadInput: what is there is no run, is in use, or cannot be written.
    CheckpointError: the newest checkpoint cannot be resumed from.
  """
  stored = read_resumed(workdir)
  _claim(workdir, R2D2Config(**stored.get('config', {})))


def read_stored(workdir: str) -> Mapping[str, Any]:
  """Reads what `config.json` says of the run in a workdir; empty for a new one.

  Raises:
    BadInput: it describes no run of this version.
  """
  try:
    return description.read_experiment(workdir)
  except description.BadDescription as error:
    raise BadInput(str(error)) from error


def read_resumed(workdir: str) -> Mapping[str, Any]:
  """As `read_stored`, for a start there.

  Raises:
    BadInput: it describes no run of this version, or is missing beside checkpoints.
    CheckpointError: the checkpoints' folder cannot be read.
  """
  stored = read_stored(workdir)
  if not stored and os.path.isdir(workdir) and checkpointing.find(workdir):
    raise BadInput(
      f'{shown(workdir)} has checkpoints but no config.json, which says of what they '
      'are: restore it, or give another --workdir'
    )
  return stored


def check_environment(
  workdir: str, before: Mapping[str, str], environment: Mapping[str, str]
):
  """Refuses another environment than that of the run in a workdir.

  Args:
    workdir: of the run.
    before: kind and name of its environment, as `environments.describe` returns them.
    environment: the same of what is to be trained now.

  Raises:
    BadInput: they differ.
  """
  (was,), (now,) = before.items(), environment.items()
  if was != now and was[1] and now[1]:
    raise BadInput(
      f'{shown(workdir)} is a run of --{"=".join(was)}, not --{"=".join(now)}: give '
      'another --workdir, or leave the flag out to resume'
    )


def _check_resumed(
  workdir: str,
  stored: Mapping[str, Any],
  experiment: Experiment,
  environment: Mapping[str, str],
  env_kwargs: Mapping[str, Any],
):
  """Refuses an experiment that is not the one that a workdir holds."""
  check_environment(workdir, stored['environment'], environment)
  kwargs_before = stored.get('env_kwargs', {})
  if env_kwargs != kwargs_before:
    raise BadInput(
      f'{shown(workdir)} was started with --env_kwargs={json.dumps(kwargs_before)}, '
      f'not {json.dumps(env_kwargs)}: give another --workdir, or leave the flag out to '
      'resume'
    )
  before = R2D2Config(**stored['config'])
  assert experiment.environment_spec is not None
  leaves = layouts.numeric_leaves(experiment.environment_spec.observations)
  free = {*description.FREE_FIELDS}
  if not any(layouts.is_image(leaf.value) for leaf in leaves):
    free.add('frame_stack')  # nothing heeds it
  for name, (old, new) in description.changes(before, experiment.config).items():
    if name not in free:
      raise BadInput(
        f'{shown(workdir)} was started with {name}={old}, not {new}: give another '
        '--workdir, or leave the flag out to resume'
      )


def _with_torso(experiment: Experiment) -> Experiment:
  """Returns the experiment with the path of its torso in the config."""
  config, factory = experiment.config, experiment.torso_factory
  if factory is not None:
    path = environments.describe(factory)['environment']
    if not path or config.torso not in ('', path):
      raise BadInput(
        f'torso_factory={factory} must be a function of a module, and the only torso '
        f'beside config.torso={config.torso!r}'
      )
    config = dataclasses.replace(config, torso=path)
  if config.torso:
    try:
      environments.import_function(config.torso)
    except ValueError as error:
      raise BadInput(f'bad torso: {error}') from error
  return dataclasses.replace(experiment, config=config, torso_factory=None)


def _with_limits(experiment: Experiment) -> Experiment:
  """Returns the experiment with limits that are integers."""
  for name, limit in experiment.limits.items():
    if limit is not None and (limit < 1 or limit != int(limit)):
      raise BadInput(f'max_{name}={limit} is no limit: give a whole number, at least 1')
  actor_steps, learner_steps = (
    None if limit is None else int(limit)
    for limit in (experiment.max_actor_steps, experiment.max_learner_steps)
  )
  return dataclasses.replace(
    experiment, max_actor_steps=actor_steps, max_learner_steps=learner_steps
  )


def _with_spec(experiment: Experiment) -> Experiment:
  """Returns the experiment with the spec of its environments, which R2D2 fits.

  Nothing here runs TensorFlow: the process has not sized its threads yet.
  """
  config, spec = experiment.config, experiment.environment_spec
  factory = experiment.environment_factory
  if isinstance(factory, environments.NamedFactory):
    # As other programs that read the config will make them.
    factory = dataclasses.replace(factory, atari_kwargs=config.atari)
  try:
    _check_atari(config, factory)
    if spec is None:
      spec = builder_lib.make_environment_spec(config, factory)
    layouts.check(spec.observations, spec.actions, spec.rewards, config.max_actions)
  except ValueError as error:
    raise BadInput(str(error)) from error
  return dataclasses.replace(
    experiment, environment_factory=factory, environment_spec=spec
  )


def _notes(experiment: Experiment) -> Iterator[str]:
  """Yields lines on what the user may not expect."""
  assert experiment.environment_spec is not None
  yield from layouts.notes(experiment.environment_spec.observations)
  config = experiment.config
  evaluated = config.max_evaluation_steps * config.frame_skip
  is_default = config.max_evaluation_steps == R2D2Config.max_evaluation_steps
  if is_default and evaluated < config.max_episode_frames:
    yield (
      f'evaluation cuts episodes off after {evaluated:,} frames, but '
      f'max_episode_frames={config.max_episode_frames}: raise '
      '--config.max_evaluation_steps'
    )


# A process of its own: this one has not sized TensorFlow's threads yet.
_MAKE_NETWORK = """
import pickle, sys
sys.path[:] = pickle.load(sys.stdin.buffer)
from r2d2_acme import builder
from r2d2_acme.environments import base
try:
  builder.R2D2Builder(*pickle.load(sys.stdin.buffer)).make_network()
except base.FAULTS as error:
  print(str(error) if type(error) is ValueError else base.describe_error(error))
  sys.exit(1)
"""


def _check_torso(experiment: Experiment):
  """Makes the network once if it has a torso of the user's."""
  config, spec = experiment.config, experiment.environment_spec
  if not config.torso:
    return
  ended = subprocess.run(
    [sys.executable, '-c', _MAKE_NETWORK],
    input=pickle.dumps(sys.path) + pickle.dumps((config, spec)),
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
  )
  if ended.returncode:
    *_, last = ended.stdout.decode().splitlines() or ['its process died']
    raise BadInput(f'bad torso {config.torso}: {last}')


def _as_json(kwargs: Mapping[str, Any]) -> dict[str, Any]:
  """Returns arguments as `config.json` keeps them."""
  try:
    return json.loads(json.dumps(kwargs))
  except (TypeError, ValueError) as error:
    raise BadInput(
      f'the arguments of an environment must fit into JSON ({error}): name a function '
      'of yours that makes it'
    ) from error


def check_tracker(experiment: Experiment):
  """Checks that the experiment can be tracked, if it is to be.

  Raises:
    BadInput: the tracker is not installed, or there is no workdir for it to follow.
  """
  if experiment.track is None:
    return
  if experiment.workdir is None:
    raise BadInput('a tracker follows a workdir: give one, or no tracker')
  try:
    tracking.check(experiment.track)
  except ValueError as error:
    raise BadInput(str(error)) from error


def _check_atari(config: R2D2Config, factory: EnvironmentFactory):
  """Refuses Atari's fields for other environments, where nothing would heed them."""
  changed = [
    f'{name}={value}'
    for name, value in config.atari.items()
    # Presets differ in it, and those of other environments need not say so.
    if value != getattr(R2D2Config, name) and name != 'full_action_space'
  ]
  if changed and not environments.is_atari(factory):
    raise BadInput(
      f'{", ".join(changed)} is for Atari games that --game= or --env= names: leave it '
      'out, and --atari, for other environments'
    )


def _check_devices(config: R2D2Config):
  try:
    devices.check(config.learner_devices)
  except ValueError as error:
    raise BadInput(str(error)) from error


def _check_memory(experiment: Experiment, num_processes: int):
  config = experiment.config
  replay_bytes = tables.estimate_bytes(config, experiment.environment_spec)
  processes_bytes = num_processes * _PROCESS_BYTES
  available = machine.memory_limit()
  if replay_bytes + processes_bytes > available:
    raise BadInput(
      f'needs about {(replay_bytes + processes_bytes) / _GIB:.1f} GiB of memory '
      f'({replay_bytes / _GIB:.1f} GiB for max_replay_size={config.max_replay_size} '
      f'windows, {processes_bytes / _GIB:.1f} GiB for {num_processes} processes), '
      f'but there are {available / _GIB:.1f} GiB: lower --config.max_replay_size or '
      '--num_actors'
    )


def _check_disk(experiment: Experiment, workdir: str):
  """Refuses a run whose checkpoints do not fit on the disk."""
  config, spec = experiment.config, experiment.environment_spec
  # Two networks and Adam's two moments, float32. Besides the newest there are the best
  # and one that is being written.
  num_learner = config.num_checkpoints + 2
  learner_bytes = num_learner * 16 * networks.estimate_parameters(config, spec)
  num_replay = replay_checkpoints.NUM_KEPT + 1
  replay_bytes = num_replay * tables.estimate_bytes(config, spec)
  folder = workdir
  while not os.path.exists(folder):
    folder = os.path.dirname(folder)
  usage = shutil.disk_usage(folder)
  if not usage.total or not os.access(folder, os.W_OK):
    return  # a bucket does not say; what cannot be written is refused for that
  available = usage.free
  for path, _, files in os.walk(os.path.join(workdir, 'checkpoints')):
    for file in files:
      with contextlib.suppress(OSError):  # a program that runs there replaces them
        available += os.path.getsize(os.path.join(path, file))
  if learner_bytes + replay_bytes > available:
    raise BadInput(
      f'needs about {_size(learner_bytes + replay_bytes)} of disk in '
      f'{shown(workdir)} ({_size(replay_bytes)} for {num_replay} checkpoints of '
      f'max_replay_size={config.max_replay_size} windows and {_size(learner_bytes)} '
      f'for {num_learner} of the learner), but there are {_size(available)}: lower '
      '--config.max_replay_size or --config.num_checkpoints, or give another --workdir'
    )


def _size(num_bytes: float) -> str:
  """Returns a size in the unit in which it is no fraction."""
  is_large = num_bytes >= _GIB
  return f'{num_bytes / _GIB:.1f} GiB' if is_large else f'{num_bytes / 2**20:.0f} MiB'


def _claim(
  workdir: str,
  config: R2D2Config,
  checkpoint: str | None = None,
) -> dict[str, float]:
  """Keeps other programs out of a workdir that this one can resume and write in.

  Args:
    workdir: of the run.
    config: of the run.
    checkpoint: to go back to, if any.

  Returns:
    The counts of the checkpoint to resume from; empty without one.

  Raises:
    BadInput: another program runs there, or something there cannot be written.
    CheckpointError: the checkpoint to go back to is damaged, or none is sound.
  """
  labels = [
    *('learner', 'evaluator', 'supervisor'),
    *(loggers.label('actor', index) for index in range(config.num_actors)),
  ]
  with _writing(workdir):
    os.makedirs(workdir, exist_ok=True)
    locking.hold_program(workdir)
    try:
      paths.check_writable(
        workdir,
        folders=[
          *('checkpoints', 'checkpoints/learner', 'checkpoints/replay', 'logs', 'tb'),
          *(f'{kind}/{label}' for kind in ('logs', 'tb') for label in labels),
        ],
        files=[
          *('status.json', 'logs/sittings.csv'),
          *(f'logs/{label}/logs.csv' for label in labels),
        ],
      )
      if checkpoint is not None:
        checkpointing.go_back(workdir, checkpoint)
      return checkpointing.verify(workdir)
    except BaseException:
      locking.release_program(workdir)
      raise


@contextlib.contextmanager
def _writing(workdir: str) -> Iterator[None]:
  """Says in one line why a workdir cannot be used.

  Raises:
    BadInput: another program runs there, or the system did not let us write.
  """
  try:
    yield
  except locking.WorkdirInUse as error:
    raise BadInput(str(error)) from error
  except OSError as error:
    path = error.filename or workdir
    raise BadInput(
      f'cannot write in {shown(path)} ({error.strerror}): give another --workdir'
    ) from error
