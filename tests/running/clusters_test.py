"""What the file of --resources may say, and how it is refused."""

import pytest

from r2d2_acme.running import clusters

_GROUPS = ('replay', 'learner', 'actor', 'evaluator')


def _read(tmp_path, text):
  path = tmp_path / 'resources.yaml'
  path.write_text(text)
  return clusters.read(str(path), _GROUPS)


def test_learner_may_get_the_gpu_and_actors_spread_by_default():
  found = clusters.read(None, _GROUPS)
  assert found.keys() == set(_GROUPS)
  assert found['learner'].gpus is None
  assert {found[group].gpus for group in _GROUPS if group != 'learner'} == {0}
  assert found['actor'].placement == 'spread'
  assert {needs.cpus for needs in found.values()} == {1}


def test_file_changes_what_it_names_and_leaves_the_rest(tmp_path):
  found = _read(
    tmp_path,
    'learner: {cpus: 4, gpus: 2, custom: {fast: 0.5}}\n'
    'replay: {memory: 1.5}\n'
    'actor: {placement: pack}\n',
  )
  assert found['learner'] == clusters.Resources(4, 2, custom={'fast': 0.5})
  assert found['replay'].memory_bytes == 3 << 29
  assert found['actor'] == clusters.Resources(gpus=0, placement='pack')
  assert found['evaluator'] == clusters.defaults('evaluator')


def test_empty_file_is_that_of_the_defaults(tmp_path):
  assert _read(tmp_path, '') == clusters.read(None, _GROUPS)


@pytest.mark.parametrize(
  ('text', 'error'),
  [
    ('actors: {cpus: 1}', "no group 'actors': give some of replay, learner, actor"),
    ('actor: {cpu: 1}', "actor has no 'cpu': give some of cpus, gpus, memory"),
    ('actor: 3', 'actor must be a mapping'),
    ('- actor', 'must map groups'),
    ('actor: {cpus: -1}', 'actor.cpus must be 0 or a number from 0.0001 to 500000'),
    ('actor: {cpus: .nan}', 'actor.cpus must be 0 or a number'),
    ('actor: {cpus: .inf}', 'actor.cpus must be 0 or a number'),
    ('actor: {cpus: many}', 'actor.cpus must be 0 or a number'),
    ('actor: {cpus: 0.00009}', 'actor.cpus must be 0 or a number'),
    ('actor: {cpus: %s}' % ('9' * 400), 'actor.cpus must be 0 or a number'),
    ('actor: {cpus: %s}' % ('9' * 5_000), 'is not YAML'),
    ('actor: {memory: 1000000}', 'actor.memory must be 0 or a number'),
    ('actor: {gpus: true}', 'actor.gpus must be 0 or a number'),
    ('learner: {gpus: 0.00001}', 'learner.gpus must be 0 or a number'),
    ('learner: {gpus: 1.5}', 'learner.gpus must be whole above 1'),
    ('actor: {custom: {fast: x}}', 'actor.custom.fast must be 0 or a number'),
    ('actor: {custom: {fast: 0.00001}}', 'actor.custom.fast must be 0 or a number'),
    ('actor: {custom: {fast: 1.0e+30}}', 'actor.custom.fast must be 0 or a number'),
    ('actor: {custom: {CPU: 1}}', "actor.custom: 'CPU' is a name of Ray's own"),
    ('actor: {custom: {GPU: 1}}', "actor.custom: 'GPU' is a name of Ray's own"),
    ('actor: {custom: {memory: 1}}', "actor.custom: 'memory' is a name of Ray's own"),
    ('actor: {custom: {object_store_memory: 1}}', "'object_store_memory' is a name"),
    ('actor: {custom: {bundle: 1}}', "actor.custom: 'bundle' is a name of Ray's own"),
    ('actor: {custom: {schön: 1}}', "actor.custom: 'schön' must be a name in ASCII"),
    (r'actor: {custom: {"a\nb": x}}', r"actor.custom: 'a\\nb' must be a name in ASCII"),
    ('actor: {custom: {1: 1}}', 'actor.custom: 1 must be a name in ASCII'),
    ('actor: {placement: wide}', 'placement must be one of pack, spread'),
    ('actor: [', 'is not YAML'),
    ('[' * 20_000, 'is not YAML'),
  ],
)
def test_bad_file_is_refused_in_one_line(tmp_path, text, error):
  with pytest.raises(clusters.NoCluster, match=error) as refusal:
    _read(tmp_path, text)
  assert '\n' not in str(refusal.value)
  assert 'resources.yaml' in str(refusal.value)


def test_smallest_amounts_and_fractions_of_custom_resources_are_taken(tmp_path):
  found = _read(tmp_path, 'actor: {cpus: 0.0001, custom: {fast: 1.5, slow: 1.0e+9}}')
  custom = {'fast': 1.5, 'slow': 1e9}
  assert found['actor'] == clusters.Resources(
    1e-4, 0, custom=custom, placement='spread'
  )


@pytest.mark.parametrize(
  ('factory', 'torso', 'modules'),
  [
    ({'environment': 'games:make'}, '', ['games']),
    ({'environment': ''}, '', []),  # such as a lambda
    ({'env': 'games:Id-v0'}, '', ['games']),
    ({'env': 'CartPole-v1'}, '', []),
    ({'game': 'pong'}, 'nets:make', ['nets']),
    ({'env': 'games:Id-v0'}, 'nets:make', ['games', 'nets']),
    ({'env': 'mine.games:Id-v0'}, 'mine.nets:make', ['mine']),
  ],
)
def test_modules_of_the_environment_and_of_the_torso_are_shipped(
  factory, torso, modules
):
  assert clusters.find_modules(factory, torso) == modules


def test_missing_file_is_refused(tmp_path):
  with pytest.raises(clusters.NoCluster, match='No such file'):
    clusters.read(str(tmp_path / 'none.yaml'), _GROUPS)
