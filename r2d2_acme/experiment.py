"""From flags to a checked experiment: config, environment and workdir.

Whatever a user can get wrong ends here, in one line and before any process starts.
"""

import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import dm_env
from absl import app, flags
from acme import specs
from ml_collections import config_dict, config_flags

from r2d2_acme import builder, environments
from r2d2_acme import config as config_lib
from r2d2_acme.config import R2D2Config
from r2d2_acme.learning import networks
from r2d2_acme.replay import tables
from r2d2_acme.system import machine, processes, runtime, stopping
from r2d2_acme.workdir import checkpointing, description, locking, loggers, paths
from r2d2_acme.workdir.paths import shown

# A resumed run may change these; `config.json` keeps when it did.
_FREE_FIELDS = (
  # How it learns from here on.
  'learning_rate',
  'adam_epsilon',
  'max_gradient_norm',
  'target_update_period',
  # How it uses the machine.
  'num_actors',
  'envs_per_actor',
  'checkpoint_period',
  'num_checkpoints',
  'checkpoint_keep_period',
  'num_best_episodes',
  'evaluation_period',
  'max_evaluation_steps',
  'torso_dtype',
)
_PROCESS_BYTES = 450 << 20  # of a node that imports TensorFlow and Reverb
_GIB = 1 << 30

_GAME = flags.DEFINE_string('game', None, 'An Atari game, such as pong or ms_pacman.')
_ENV = flags.DEFINE_string(
  'env',
  None,
  'Instead, a Gymnasium id such as CartPole-v1, or memory/cue_recall, memory/t_maze, '
  'bsuite/memory_len/15.',
)
_PRESET = flags.DEFINE_enum(
  'preset', 'laptop', sorted(config_lib.PRESETS), 'Where the config starts from.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Logs and checkpoints; used again, it resumes. [runs/<game>]'
)
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint',
  None,
  "Resume from this one of the workdir's (`ckpt-3`, or `best`), setting later ones "
  'aside.',
)
_NUM_ACTORS = flags.DEFINE_integer('num_actors', None, 'As --config.num_actors.')
_ENVS_PER_ACTOR = flags.DEFINE_integer(
  'envs_per_actor', None, 'As --config.envs_per_actor.'
)
_SEED = flags.DEFINE_integer('seed', None, 'As --config.seed.')

flags.DEFINE_integer(
  'max_actor_steps', None, 'Stop after so many environment steps.', lower_bound=1
)
flags.DEFINE_integer(
  'max_learner_steps', None, 'Stop after so many learner steps.', lower_bound=1
)


class BadInput(ValueError):
  """What the user gave cannot work; one line that names the cure."""


@dataclasses.dataclass(frozen=True)
class Experiment:
  """What `launch/` hands on to the agent.

  Attributes:
    config: the hyperparameters.
    environment_factory: an environment from a seed.
    environment_spec: of those environments.
    workdir: absolute, exists, and holds this experiment's `config.json`.
    environment_name: as the user gave it.
  """

  config: R2D2Config
  environment_factory: Callable[[int], dm_env.Environment]
  environment_spec: specs.EnvironmentSpec
  workdir: str
  environment_name: str


def run(main: Callable[[], int]) -> NoReturn:
  """Parses the flags and runs a program's main; the process ends with its code.

  Bad input is one line on stderr and exit code 2. A failure of the environment is its
  own traceback, if it has one, then one line, and code 1. Ctrl-C, where the program
  does not handle it, is code 130. No child of the process is left.
  """

  def parse(argv: Sequence[str]) -> Sequence[str]:
    try:
      # Not when this module is imported, since it reads the arguments at once.
      config_flags.DEFINE_config_dict(
        'config',
        config_dict.ConfigDict(dataclasses.asdict(config_lib.laptop())),
        'Any field of R2D2Config, as --config.<field>=; shown are those of laptop.',
      )
      # Warnings and errors only; the default is INFO.
      return flags.FLAGS([argv[0], '--verbosity=-1', *argv[1:]])
    except (flags.Error, AttributeError, TypeError, ValueError) as error:
      runtime.exit_with_error(str(error))

  def checked(argv: Sequence[str]) -> NoReturn:
    try:
      if argv[1:]:
        raise BadInput(f'{argv[1]!r} is not a flag: see --help')
      code = main()
    except (
      BadInput,
      checkpointing.CheckpointError,
      paths.BadWorkdir,
    ) as error:
      runtime.exit_with_error(str(error))
    except environments.EnvironmentFailed as error:
      _exit_with_failure(error)
    except KeyboardInterrupt:
      code = stopping.QUIT_CODE
    finally:
      processes.kill_descendants()
    sys.exit(code)

  app.run(checked, flags_parser=parse)


def _exit_with_failure(error: environments.EnvironmentFailed) -> NoReturn:
  """Prints why an environment failed, and ends with code 1."""
  cause = error.__cause__
  # Where a check of ours failed the line says it all.
  if cause is not None and not isinstance(cause, environments.base.BadValue):
    traceback.print_exception(cause)
  runtime.exit_with_error(str(error), code=1)


