"""The flags of the programs here, and the experiment that they describe."""

import dataclasses
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn

from absl import app, flags
from ml_collections import config_dict, config_flags

from r2d2_acme import config as config_lib
from r2d2_acme import environments, experiment, tracking
from r2d2_acme.config import R2D2Config
from r2d2_acme.experiment import BadInput, Experiment
from r2d2_acme.system import forking, processes, runtime, stopping
from r2d2_acme.workdir import checkpointing, description, json_files, paths

_GAME = flags.DEFINE_string('game', None, 'An Atari game, such as pong or ms_pacman.')
_ENV = flags.DEFINE_string(
  'env',
  None,
  'Instead, a Gymnasium id such as CartPole-v1, or memory/cue_recall, memory/t_maze, '
  'bsuite/memory_len/15.',
)
_ENV_KWARGS = flags.DEFINE_string(
  'env_kwargs',
  None,
  'Arguments of a Gymnasium environment, as JSON, such as \'{"size": 9}\'.',
)
_ENVIRONMENT = flags.DEFINE_string(
  'environment',
  None,
  'Instead, a function from a seed to a dm_env or Gymnasium environment, such as '
  'my_module:make_environment; the module may be in the current directory.',
)
_PRESET = flags.DEFINE_enum(
  'preset', 'laptop', sorted(config_lib.PRESETS), 'Where the config starts from.'
)
_ATARI = flags.DEFINE_enum(
  'atari',
  None,
  sorted(config_lib.ATARI),
  'The protocol of Atari games: sets fields of the config; --config.<field> overrides.',
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
_VIDEO_PERIOD = flags.DEFINE_float('video_period', None, 'As --config.video_period.')
_TRACK = flags.DEFINE_enum(
  'track', None, sorted(tracking.KINDS), 'Send what the run writes to this tracker.'
)
_MAX_ACTOR_STEPS = flags.DEFINE_integer(
  'max_actor_steps', None, 'Stop after so many environment steps.', lower_bound=1
)
_MAX_LEARNER_STEPS = flags.DEFINE_integer(
  'max_learner_steps', None, 'Stop after so many learner steps.', lower_bound=1
)

# For programs that read an experiment from a workdir: flags with other words.
OF_A_RUN = {
  'workdir': 'The workdir of a run.',
  'checkpoint': 'Which of its checkpoints, such as ckpt-3 or best. [the newest]',
}


def run(main: Callable[[], int], only: Mapping[str, str] | None = None) -> NoReturn:
  """Parses the flags and runs a program's main; the process ends with its code.

  Bad input is one line on stderr and exit code 2. A failure of the environment is its
  own traceback, if it has one, then one line, and code 1. Ctrl-C, where the program
  does not handle it, is code 130. No child of the process is left.

  Args:
    main: of the program; returns the exit code.
    only: for a program that reads an experiment from a workdir, those flags of this
      module that it heeds, with their help. The others are refused.
  """

  def parse(argv: Sequence[str]) -> Sequence[str]:
    try:
      # Not when this module is imported, since it reads the arguments at once.
      config_flags.DEFINE_config_dict(
        'config',
        config_dict.ConfigDict(dataclasses.asdict(config_lib.laptop())),
        'Any field of R2D2Config, as --config.<field>=; shown are those of laptop.',
      )
      _declare_for_help(argv[0], only)
      # Warnings and errors only; the default is INFO.
      return flags.FLAGS([argv[0], '--verbosity=-1', *argv[1:]])
    except SystemExit:  # after --help, which absl takes for a failure
      sys.exit(0)
    except (flags.Error, AttributeError, TypeError, ValueError) as error:
      runtime.exit_with_error(str(error))

  def checked(argv: Sequence[str]) -> NoReturn:
    try:
      if argv[1:]:
        raise BadInput(f'{argv[1]!r} is not a flag: see --help')
      if only is not None:
        _refuse_all_but(only)
      code = main()
    except (BadInput, checkpointing.CheckpointError, paths.BadWorkdir) as error:
      runtime.exit_with_error(str(error))
    except forking.ForkServerFailed as error:
      runtime.exit_with_error(str(error), code=1)
    except environments.EnvironmentFailed as error:
      _exit_with_failure(error)
    except KeyboardInterrupt:
      code = stopping.QUIT_CODE
    finally:
      processes.kill_descendants()
    sys.exit(code)

  app.run(checked, flags_parser=parse)


def _declare_for_help(program: str, only: Mapping[str, str] | None):
  """Lets --help of a program show those flags of this module that it heeds."""
  flag_values = flags.FLAGS
  for flag in flag_values.flags_by_module_dict()[__name__]:
    if only is None or flag.name in only:
      flag_values.register_key_flag_for_module(program, flag)
  for name, text in (only or {}).items():
    flag_values[name].help = text


def _exit_with_failure(error: environments.EnvironmentFailed) -> NoReturn:
  """Prints why an environment failed, and ends with code 1."""
  cause = error.__cause__
  # Where a check of ours failed the line says it all.
  if cause is not None and not isinstance(cause, environments.base.BadValue):
    traceback.print_exception(cause)
  runtime.exit_with_error(str(error), code=1)


def from_flags(*, evaluator: bool = True, **fixed: Any) -> Experiment:
  """Builds the experiment that the flags describe.

  In a workdir with a `config.json` the experiment described there goes on, and
  flags that say otherwise are refused.

  Args:
    evaluator: as in `Experiment`.
    **fixed: fields of the config that flags must not contradict.

  Raises:
    BadInput: the flags cannot work, alone, together or in that workdir.
    BadWorkdir: no folder can have the workdir's path.
    CheckpointError: the checkpoints' folder cannot be read.
  """
  for flag in (_GAME, _ENV, _ENVIRONMENT, _CHECKPOINT):
    if flag.value == '':  # perhaps of a shell's variable that is not set
      raise BadInput(f'--{flag.name}= is empty: give a value, or leave the flag out')
  default = f'runs/{_default_name()}'
  workdir = paths.resolve(default if _WORKDIR.value is None else _WORKDIR.value)
  stored = experiment.read_resumed(workdir)
  kind, name = _environment_from_flags(stored, workdir)
  config = _config_from_flags(stored, fixed)
  return Experiment(
    config,
    environments.NamedFactory(
      kind, name, config.atari, _env_kwargs_from_flags(stored, kind)
    ),
    workdir=workdir,
    evaluator=evaluator,
    max_actor_steps=_MAX_ACTOR_STEPS.value,
    max_learner_steps=_MAX_LEARNER_STEPS.value,
    checkpoint=_CHECKPOINT.value,
    track=_TRACK.value,
  )


def _default_name() -> str:
  name = _ENVIRONMENT.value or _ENV.value or _GAME.value or 'pong'
  return name.replace('/', '_')


def _environment_from_flags(stored: Mapping[str, Any], workdir: str) -> tuple[str, str]:
  """Returns the flag that names the environment, and the name."""
  given = {f.name: f.value for f in (_GAME, _ENV, _ENVIRONMENT) if f.value}
  if len(given) > 1:
    raise BadInput(f'give {" or ".join(f"--{flag}" for flag in given)}, not both')
  before = stored.get('environment', {})
  if given and before:
    experiment.check_environment(workdir, before, given)
  ((kind, name),) = (given or before or {'game': 'pong'}).items()
  if not name:
    raise BadInput(
      f'the environments of {paths.shown(workdir)} were made by a function that is in '
      'no module: resume with the script that started it'
    )
  return kind, name


def _env_kwargs_from_flags(stored: Mapping[str, Any], kind: str) -> dict[str, Any]:
  """Returns the arguments of the environment, by default those of a stored run."""
  text = _ENV_KWARGS.value
  if text is None:
    return stored.get('env_kwargs', {})
  if kind != 'env':
    raise BadInput('--env_kwargs is for --env')
  try:
    given = json_files.parse(text)
    if not isinstance(given, dict):
      raise ValueError('it is no object with names')
    return given
  except (ValueError, RecursionError) as error:
    raise BadInput(
      f'--env_kwargs={paths.shown(text)} is not what it should be ({error}): write it '
      'as --env_kwargs=\'{"size": 9}\''
    ) from error


def _config_from_flags(
  stored: Mapping[str, Any], fixed: Mapping[str, Any]
) -> R2D2Config:
  """Returns the config of a new run, or that of a stored one with changes."""
  given = dict(config_lib.ATARI[_ATARI.value]) if _ATARI.value else {}
  given |= config_flags.get_override_values(flags.FLAGS['config'])
  for flag in (_NUM_ACTORS, _ENVS_PER_ACTOR, _SEED, _VIDEO_PERIOD):
    if flag.value is not None and given.setdefault(flag.name, flag.value) != flag.value:
      raise BadInput(
        f'--{flag.name}={flag.value} and --config.{flag.name}={given[flag.name]} '
        'contradict each other: give one'
      )
  for name, value in fixed.items():
    before = stored.get('config', {}).get(name, value)
    if name not in description.FREE_FIELDS and before != value:
      raise BadInput(
        f'this program is for {name}={value}, and the run has {before}: resume it with '
        'launch/atari_distributed.py'
      )
    if given.setdefault(name, value) != value:
      raise BadInput(f'this program is for {name}={value}, not {given[name]}')
  try:
    preset = config_lib.PRESETS[_PRESET.value]()
    if not stored:
      return dataclasses.replace(preset, **given)
    stored_config = R2D2Config(**stored['config'])
    # A free field goes on as it was last, whatever the preset says.
    free = {name: getattr(stored_config, name) for name in description.FREE_FIELDS}
    start = preset if flags.FLAGS['preset'].present else stored_config
    return dataclasses.replace(start, **{**free, **given})
  except (TypeError, ValueError) as error:
    raise BadInput(str(error)) from error


def override(config: R2D2Config, **given: flags.FlagHolder | flags.Flag) -> R2D2Config:
  """Returns a config with the values of flags, by field, where these have one.

  Raises:
    BadInput: a value is out of its field's bounds.
  """
  for field, flag in given.items():
    if flag.value is not None:
      try:
        config = dataclasses.replace(config, **{field: flag.value})
      except ValueError as error:  # NaN is within all bounds of absl's
        raise BadInput(f'--{flag.name}={flag.value}: {error}') from error
  return config


def _refuse_all_but(names: Collection[str]):
  """Refuses the flags of this module that a program reads from a workdir instead.

  Raises:
    BadInput: one that is not among `names` is given.
  """
  shared = flags.FLAGS.flags_by_module_dict()[__name__]
  unused = [flag.name for flag in shared if flag.present and flag.name not in names]
  overridden = config_flags.get_override_values(flags.FLAGS['config'])
  unused += [f'config.{name}' for name in overridden]
  if unused:
    raise BadInput(
      f'--{unused[0]} cannot be changed here: the config is that of --workdir'
    )
