"""The config: the paper's values, refusals, and that every field is used."""

import ast
import dataclasses
import json

import pytest

from r2d2_acme import config as config_lib
from r2d2_acme.config import R2D2Config
from tests import helpers

_ROOT = helpers.ROOT
_FIELDS = {field.name for field in dataclasses.fields(R2D2Config)}

# Kapturowski et al. 2019, table 2 and section 2.3; Horgan et al. 2018 for epsilon.
_PAPER = {
  'burn_in_length': 40,
  'trace_length': 80,
  'sequence_period': 40,
  'frame_stack': 4,
  'state_strategy': 'stored',
  'discount': 0.997,
  'n_step': 5,
  'value_rescaling': True,
  'value_rescaling_epsilon': 0.001,
  'importance_sampling_exponent': 0.6,
  'batch_size': 64,
  'learning_rate': 0.0001,
  'adam_epsilon': 0.001,
  'target_update_period': 2500,
  'torso_dtype': 'float32',
  'max_replay_size': 100_000,
  'min_replay_size': 5_000,
  'priority_exponent': 0.9,
  'priority_eta': 0.9,
  'actor_priorities': True,
  'num_actors': 256,
  'envs_per_actor': 1,
  'epsilon_base': 0.4,
  'epsilon_alpha': 7.0,
  'variable_update_period': 400,
  'evaluator_epsilon': 0.001,
  'conv_channels': (32, 64, 64),
  'torso_size': 512,
  'normalize_images': False,
  'core_size': 512,
  'head_size': 512,
  'full_action_space': True,
  'sticky_actions': 0.0,
  'max_episode_frames': 108_000,
  'max_noops': 30,
  'frame_skip': 4,
  'life_loss_discount': 1.0,
  'clip_rewards': False,
  'recurrent': True,
}

# For each bounded field, the nearest value that is refused.
_JUST_REFUSED = {
  **dict.fromkeys(
    [
      'trace_length',
      'sequence_period',
      'frame_stack',
      'max_actions',
      'n_step',
      'batch_size',
      'target_update_period',
      'max_replay_size',
      'min_replay_size',
      'num_replay_shards',
      'num_actors',
      'envs_per_actor',
      'variable_update_period',
      'max_evaluation_steps',
      'max_episode_frames',
      'frame_skip',
      'torso_size',
      'core_size',
      'head_size',
      'learning_rate',
      'adam_epsilon',
      'max_gradient_norm',
      'samples_per_insert',
      'samples_per_insert_tolerance',
      'checkpoint_period',
      'num_checkpoints',
      'num_best_episodes',
      'replay_checkpoint_period',
      'restart_period',
      'progress_timeout',
      'max_bad_batches',
    ],
    0,
  ),
  **dict.fromkeys(
    [
      'burn_in_length',
      'value_rescaling_epsilon',
      'importance_sampling_exponent',
      'priority_exponent',
      'epsilon_alpha',
      'evaluation_period',
      'checkpoint_keep_period',
      'video_period',
      'max_restarts',
      'max_environment_failures',
      'actors_per_cacher',
      'learner_devices',
      'max_noops',
      'seed',
    ],
    -1,
  ),
  **dict.fromkeys(
    [
      *('discount', 'priority_eta', 'epsilon_base', 'evaluator_epsilon'),
      *('sticky_actions', 'life_loss_discount'),
    ],
    1.001,
  ),
  'state_strategy': 'Stored',
  'torso_dtype': 'float16',
  'conv_channels': (32, 64, 0),
}


def _refusal(**overrides) -> str:
  with pytest.raises(ValueError) as error:
    R2D2Config(**overrides)
  assert '\n' not in str(error.value)
  return str(error.value)


def test_paper_has_the_papers_numbers():
  paper = dataclasses.asdict(config_lib.paper())
  assert {name: paper[name] for name in _PAPER} == _PAPER


def test_paper_replays_as_often_as_the_papers_rates_say():
  inserted_per_second = 256 * 260 / 4 / 40
  ratio = 5 * 64 / inserted_per_second
  assert config_lib.paper().samples_per_insert == pytest.approx(ratio, abs=0.005)


def test_defaults_are_the_papers():
  assert R2D2Config() == config_lib.paper()


def test_laptop_differs_from_the_paper_in_sizes_and_in_how_fast_it_learns():
  differing = {
    *('burn_in_length', 'trace_length', 'batch_size'),
    *('conv_channels', 'torso_size', 'core_size', 'head_size'),
    *('samples_per_insert', 'max_replay_size', 'min_replay_size'),
    *('target_update_period', 'num_actors', 'envs_per_actor'),
    *('variable_update_period', 'evaluation_period', 'replay_checkpoint_period'),
    *('normalize_images', 'torso_dtype', 'learning_rate', 'adam_epsilon'),
    *('discount', 'epsilon_base', 'epsilon_alpha', 'full_action_space'),
  }
  laptop = dataclasses.asdict(config_lib.laptop())
  paper = dataclasses.asdict(config_lib.paper())
  assert {name for name in _FIELDS if laptop[name] != paper[name]} == differing