def from_flags(**fixed: Any) -> Experiment:
  """Builds the experiment that the flags describe.

  Flags that contradict `fixed`, fields of the config, are refused.

  In a workdir with a `config.json` the experiment described there goes on, and
  flags that say otherwise are refused. No other process may then use the workdir, until
  this one ends.

  Raises:
    BadInput: the flags cannot work, alone, together or on this machine.
    BadWorkdir: no folder can have the workdir's path.
    CheckpointError: the checkpoint to resume from is corrupt.
  """
  default = f'runs/{_default_name()}'
  workdir = paths.resolve(default if _WORKDIR.value is None else _WORKDIR.value)
  stored = _read_resumed(workdir)
  flag, name = _environment_from_flags(stored, workdir)
  config = _config_from_flags(stored, workdir, fixed)
  run = _make_experiment(config, flag, name, workdir)
  _check_memory(config, run.environment_spec)
  if _CHECKPOINT.value is not None:
    checkpointing.choose(workdir, _CHECKPOINT.value)  # is there one?
  _claim(workdir, config, _CHECKPOINT.value)
  # Last: a start that is refused leaves the description of the one before it.
  with _writing(workdir):
    _write_stored(workdir, config, {flag: name}, stored)
  return run


def from_workdir(workdir: str) -> Experiment:
  """The experiment of a run, which may be going on: writes nothing, reads no flags.

  Raises:
    BadInput: there is no such run, or it is of another version.
    BadWorkdir: no folder can have that path.
  """
  workdir = paths.resolve(workdir)
  stored = _read_stored(workdir)
  if not stored.get('environment'):
    raise BadInput(
      f'{shown(workdir)} is not the workdir of a run: it has no config.json'
    )
  ((flag, name),) = stored['environment'].items()
  return _make_experiment(R2D2Config(**stored['config']), flag, name, workdir)


def check_workdir(workdir: str):
  """Refuses, in a process without flags, what any start in a workdir would refuse.

  If it does not, other programs are kept out until this process ends.

  Raises:
    BadInput: what is there is no run, is in use, or cannot be written.
    CheckpointError: the newest checkpoint cannot be resumed from.
  """
  stored = _read_resumed(workdir)
  _claim(workdir, R2D2Config(**stored.get('config', {})))


def _make_experiment(
  config: R2D2Config, flag: str, name: str, workdir: str
) -> Experiment:
  make_environment = functools.partial(
    _make_environment, flag=flag, name=name, full_action_space=config.full_action_space
  )
  try:
    environment_spec = builder.make_environment_spec(config, make_environment)
    networks.make_network(config, environment_spec)  # does one fit?
  except ValueError as error:
    raise BadInput(str(error)) from error
  return Experiment(config, make_environment, environment_spec, workdir, name)


def _make_environment(
  seed: int, *, flag: str, name: str, full_action_space: bool
) -> dm_env.Environment:
  make = environments.make_atari if flag == 'game' else environments.make
  return make(name, seed=seed, full_action_space=full_action_space)


def _default_name() -> str:
  return (_ENV.value or _GAME.value or 'pong').replace('/', '_')


def _environment_from_flags(stored: Mapping[str, Any], workdir: str) -> tuple[str, str]:
  """The flag that names the environment, and the name."""
  given = [(f.name, f.value) for f in (_GAME, _ENV) if f.value]
  if len(given) > 1:
    raise BadInput('give --game or --env, not both')
  before = list(stored.get('environment', {}).items())
  environment = (given or before or [('game', 'pong')])[0]
  if before and environment != before[0]:
    raise BadInput(
      f'{shown(workdir)} is a run of --{before[0][0]}={before[0][1]}, not '
      f'--{environment[0]}={environment[1]}: give another --workdir, or leave the '
      'flag out to resume'
    )
  return environment


def _config_from_flags(
  stored: Mapping[str, Any], workdir: str, fixed: Mapping[str, Any]
) -> R2D2Config:
  given = dict(config_flags.get_override_values(flags.FLAGS['config']))
  for flag in (_NUM_ACTORS, _ENVS_PER_ACTOR, _SEED):
    if flag.value is not None:
      given[flag.name] = flag.value
  for name, value in fixed.items():
    if given.setdefault(name, value) != value:
      raise BadInput(f'this program is for {name}={value}, not {given[name]}')
  base = stored.get('config')
  try:
    preset = config_lib.PRESETS[_PRESET.value]()
    if base is None:
      return dataclasses.replace(preset, **given)
    before = R2D2Config(**base)
    # A free field goes on as it was last, whatever the preset says.
    given = {name: getattr(before, name) for name in _FREE_FIELDS} | given
    start = preset if flags.FLAGS['preset'].present else before
    config = dataclasses.replace(start, **given)
  except (TypeError, ValueError) as error:
    raise BadInput(str(error)) from error
  for name, (old, new) in _changes(before, config).items():
    if name not in _FREE_FIELDS:
      raise BadInput(
        f'{shown(workdir)} was started with {name}={old}, not {new}: give another '
        '--workdir, or leave the flag out to resume'
      )
  return config


