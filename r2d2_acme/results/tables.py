"""CSV files of results."""

import collections
import csv
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np


def write_csv(path: pathlib.Path, columns: Sequence[str], rows: Iterable[Sequence]):
  """Writes a header and rows, replacing the file in one step.

  Fractions get six significant digits.
  """
  new = path.with_name(f'{path.name}.new')
  with open(new, 'w', newline='') as file:
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(columns)
    for row in rows:
      writer.writerow(x if isinstance(x, str) else _shorten(x) for x in row)
  os.replace(new, path)


def read_csv(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads a file of numbers.

  Returns:
    The columns, float64 [number of rows] each, by their names. Where there is no row,
    a column of any name is empty.

  Raises:
    OSError: the file cannot be read.
    ValueError: something in it is not a number, or a row has another length.
  """
  lines = path.read_text().splitlines()
  names, *rows = [line.split(',') for line in lines] or [[]]
  columns = np.array(rows, float).reshape(len(rows), len(names)).T
  return collections.defaultdict(lambda: np.zeros(0), zip(names, columns, strict=True))


def _shorten(x: float) -> str:
  return f'{x:.0f}' if float(x).is_integer() else f'{x:.6g}'
