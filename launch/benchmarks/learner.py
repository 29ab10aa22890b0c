"""The learner step on a batch held in memory, against the machine's matmul peak."""

import dataclasses
import statistics
import time
from collections.abc import Callable

import tensorflow as tf
from acme import specs

from benchmarks import acme_parts, our_parts
from benchmarks.measuring import Side, alternate
from benchmarks.report import ACME, ACME_OWN, LIMIT, OURS, Comparison
from r2d2_acme import config as config_lib
from r2d2_acme.config import R2D2Config
from r2d2_acme.observations import kinds
from r2d2_acme.system import machine, runtime

_BATCH_SIZES = (16, 64)
_MATMUL_SIZES = (2048, 3072, 4096)
_BFLOAT16 = 'ours, torso_dtype=auto'  # where that is something else
_OWN_ROUNDS = 2  # at most, of Acme's own network: it takes five to ten seconds a step
# Three convolutions: kernel, stride (Mnih et al. 2015).
_CONVOLUTIONS = ((8, 4), (4, 2), (3, 1))


def run(rounds: int) -> list[Comparison]:
  """Seconds a step, and of the same useful FLOPs at the peak."""
  return [_compare(batch_size, rounds) for batch_size in _BATCH_SIZES]


def _compare(batch_size: int, rounds: int) -> Comparison:
  config = dataclasses.replace(config_lib.paper(), batch_size=batch_size)
  case = f'paper network, B = {batch_size}, 40 + 80'
  own_rounds = min(rounds, _OWN_ROUNDS)
  sides = {
    LIMIT: Side(matmul_peak),
    OURS: Side(our_parts.learn, (config,)),
    ACME: Side(acme_parts.learn, (config,)),
    ACME_OWN: Side(acme_parts.learn, (config, True), max_rounds=own_rounds),
  }
  if runtime.multiplies_bfloat16():
    fast = dataclasses.replace(config, torso_dtype='auto')
    sides[_BFLOAT16] = Side(our_parts.learn, (fast,))
  samples = alternate(case, sides, rounds)
  flops = count_flops(config, our_parts.environment_spec())
  peaks = samples[LIMIT]
  note = (
    f'limit: {flops / 1e9:,.0f} useful GFLOP at the float32 matmul peak, '
    f'{statistics.median(peaks) / 1e9:,.0f} GFLOP/s; '
    f'{own_rounds} rounds of "{ACME_OWN}"'
  )
  return Comparison(
    case,
    's/step',
    {**samples, LIMIT: [flops / peak for peak in peaks]},
    goal='>= 0.75 x limit, >= 1.25 x Acme, >= 4 x its own network',
    note=note,
  )


def matmul_peak() -> Callable[[], float]:
  """Side: FLOP/s of the fastest of several large float32 matmuls, on all cores."""
  runtime.limit_threads(machine.num_cores())
  matrices = [tf.random.normal([size, size]) for size in _MATMUL_SIZES]
  multiply = tf.function(lambda x: tf.reduce_sum(tf.matmul(x, x)[0, :1]))

  def flops_per_second(x: tf.Tensor) -> float:
    start = time.monotonic()
    multiply(x).numpy()
    return 2 * x.shape[0] ** 3 / (time.monotonic() - start)

  def measure() -> float:
    return max(flops_per_second(x) for x in matrices)

  measure()
  return measure


def count_flops(config: R2D2Config, spec: specs.EnvironmentSpec) -> float:
  """The useful floating-point operations of one learner step on images.

  Two networks burn in (torso and LSTM); two unroll the trace and its bootstrap row,
  with the head; the online one's gradient costs twice its forward pass, less that
  with respect to the pixels. A multiplication and an addition are two; what is not a
  matmul or a convolution is not counted.
  """
  first_convolution, torso, core, head = _forward_flops(config, spec)
  context = 2 * (torso + core)
  trace = 2 * (torso + core + head)
  gradient = 2 * (torso + core + head) - first_convolution
  rows = config.trace_length + 1
  return config.batch_size * (
    config.burn_in_length * context + rows * (trace + gradient)
  )


def _forward_flops(config: R2D2Config, spec: specs.EnvironmentSpec):
  """Of one row: the first convolution, the torso (with it), the LSTM, the head."""
  height, width, channels = kinds.make(spec.observations, config).input_spec.shape
  convolutions = []
  for (kernel, stride), outputs in zip(
    _CONVOLUTIONS, config.conv_channels, strict=True
  ):
    height, width = ((size - kernel) // stride + 1 for size in (height, width))
    convolutions.append(2 * height * width * outputs * kernel**2 * channels)
    channels = outputs
  torso = sum(convolutions) + 2 * height * width * channels * config.torso_size
  num_actions = spec.actions.num_values
  inputs = config.torso_size + num_actions + 1 + config.core_size
  core = 2 * inputs * 4 * config.core_size
  streams = 2 * config.core_size + 1 + num_actions
  return convolutions[0], torso, core, 2 * config.head_size * streams