def _changes(before: R2D2Config, after: R2D2Config) -> dict[str, tuple[Any, Any]]:
  """The fields that differ: what they were, and what they are."""
  fields = dataclasses.asdict(after)
  pairs = {name: (getattr(before, name), value) for name, value in fields.items()}
  return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _check_memory(config: R2D2Config, environment_spec: specs.EnvironmentSpec):
  replay_bytes = tables.estimate_bytes(config, environment_spec)
  # Replay, counter, learner and evaluator besides the actors.
  num_processes = config.num_actors + 4
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


def _claim(workdir: str, config: R2D2Config, checkpoint: str | None = None):
  """Keeps other programs out of a workdir that this one can resume and write in.

  Raises:
    BadInput: another program runs there, or something there cannot be written.
    CheckpointError: the checkpoint to resume from is corrupt.
  """
  labels = [
    *('learner', 'evaluator'),
    *(loggers.label('actor', index) for index in range(config.num_actors)),
  ]
  with _writing(workdir):
    os.makedirs(workdir, exist_ok=True)
    locking.hold_program(workdir)
    paths.check_writable(
      workdir,
      folders=[
        *('checkpoints', 'checkpoints/learner', 'logs', 'tb'),
        *(f'{kind}/{label}' for kind in ('logs', 'tb') for label in labels),
      ],
      files=['logs/sittings.csv', *(f'logs/{label}/logs.csv' for label in labels)],
    )
    if checkpoint is not None:
      checkpointing.go_back(workdir, checkpoint)
    checkpointing.verify(workdir)


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


def _read_stored(workdir: str) -> Mapping[str, Any]:
  """Returns the description of the run in a workdir; empty for a new one.

  Raises:
    BadInput: it makes no experiment.
  """
  try:
    stored = description.read(workdir)
    if not stored:
      return {}
    try:
      R2D2Config(**stored['config'])
    except (TypeError, ValueError) as error:
      raise description.refusal(workdir, error) from error
  except description.BadDescription as error:
    raise BadInput(str(error)) from error
  # Of a version that kept no history: its last start is all that is known.
  start = {
    'time': _utc(os.path.getmtime(description.path(workdir))),
    'command': stored.get('command'),
    'revision': stored.get('revision'),
  }
  return {'history': [start], **stored}


def _read_resumed(workdir: str) -> Mapping[str, Any]:
  """As `_read_stored`, for a start there.

  Raises:
    BadInput: it makes no experiment, or is missing beside checkpoints.
    CheckpointError: the checkpoints' folder cannot be read.
  """
  stored = _read_stored(workdir)
  if not stored and os.path.isdir(workdir) and checkpointing.find(workdir):
    raise BadInput(
      f'{shown(workdir)} has checkpoints but no config.json, which says of what they '
      'are: restore it, or give another --workdir'
    )
  return stored


def _write_stored(
  workdir: str,
  config: R2D2Config,
  environment: Mapping[str, str],
  before: Mapping[str, Any],
):
  """Writes what runs from now on, and adds it to the history `before` this start."""
  versions = {
    distribution.metadata['Name']: distribution.version
    for distribution in importlib.metadata.distributions()
  }
  start: dict[str, Any] = {
    'time': _utc(time.time()),
    'command': sys.argv,
    'revision': revision(),
  }
  if before:
    old = before.get('versions', versions)
    start['changed_versions'] = {
      name: [old.get(name), versions.get(name)]
      for name in sorted(old.keys() | versions.keys())
      if old.get(name) != versions.get(name)
    }
    start['changed_fields'] = _changes(R2D2Config(**before['config']), config)
  content = {
    'environment': environment,
    'config': dataclasses.asdict(config),
    'seed': config.seed,
    'command': start['command'],
    'revision': start['revision'],
    'versions': versions,
    'history': [*before.get('history', []), start],
  }
  path = description.path(workdir)
  with open(f'{path}.new', 'w') as file:
    json.dump(content, file, indent=2)
    file.flush()
    os.fsync(file.fileno())  # or a crash could leave an empty file under the name
  os.replace(f'{path}.new', path)


def _utc(seconds: float) -> str:
  """A time since the epoch, such as 2026-11-25T22:05:11+00:00."""
  return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isoformat(
    timespec='seconds'
  )


def revision() -> str:
  """The checkout's commit, with `+` if files differ; else 'unknown'."""
  directory = os.path.dirname(os.path.abspath(__file__))
  try:
    return subprocess.run(
      ['git', '-C', directory, 'describe', '--always', '--abbrev=40', '--dirty=+'],
      capture_output=True,
      text=True,
      check=True,
    ).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return 'unknown'