def test_presets_for_one_process_pause_between_evaluations():
  for preset in (config_lib.laptop(), config_lib.memory()):
    assert preset.evaluation_period >= 10  # an episode may take seconds


@pytest.mark.parametrize('preset', sorted(config_lib.PRESETS))
def test_preset_survives_json(preset):
  config = config_lib.PRESETS[preset]()
  assert R2D2Config(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(('name', 'value'), _JUST_REFUSED.items())
def test_refusal_names_the_field_and_its_value(name, value):
  assert f'{name}={value!r}' in _refusal(**{name: value})


def test_every_field_has_a_bound():
  is_free = {
    'normalize_images',
    'full_action_space',
    'clip_rewards',
    'recurrent',
    'torso',
    'value_rescaling',
    'actor_priorities',
  }
  assert _JUST_REFUSED.keys() == _FIELDS - is_free


@pytest.mark.parametrize('name', sorted(config_lib.ATARI))
def test_protocol_is_named_with_what_is_other(name):
  config = R2D2Config(**config_lib.ATARI[name])
  assert config.atari_protocol == name
  changed = dataclasses.replace(config, frame_skip=2, seed=9)
  assert changed.atari_protocol == f'{name}, frame_skip=2'


def test_protocols_say_the_same_fields():
  fields = {*R2D2Config().atari, 'clip_rewards'}
  assert all(protocol.keys() == fields for protocol in config_lib.ATARI.values())


def test_last_cacher_may_have_fewer_actors():
  cachers = [
    R2D2Config(num_actors=5, actors_per_cacher=n).num_cachers for n in range(7)
  ]
  assert cachers == [0, 5, 3, 2, 2, 1, 1]


def test_nan_is_refused():
  assert 'learning_rate=nan' in _refusal(learning_rate=float('nan'))


@pytest.mark.parametrize('end', [0, 1])
def test_shares_include_their_ends(end):
  names = ['discount', 'priority_eta', 'epsilon_base', 'evaluator_epsilon']
  R2D2Config(**dict.fromkeys(names, end))


def test_smallest_windows_are_fine():
  R2D2Config(burn_in_length=0, trace_length=1, sequence_period=1, n_step=1)


@pytest.mark.parametrize(
  ('name', 'limit', 'others'),
  [
    ('sequence_period', 80, {'trace_length': 80}),
    ('n_step', 40, {'trace_length': 40}),
    ('min_replay_size', 5000, {'max_replay_size': 5000}),
    ('learner_devices', 3, {'batch_size': 3}),  # a multiple of 3, but not of 4
    ('num_replay_shards', 6, {'num_actors': 3, 'envs_per_actor': 2}),
    ('frame_skip', 9, {'max_episode_frames': 9}),
  ],
)
def test_refusal_above_a_limit_names_both_fields(name, limit, others):
  R2D2Config(**{name: limit}, **others)
  message = _refusal(**{name: limit + 1}, **others)
  for field, value in {name: limit + 1, **others}.items():
    assert f'{field}={value}' in message


@pytest.mark.parametrize(
  ('samples_per_insert', 'tolerance', 'min_replay_size'),
  [
    (4.0, 0.1, 10),  # 10 * 0.1 * 4 = 4: room for one insert, that is 4 samples
    (0.5, 0.2, 10),  # 10 * 0.2 * 0.5 = 1: room for one sample
  ],
)
def test_refusal_of_a_limiter_without_room_names_its_fields(
  samples_per_insert, tolerance, min_replay_size
):
  fields = {
    'samples_per_insert': samples_per_insert,
    'samples_per_insert_tolerance': tolerance,
  }
  R2D2Config(min_replay_size=min_replay_size, **fields)
  fields['min_replay_size'] = min_replay_size - 1
  message = _refusal(**fields)
  for field, value in fields.items():
    assert f'{field}={value}' in message


def test_config_cannot_be_changed_afterwards():
  with pytest.raises(dataclasses.FrozenInstanceError):
    R2D2Config().batch_size = 1
  hash(R2D2Config())  # fails if a field is a list


def _attributes(tree: ast.AST, *owners: str) -> set[str]:
  """Returns the names that a file reads as `owner.name` or `x.owner.name`."""
  return {
    node.attr
    for node in ast.walk(tree)
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    if getattr(node.value, 'attr', getattr(node.value, 'id', None)) in owners
  }


def test_every_field_is_read_somewhere():
  definition = _ROOT / 'r2d2_acme' / 'config.py'
  paths = {*_ROOT.glob('r2d2_acme/**/*.py'), *_ROOT.glob('launch/*.py')}
  read = set()
  for path in paths - {definition}:
    read |= _attributes(ast.parse(path.read_text()), 'config', '_config')
  # Properties that are read read fields in turn.
  for node in ast.walk(ast.parse(definition.read_text())):
    if isinstance(node, ast.FunctionDef) and node.name in read:
      read |= _attributes(node, 'self')
  assert _FIELDS <= read
