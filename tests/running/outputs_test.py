"""What nodes print is followed to its end, line by line, and its files stay small."""

import pathlib
import subprocess
import sys
import time

import pytest

from r2d2_acme.running import outputs


@pytest.fixture
def small_output(monkeypatch, tmp_path):
  """Output that is kept below 20 kB a file."""
  monkeypatch.setattr(outputs, '_MAX_SIZE', 20_000)
  return outputs.Output(str(tmp_path / 'actor' / '0'))


_TALKER = """
import sys
for i in range(20_000):
  print(f'line {i} \N{GREEK SMALL LETTER EPSILON}', flush=True)
"""


def test_output_stays_small_and_is_followed_to_its_end(small_output, capfd):
  path = pathlib.Path(small_output.path)
  sizes = []
  with (
    outputs.following({'actor/0': small_output}),
    path.open('ab') as file,
    subprocess.Popen([sys.executable, '-c', _TALKER], stdout=file) as talker,
  ):
    while talker.poll() is None:
      sizes.append(path.stat().st_size)
      time.sleep(0.01)
  printed = capfd.readouterr().out.splitlines()
  numbers = [int(line.split()[2]) for line in printed]
  assert numbers == sorted(set(numbers))  # none twice, in order
  # What comes while a file is cut may be lost: here some 300 times, on a busy machine.
  assert len(numbers) >= 19_000
  assert numbers[0] == 0
  assert numbers[-1] == 19_999
  assert printed[-1] == '[actor/0] line 19999 \N{GREEK SMALL LETTER EPSILON}'
  assert path.stat().st_size <= 20_000
  assert small_output.last_lines()[-1] == 'line 19999 \N{GREEK SMALL LETTER EPSILON}'


def test_output_that_was_cut_is_in_a_second_file(small_output):
  path = pathlib.Path(small_output.path)
  seen = []
  with path.open('ab', buffering=0) as file:
    for i in range(5_000):
      file.write(b'%d\n' % i)
      if i % 100 == 0:
        seen += small_output.new_lines()
  seen += small_output.new_lines()
  assert seen == [str(i) for i in range(5_000)]
  kept = [*pathlib.Path(f'{path}.1').read_text().split(), *path.read_text().split()]
  assert kept == seen[-len(kept) :]
  assert len(kept) > 4_000
  assert small_output.last_lines() == [str(i) for i in range(4_980, 5_000)]


def test_partial_lines_and_characters_are_put_together(small_output):
  with open(small_output.path, 'ab', buffering=0) as file:
    lines = []
    for byte in 'aé\nb'.encode():
      file.write(bytes([byte]))
      lines += small_output.new_lines()
  assert lines == ['aé']


def test_progress_bars_are_split_and_what_has_no_end_is_cut(small_output):
  lines = []
  with open(small_output.path, 'ab', buffering=0) as file:
    for i in range(3):
      file.write(b'\r%d of 3' % i)
      lines += small_output.new_lines()
    assert lines == ['', '0 of 3', '1 of 3']
    file.write(b'\n')
    list(small_output.new_lines())
    lines = []
    for _ in range(20):
      file.write(b'x' * 10_000)
      lines += small_output.new_lines()
  assert [len(line) for line in lines] == [outputs._MAX_LINE_LENGTH] * 3
  assert len(small_output._partial) == 200_000 - 3 * outputs._MAX_LINE_LENGTH
  assert max(map(len, small_output.last_lines())) <= outputs._MAX_LINE_LENGTH


def test_output_is_that_since_the_last_start(small_output):
  path = pathlib.Path(small_output.path)
  path.write_text('before')
  pathlib.Path(f'{path}.1').write_text('long before')
  outputs.Output(str(path))
  assert path.read_text() == ''
  assert not pathlib.Path(f'{path}.1').exists()
