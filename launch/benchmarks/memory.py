"""Resident memory of each process of the program, over an hour with a full table.

Not among the parts that are measured by default: it takes an hour and a half.
"""

import csv
import pathlib
import tempfile
import time
from collections.abc import Mapping

import numpy as np
import psutil

from benchmarks import end_to_end
from benchmarks.measuring import progress
from benchmarks.report import Comparison
from r2d2_acme.results import plotting

_PERIOD = 20.0  # seconds between samples
_MEASURED = 3600.0  # seconds
_SETTLE = 300.0  # seconds with a full table, before it counts
# Windows: the laptop preset's table would take half an hour to fill.
_TABLE_SIZE = 2_500
_COLUMNS = ('seconds', 'process', 'resident_bytes')
_OUT = pathlib.Path('results', 'memory')

# By process: seconds and bytes.
Series = Mapping[str, tuple[np.ndarray, np.ndarray]]


def run(rounds: int) -> list[Comparison]:
  """Bytes by which each process grows in the hour; `rounds` do not matter."""
  del rounds
  program = end_to_end.Program(
    'ours',
    [
      str(end_to_end.LAUNCH / 'atari_distributed.py'),
      '--lp_launch_type=local_mp',
      '--game=pong',
      '--network=host',  # the replay is asked from outside
      f'--config.max_replay_size={_TABLE_SIZE}',
    ],
  )
  with program, tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'samples.csv')
    progress('memory: waiting until the table is full')
    program.wait_until_it_learns()
    program.resume()
    while program.replay_size < _TABLE_SIZE:
      time.sleep(_PERIOD)
    progress('memory: measuring for an hour')
    end = time.monotonic() + _SETTLE + _MEASURED
    while time.monotonic() < end:
      append_samples(path, program.nodes())
      time.sleep(_PERIOD)
    return [summarize(path)]


def append_samples(path: pathlib.Path, nodes: Mapping[str, psutil.Process]):
  """Adds a row for each process, by its name such as `actor/0`."""
  with path.open('a', newline='') as file:
    writer = csv.writer(file, lineterminator='\n')
    for name, process in nodes.items():
      writer.writerow([round(time.time()), name, process.memory_info().rss])


def summarize(path: pathlib.Path) -> Comparison:
  """Writes the samples' figure and CSV to `results/memory`; returns the growths."""
  series = read(path)
  _OUT.mkdir(parents=True, exist_ok=True)
  write(_OUT / 'samples.csv', series)
  draw(series, _OUT / 'samples.png')
  return Comparison(
    'Pong, an hour with a full table: growth',
    'MiB',
    {name: [growth(*samples) / 2**20] for name, samples in series.items()},
    note='the least-squares slope over the hour, times the hour',
  )


def read(path: pathlib.Path) -> Series:
  """The samples of the last hour, seconds counted from its start."""
  with path.open(newline='') as file:
    rows = [
      (float(seconds), name, float(rss)) for seconds, name, rss in csv.reader(file)
    ]
  start = rows[-1][0] - _MEASURED
  series = {}
  for name in dict.fromkeys(name for _, name, _ in rows):
    samples = np.array([(t - start, rss) for t, n, rss in rows if n == name])
    series[name] = tuple(samples[samples[:, 0] >= 0].T)
  return series


def write(path: pathlib.Path, series: Series):
  with path.open('w', newline='') as file:
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(_COLUMNS)
    for name, samples in series.items():
      writer.writerows(
        (int(t), name, int(rss)) for t, rss in zip(*samples, strict=True)
      )


def growth(seconds: np.ndarray, rss: np.ndarray) -> float:
  """Bytes in the hour, by the line of least squares."""
  return float(np.polyfit(seconds, rss, 1)[0] * _MEASURED)


def draw(series: Series, path: pathlib.Path):
  """Writes a PNG with a line for each process."""
  pyplot = plotting.pyplot()
  figure, axes = pyplot.subplots(figsize=(8, 4), constrained_layout=True)
  for name, (seconds, rss) in series.items():
    label = f'{name}: {growth(seconds, rss) / 2**20:+.1f} MiB in the hour'
    axes.plot(seconds / 60, rss / 2**20, label=label)
  axes.set_xlabel('minutes with a full table')
  axes.set_ylabel('resident memory, MiB')
  axes.set_ylim(bottom=0)
  axes.grid(alpha=0.3)
  axes.legend(fontsize='small')
  figure.savefig(path, dpi=120)
  pyplot.close(figure)
