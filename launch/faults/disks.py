"""A small file system of its own, to be filled."""

import contextlib
import pathlib
import subprocess
from collections.abc import Iterator

_SIZE = '300m'


@contextlib.contextmanager
def made(folder: str) -> Iterator[pathlib.Path | None]:
  """Yields a workdir on a small file system of its own; None if it is not permitted."""
  path = pathlib.Path(folder, 'disk')
  path.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', f'size={_SIZE}', 'chaos', str(path)]
  if subprocess.run(mount, stderr=subprocess.DEVNULL, check=False).returncode:
    print('No file system may be mounted here, so none is filled.', flush=True)
    yield None
    return
  try:
    yield path / 'run'
  finally:
    subprocess.run(['umount', '-l', str(path)], check=True)
