"""Flags of Ray that cannot work: one line, code 2, and no process."""

import socket

import pytest


@pytest.mark.parametrize(
  ('flags', 'error'),
  [
    (
      ['--ray_address=auto', '--lp_launch_type=local_mp'],
      '--lp_launch_type is not for',
    ),
    (['--ray_address=auto', '--network=host'], '--network is not for --ray_address'),
    (
      ['--lp_launch_type=local_mp', '--resources=x'],
      '--resources is for --ray_address',
    ),
    (['--ray_address=here'], 'is not auto, local or HOST:PORT'),
    (['--ray_address=auto', '--resources=none.yaml'], 'cannot read none.yaml: No such'),
  ],
)
def test_flags_that_cannot_work_are_refused(refuse, flags, error):
  assert error in refuse('--env=memory/cue_recall', *flags)


def test_address_where_nobody_listens_is_refused_soon(refuse):
  with socket.socket() as nobody:  # keeps the port
    nobody.bind(('127.0.0.1', 0))
    port = nobody.getsockname()[1]
    error = refuse('--env=memory/cue_recall', f'--ray_address=127.0.0.1:{port}')
  assert f'nobody answers at --ray_address=127.0.0.1:{port}' in error


def test_refused_start_keeps_the_status_of_the_program_before(refuse, tmp_path):
  path = tmp_path / 'run' / 'status.json'
  path.parent.mkdir()
  path.write_text('of the program before')
  refuse('--env=memory/cue_recall', '--workdir=run', '--ray_address=127.0.0.1:1')
  assert path.read_text() == 'of the program before'
