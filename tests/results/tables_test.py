"""`results/tables.py`: what is written is read again."""

import numpy as np
import pytest

from r2d2_acme.results import tables


def test_large_counts_keep_all_digits_and_fractions_six(tmp_path):
  path = tmp_path / 'x.csv'
  rows = [('a', 1_234_567, 1 / 3, np.nan), ('b', 1_234_567.0, np.float32(2), 3e-9)]
  tables.write_csv(path, ('name', 'steps', 'mean', 'std'), rows)
  assert path.read_text() == (
    'name,steps,mean,std\na,1234567,0.333333,nan\nb,1234567,2,3e-09\n'
  )


def test_columns_are_read_by_name(tmp_path):
  path = tmp_path / 'x.csv'
  tables.write_csv(path, ('x', 'y'), [(1, 0.5), (2, np.nan)])
  columns = tables.read_csv(path)
  np.testing.assert_array_equal(columns['x'], [1, 2])
  np.testing.assert_array_equal(columns['y'], [0.5, np.nan])
  for text in ('', 'x,y\n'):
    path.write_text(text)
    assert len(tables.read_csv(path)['x']) == 0


@pytest.mark.parametrize('text', ['x,y\n1', 'x\na', 'x\n\0'])
def test_damaged_table_is_a_value_error(tmp_path, text):
  path = tmp_path / 'x.csv'
  path.write_text(text)
  with pytest.raises(ValueError):
    tables.read_csv(path)
