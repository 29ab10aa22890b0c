"""The cores and the memory that this process may use, inside a container as well."""

from __future__ import annotations  # loads on any Python, as `doctor` does

import math
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

_ROOT = pathlib.Path('/')
_DEFAULT_PERIOD = 100_000  # microseconds, of a CPU quota that states no period
_VERSION_2 = ''  # the controllers of a version 2 group in /proc/self/cgroup
# Lines of /proc/self/cgroup, see cgroups(7), and of /proc/self/mountinfo, see proc(5).
_CGROUP = re.compile(r'^\d+:(?P<controllers>[^:\n]*):(?P<path>/.*)$', re.M)
_MOUNT = re.compile(
  r'^\S+ \S+ \S+ (?P<root>/\S*) (?P<point>/\S*) .* - '
  r'(?P<type>cgroup2?) \S+ (?P<options>\S+)$',
  re.M,
)


class _Mount(NamedTuple):
  """A mounted hierarchy of control groups.

  Attributes:
    root: the control group that is mounted.
    point: the folder at which it is mounted.
    controllers: the resources that it limits (version 1), or only `_VERSION_2`
      (version 2, where one hierarchy limits everything).
  """

  root: pathlib.PurePosixPath
  point: pathlib.PurePosixPath
  controllers: frozenset[str]


def num_cores(root: pathlib.Path = _ROOT) -> int:
  """Returns the number of cores that this process may use, at least 1.

  This is the smaller of two numbers: the cores that it may run on (its affinity), and
  the smallest CPU quota of its control groups, rounded up. `docker --cpus=2`,
  Kubernetes and systemd's `CPUQuota` set such quotas.

  Args:
    root: the folder that contains `proc` and the mounted file systems.
  """
  if not hasattr(os, 'sched_getaffinity'):  # not Linux: `doctor` will report it
    return os.cpu_count() or 1
  affinity = len(os.sched_getaffinity(0))
  return max(1, min(affinity, math.ceil(min(affinity, cpu_quota(root)))))


def cpu_quota(root: pathlib.Path = _ROOT) -> float:
  """Returns the smallest CPU quota of this process's control groups, in cores.

  The quota is infinity if there is none.

  Args:
    root: as for `num_cores`.
  """
  return min(_limits(root, 'cpu', _quota_v1, _quota_v2), default=math.inf)


def memory_limit(root: pathlib.Path = _ROOT) -> int:
  """Returns the bytes of memory that this process and its children may use together.

  This is the smaller of the machine's memory and the smallest limit of the process's
  control groups. It does not consider what other processes use.

  Args:
    root: as for `num_cores`.
  """
  limits = _limits(root, 'memory', _memory_v1, _memory_v2)
  return int(min([_machine_bytes(root), *limits]))


def has_gpu() -> bool:
  """Returns whether there is a GPU of NVIDIA, without starting its driver."""
  names = os.listdir('/dev') if os.path.isdir('/dev') else ()
  return any(re.fullmatch(r'nvidia\d+', name) for name in names)


def _machine_bytes(root: pathlib.Path) -> int:
  """Returns the memory that /proc reports, which in a container may be its own view."""
  found = re.search(r'^MemTotal:\s*(\d+) kB$', _read(root / 'proc/meminfo'), re.M)
  if found is None:
    return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  return int(found[1]) << 10


def _limits(
  root: pathlib.Path, controller: str, *parsers: Callable[[pathlib.Path], float]
) -> Iterator[float]:
  """Yields the limits that these parsers find in the process's groups of a controller.

  A parser reads a group's folder. It may raise ValueError, IndexError or
  ZeroDivisionError if the group has no such limit.
  """
  for folder in _control_groups(root, controller):
    for parse in parsers:
      try:
        limit = parse(folder)
      except (ValueError, IndexError, ZeroDivisionError):
        continue  # the limit is 'max', or there is no such file
      if limit > 0:  # -1 means that there is no limit
        yield limit


def _quota_v1(folder: pathlib.Path) -> float:
  quota = int(_read(folder / 'cpu.cfs_quota_us'))
  return quota / int(_read(folder / 'cpu.cfs_period_us'))


def _quota_v2(folder: pathlib.Path) -> float:
  quota, *period = _read(folder / 'cpu.max').split()
  return int(quota) / int(period[0] if period else _DEFAULT_PERIOD)


def _memory_v1(folder: pathlib.Path) -> int:
  return int(_read(folder / 'memory.limit_in_bytes'))


def _memory_v2(folder: pathlib.Path) -> int:
  return int(_read(folder / 'memory.max'))


def _control_groups(root: pathlib.Path, controller: str) -> Iterator[pathlib.Path]:
  """Yields the folders of this process's groups and of all groups above them.

  A process is in one group of each hierarchy, and hierarchies of both versions may be
  mounted. SLURM, systemd and Kubernetes set their limits above the process's own group.
  """
  mounts = list(_mounts(root))
  for found in _CGROUP.finditer(_read(root / 'proc/self/cgroup')):
    controllers = frozenset(found['controllers'].split(','))
    if controllers & {controller, _VERSION_2}:
      hierarchy = [mount for mount in mounts if mount.controllers >= controllers]
      for folder in _ascend(hierarchy, pathlib.PurePosixPath(found['path'])):
        yield root / folder.relative_to('/')


def _ascend(
  mounts: Sequence[_Mount], path: pathlib.PurePosixPath
) -> Iterator[pathlib.PurePosixPath]:
  """Yields the folders of the group called `path` and of the groups above it."""
  within = [m for m in mounts if _is_within(path, m.root) and '..' not in path.parts]
  for mount in within:
    group = mount.point / path.relative_to(mount.root)
    yield group
    yield from (p for p in group.parents if _is_within(p, mount.point))
  if not within:
    # The path belongs to another namespace; the mounted group is the container's.
    yield from (mount.point for mount in mounts)


def _is_within(path: pathlib.PurePosixPath, folder: pathlib.PurePosixPath) -> bool:
  return path == folder or folder in path.parents


def _mounts(root: pathlib.Path) -> Iterator[_Mount]:
  """Yields the mounted hierarchies of control groups."""
  for found in _MOUNT.finditer(_read(root / 'proc/self/mountinfo')):
    is_v1 = found['type'] == 'cgroup'
    controllers = found['options'].split(',') if is_v1 else [_VERSION_2]
    yield _Mount(
      _unescape(found['root']), _unescape(found['point']), frozenset(controllers)
    )


def _unescape(path: str) -> pathlib.PurePosixPath:
  """Replaces mountinfo's octal escapes, such as that of a space, by the characters."""
  return pathlib.PurePosixPath(
    re.sub(r'\\([0-7]{3})', lambda found: chr(int(found[1], 8)), path)
  )


def _read(path: pathlib.Path) -> str:
  """Returns a file's text; it is empty if the file cannot be read."""
  try:
    return path.read_text(errors='surrogateescape')
  except OSError:
    return ''
