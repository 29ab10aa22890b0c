"""What TensorBoard finds besides the rows, which `loggers_test.py` is about."""

from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.hparams import metadata

from r2d2_acme.workdir import event_files


def test_newest_hyperparameters_are_found(tmp_path):
  folder = str(tmp_path / 'tb')
  event_files.write_hparams(folder, {'learning_rate': 0.5, 'seed': 1})
  values = {'learning_rate': 0.25, 'recurrent': True, 'conv_channels': (1, 2, 3)}
  event_files.write_hparams(folder, values)
  found = event_accumulator.EventAccumulator(folder)
  found.Reload()
  content = found.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
  info = metadata.parse_session_start_info_plugin_data(content)
  assert info.group_name == folder
  assert {name: x.WhichOneof('kind') for name, x in info.hparams.items()} == {
    'learning_rate': 'number_value',
    'recurrent': 'bool_value',
    'conv_channels': 'string_value',
  }
  assert info.hparams['learning_rate'].number_value == 0.25
  assert info.hparams['conv_channels'].string_value == '(1, 2, 3)'
