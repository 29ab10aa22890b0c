"""`machine.py`: on file trees copied from containers, and on this machine."""

import math
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping

import pytest

from r2d2_acme.system import machine

_MIB = 1 << 20
_GIB = 1 << 30
_MACHINE = 64 * _GIB
_NO_LIMIT = str(2**63 - 4096)  # how version 1 expresses it
_OTHERS = (
  '27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n'
  '22 27 0:21 / /proc rw,relatime shared:5 - proc proc rw\n'
)
_V2 = (
  '31 23 0:28 {root} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate'
)
_V1 = '{id} 31 0:{id} {root} /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{name}'


def _v2(root: str = '/') -> str:
  return _OTHERS + _V2.format(root=root) + '\n'


def _v1(root: str = '/') -> str:
  lines = [
    _V1.format(id=32 + i, root=root, name=name)
    for i, name in enumerate(('cpu,cpuacct', 'cpuset', 'memory', 'name=systemd'))
  ]
  return '\n'.join([_OTHERS + lines[0], *lines[1:], ''])


@pytest.fixture
def make_tree(tmp_path):
  """`make_tree(cgroup, mountinfo, files)` makes a root with files in /sys/fs/cgroup."""

  def make(cgroup: str, mountinfo: str, files: Mapping[str, str]) -> pathlib.Path:
    tree = {
      'proc/self/cgroup': cgroup,
      'proc/self/mountinfo': mountinfo,
      'proc/meminfo': f'MemTotal:       {_MACHINE >> 10} kB\nMemFree:  1 kB\n',
    } | {f'sys/fs/cgroup/{name}': text for name, text in files.items()}
    for name, text in tree.items():
      (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
      (tmp_path / name).write_text(text)
    return tmp_path

  return make


_V1_CGROUP = '4:memory:{0}\n3:cpuset:/\n2:cpu,cpuacct:{0}\n1:name=systemd:{0}\n'

# The contents of /proc and /sys/fs/cgroup, and the quota and memory that follow.
_TREES = {
  'no control groups': ('', _OTHERS, {}, math.inf, _MACHINE),
  'v2, root group': ('0::/\n', _v2(), {}, math.inf, _MACHINE),
  'v2, docker --cpus=0.5 with a namespace': (
    '0::/\n',
    _v2(),
    {'cpu.max': '50000 100000\n', 'memory.max': f'{_GIB}\n'},
    0.5,
    _GIB,
  ),
  'v2, docker without a namespace': (
    '0::/docker/1f\n',
    _v2(),
    {'docker/1f/cpu.max': '150000 100000\n', 'docker/1f/memory.max': f'{_GIB}\n'},
    1.5,
    _GIB,
  ),
  'v2, a mounted part of the hierarchy': (
    '0::/docker/1f/inner\n',
    _v2('/docker/1f'),
    {'inner/cpu.max': 'max 100000\n', 'cpu.max': '300000 100000\n'},
    3.0,
    _MACHINE,
  ),
  'v2, a quota without a period': (
    '0::/\n',
    _v2(),
    {'cpu.max': '250000\n'},
    2.5,
    _MACHINE,
  ),
  'v2, SLURM: the limit is that of the job': (
    '0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0\n',
    _v2(),
    {
      'system.slice/memory.max': 'max\n',
      'system.slice/slurmstepd.scope/job_7/memory.max': f'{4 * _GIB}\n',
      'system.slice/slurmstepd.scope/job_7/step_0/memory.max': f'{8 * _GIB}\n',
      'system.slice/slurmstepd.scope/job_7/step_0/user/task_0/memory.max': 'max\n',
    },
    math.inf,
    4 * _GIB,
  ),
  'v2, systemd: each slice has a quota': (
    '0::/user.slice/user-7.slice/run.scope\n',
    _v2(),
    {
      'user.slice/cpu.max': '800000 100000\n',
      'user.slice/user-7.slice/cpu.max': '20000 10000\n',
      'user.slice/user-7.slice/run.scope/cpu.max': '400000 100000\n',
      'user.slice/user-8.slice/cpu.max': '1000 100000\n',  # of another user
    },
    2.0,
    _MACHINE,
  ),
  'v2, the path of another namespace': (
    '0::/../../other\n',
    _v2(),
    {'cpu.max': '200000 100000\n', 'memory.max': f'{_GIB}\n'},
    2.0,
    _GIB,
  ),
  'v2, the group is gone': (
    '0::/slice/run.scope (deleted)\n',
    _v2(),
    {'slice/cpu.max': '200000 100000\n'},
    2.0,
    _MACHINE,
  ),
  'v1, no limits': (
    _V1_CGROUP.format('/'),
    _v1(),
    {
      'cpu,cpuacct/cpu.cfs_quota_us': '-1\n',
      'cpu,cpuacct/cpu.cfs_period_us': '100000\n',
      'memory/memory.limit_in_bytes': f'{_NO_LIMIT}\n',
    },
    math.inf,
    _MACHINE,
  ),
  'v1, docker': (
    _V1_CGROUP.format('/docker/1f'),
    _v1('/docker/1f'),
    {
      'cpu,cpuacct/cpu.cfs_quota_us': '50000\n',
      'cpu,cpuacct/cpu.cfs_period_us': '100000\n',
      'memory/memory.limit_in_bytes': f'{_GIB}\n',
    },
    0.5,
    _GIB,
  ),
  'v1, nested': (
    _V1_CGROUP.format('/slurm/uid_7/job_1/step_0'),
    _v1(),
    {
      'cpu,cpuacct/slurm/uid_7/job_1/step_0/cpu.cfs_quota_us': '-1\n',
      'cpu,cpuacct/slurm/uid_7/job_1/step_0/cpu.cfs_period_us': '100000\n',
      'cpu,cpuacct/slurm/uid_7/cpu.cfs_quota_us': '600000\n',
      'cpu,cpuacct/slurm/uid_7/cpu.cfs_period_us': '200000\n',
      'memory/slurm/uid_7/job_1/step_0/memory.limit_in_bytes': f'{_NO_LIMIT}\n',
      'memory/slurm/uid_7/job_1/memory.limit_in_bytes': f'{2 * _GIB}\n',
      'memory/slurm/memory.limit_in_bytes': f'{9 * _GIB}\n',
    },
    3.0,
    2 * _GIB,
  ),
  'v1 and v2 at once': (
    _V1_CGROUP.format('/a') + '0::/b\n',
    _v1() + '38 31 0:40 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n',
    {
      'memory/a/memory.limit_in_bytes': f'{4 * _GIB}\n',
      'unified/b/memory.max': f'{3 * _GIB}\n',
      'unified/b/cpu.max': '200000 100000\n',
    },
    2.0,
    3 * _GIB,
  ),
  'what makes no sense': (
    'nonsense\n0::/\n',
    'nonsense - cgroup2\n' + _v2(),
    {'cpu.max': '\n', 'memory.max': 'some\n'},
    math.inf,
    _MACHINE,
  ),
  'a quota of nothing and a period of nothing': (
    '0::/a\n',
    _v2(),
    {'cpu.max': '0 100000\n', 'a/cpu.max': '100000 0\n', 'memory.max': '-1\n'},
    math.inf,
    _MACHINE,
  ),
  'more than the machine has': (
    '0::/\n',
    _v2(),
    {'memory.max': f'{2 * _MACHINE}\n'},
    math.inf,
    _MACHINE,
  ),
}


@pytest.mark.parametrize(
  ('cgroup', 'mountinfo', 'files', 'quota', 'memory'), _TREES.values(), ids=_TREES
)
def test_smallest_limit_on_the_path_counts(
  make_tree, cgroup, mountinfo, files, quota, memory
):
  root = make_tree(cgroup, mountinfo, files)
  assert machine.cpu_quota(root) == quota
  assert machine.memory_limit(root) == memory


def test_folders_with_spaces_are_found(make_tree):
  mountinfo = _v2().replace(' / /sys/fs/cgroup', r' /a\040b /sys/fs/cgroup/the\040one')
  root = make_tree('0::/a b/c\n', mountinfo, {'the one/c/memory.max': f'{_MIB}\n'})
  assert machine.memory_limit(root) == _MIB


def test_unreadable_files_are_no_limit(make_tree):
  root = make_tree('0::/a\n', _v2(), {'memory.max': f'{_GIB}\n'})
  (root / 'sys/fs/cgroup/a/memory.max').mkdir(parents=True)
  assert machine.memory_limit(root) == _GIB
  for name in ('proc/self/mountinfo', 'proc/self/cgroup', 'proc/meminfo'):
    (root / name).unlink()
    (root / name).mkdir()
    assert machine.memory_limit(root) > _GIB
    assert machine.num_cores(root) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
  ('quota', 'num_cores'),
  [(1, 1), (50_000, 1), (100_000, 1), (100_001, 2), (200_000, 2), (10**12, math.inf)],
)
def test_cores_are_the_quota_rounded_up_within_the_affinity(
  make_tree, quota, num_cores
):
  root = make_tree('0::/\n', _v2(), {'cpu.max': f'{quota} 100000\n'})
  assert machine.num_cores(root) == min(len(os.sched_getaffinity(0)), num_cores)


def test_affinity_counts():
  code = (
    'import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n'
    'from r2d2_acme.system import machine; print(machine.num_cores())'
  )
  ended = subprocess.run([sys.executable, '-c', code], capture_output=True, check=True)
  assert ended.stdout == b'1\n'


def test_this_machine_is_seen_as_it_is():
  total = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  assert 0 < machine.memory_limit() <= total
  assert 1 <= machine.num_cores() <= len(os.sched_getaffinity(0))
  # Reads the limits of the control groups in another way from the same files.
  groups = [
    line.split(':', 2) for line in pathlib.Path('/proc/self/cgroup').open().readlines()
  ]
  for _, controllers, path in groups:
    name = 'memory.max' if not controllers else 'memory.limit_in_bytes'
    for mount in ('', controllers, 'unified'):
      file = pathlib.Path('/sys/fs/cgroup', mount, path.strip().lstrip('/'), name)
      if file.exists() and (text := file.read_text().strip()) != 'max':
        assert machine.memory_limit() <= int(text)
