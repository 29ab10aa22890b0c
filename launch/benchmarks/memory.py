"""Memory of a program over an hour with a full table, in which each node dies twice.

Not among the parts that are measured by default: it takes an hour and a half.
"""

import contextlib
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
from r2d2_acme.results import plotting, tables

_PERIOD = 20.0  # seconds between samples
_MEASURED = 3600.0  # seconds
# Seconds into the hour at which a node is killed, each in turn, and from which on the
# nodes' memory must be flat.
_DEATHS = range(60, 1200, 145)
_CALM = 1500.0
_PROGRAM = 'whole program (proportional)'
_SETTLE = 300.0  # seconds with a full table, before it counts
# Windows: the laptop preset's table would take half an hour to fill.
_TABLE_SIZE = 2_500
_COLUMNS = ('seconds', 'process', 'resident_bytes')
_OUT = pathlib.Path('results', 'memory')

# By process: seconds and bytes.
Series = Mapping[str, tuple[np.ndarray, np.ndarray]]


def run(rounds: int) -> list[Comparison]:
  """How much each process grows an hour, after the deaths; `rounds` do not matter."""
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
    names = sorted(program.nodes())
    start = time.monotonic() + _SETTLE
    deaths = [(start + at, names[i % len(names)]) for i, at in enumerate(_DEATHS)]
    while time.monotonic() < start + _MEASURED:
      append_samples(path, program)
      if deaths and time.monotonic() >= deaths[0][0]:
        program.nodes()[deaths.pop(0)[1]].kill()
      time.sleep(_PERIOD)
    return [summarize(path)]


def append_samples(path: pathlib.Path, program: end_to_end.Program):
  """Adds a row for each node, such as `actor/0`, and one for all processes together."""
  sizes: dict[str, int] = {}
  for name, process in program.nodes().items():
    with contextlib.suppress(psutil.NoSuchProcess):  # it has just died
      sizes[name] = process.memory_info().rss
  sizes[_PROGRAM] = 0
  for process in program.tree():
    with contextlib.suppress(psutil.Error):  # it has ended
      sizes[_PROGRAM] += process.memory_full_info().pss
  with path.open('a', newline='') as file:
    writer = csv.writer(file, lineterminator='\n')
    writer.writerows((round(time.time()), *size) for size in sizes.items())


def summarize(path: pathlib.Path) -> Comparison:
  """Writes the samples' figure and CSV to `results/memory`; returns the growths."""
  series = read(path)
  _OUT.mkdir(parents=True, exist_ok=True)
  write(_OUT / 'samples.csv', series)
  draw(series, _OUT / 'samples.png')
  return Comparison(
    'Pong, an hour with a full table and eight deaths: growth',
    'MiB an hour',
    {name: [growth(*samples) / 2**20] for name, samples in series.items()},
    note=f'the least-squares slope from minute {_CALM / 60:.0f} on, after the deaths',
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
  rows = (
    (int(t), name, int(rss))
    for name, samples in series.items()
    for t, rss in zip(*samples, strict=True)
  )
  tables.write_csv(path, _COLUMNS, rows)


def growth(seconds: np.ndarray, rss: np.ndarray) -> float:
  """Returns the bytes an hour, by the line of least squares after the deaths."""
  calm = seconds >= _CALM
  return float(np.polyfit(seconds[calm], rss[calm], 1)[0] * 3600)


def draw(series: Series, path: pathlib.Path):
  """Writes a PNG with a line for each process."""
  pyplot = plotting.pyplot()
  figure, axes = pyplot.subplots(figsize=(9, 4), constrained_layout=True)
  for name, (seconds, rss) in series.items():
    label = f'{name}: {growth(seconds, rss) / 2**20:+.1f} MiB an hour'
    axes.plot(seconds / 60, rss / 2**20, label=label)
  axes.set_xlabel('minutes with a full table')
  axes.set_ylabel('memory, MiB')
  axes.set_ylim(bottom=0)
  axes.axvspan(0, _CALM / 60, alpha=0.1, label='each node is killed twice')
  axes.grid(alpha=0.3)
  figure.legend(fontsize='small', loc='outside right center')
  figure.savefig(path, dpi=120)
  pyplot.close(figure)
