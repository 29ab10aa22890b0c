"""`runtime.py`: what it finds out about the machine."""

import os
import subprocess
import sys

import pytest

from r2d2_acme import runtime


@pytest.mark.parametrize('flags', ['flags\t\t: fpu avx2 avx512f', 'Features\t: asimd'])
def test_a_cpu_without_the_flag_does_not_multiply_bfloat16(tmp_path, flags):
  path = tmp_path / 'cpuinfo'
  path.write_text(f'processor\t: 0\nmodel name\t: avx512_bf16\n{flags}\n\n')
  assert runtime.multiplies_bfloat16(str(path)) is False


@pytest.mark.parametrize('onednn', ['0', '1'])
def test_bfloat16_needs_the_flag_and_onednn(onednn):
  code = 'from r2d2_acme import runtime; print(runtime.multiplies_bfloat16())'
  ended = subprocess.run(
    [sys.executable, '-c', code],
    env={
      **os.environ,
      'TF_ENABLE_ONEDNN_OPTS': onednn,
      'CUDA_VISIBLE_DEVICES': '-1',
    },
    capture_output=True,
    text=True,
    check=True,
  )
  with open('/proc/cpuinfo') as file:
    has_flag = 'avx512_bf16' in file.read()
  assert ended.stdout.split() == [str(has_flag and onednn == '1')]
