"""The recurrent Q-network: torso, LSTM, duelling head.

Kapturowski et al. 2019, section 2.3: the convolutions of Mnih et al. 2015, an LSTM
that also sees the previous action and reward, and the duelling head of Wang et al.
2016.
"""

from collections.abc import Callable, Sequence

import numpy as np
import sonnet as snt
import tensorflow as tf
import tree
from acme import specs
from acme.tf import utils as tf_utils

from r2d2_acme import types
from r2d2_acme.config import R2D2Config
from r2d2_acme.learning import lstm
from r2d2_acme.observations import layouts

_UNSCALED = layouts.Scaling(np.zeros((), np.float32), np.ones((), np.float32))
_BYTES = layouts.Scaling(np.zeros((), np.float32), np.full((), 255, np.float32))


class AtariTorso(snt.Module):
  """Three convolutions (Mnih et al. 2015) and a linear layer, ReLU after each."""

  def __init__(
    self,
    channels: Sequence[int],
    size: int,
    normalize: bool = False,
    dtype: tf.DType = tf.float32,
    name: str | None = None,
    *,
    scaling: layouts.Scaling | None = None,
  ):
    """Constructs the torso.

    Args:
      channels: the three convolutions' widths.
      size: the number of features.
      normalize: whether each image is centred on the mean of its pixels, and the
        features are layer-normalised before the last ReLU. Without it a game's
        constant background is most of what each layer sees.
      dtype: of the products inside a `tf.function`; variables, the linear layer's
        bias and features are float32 in any case.
      name: of the module.
      scaling: of the images' numbers; None divides uint8 by 255 and takes others as
        they are.
    """
    super().__init__(name=name)
    self._scaling = scaling
    layers = zip(channels, (8, 4, 3), (4, 2, 1), strict=True)
    self._convolutions = [
      snt.Conv2D(width, kernel, stride, padding='VALID', name=f'conv_{i}')
      for i, (width, kernel, stride) in enumerate(layers, start=1)
    ]
    self._linear = snt.Linear(size)
    self._layer_norm = snt.LayerNorm(-1, True, True) if normalize else None
    self._dtype = dtype

  def __call__(self, images: tf.Tensor) -> tf.Tensor:
    """Numbers [N, H, W, C], scaled, to float32 [N, size].

    Raises:
      ValueError: images are too small, or of integers whose scaling is not known.
    """
    height, width = images.shape[1:3]
    if min(height, width) < layouts.MIN_IMAGE_SIZE:
      raise ValueError(
        f'images of {height}x{width} pixels are too small for the convolutions: resize '
        f'them to at least {layouts.MIN_IMAGE_SIZE}x{layouts.MIN_IMAGE_SIZE}'
      )
    if images.dtype.is_integer and images.dtype != tf.uint8 and self._scaling is None:
      raise ValueError(f'images must be uint8 or float, not {images.dtype.name}')
    default = _BYTES if images.dtype == tf.uint8 else None
    images = _scale(images, self._scaling or default)
    if self._layer_norm is not None:
      images -= tf.reduce_mean(images, axis=[1, 2, 3], keepdims=True)
    # Eagerly, TensorFlow 2.8 takes oneDNN's kernel for the dtype that an op saw first.
    if self._dtype == tf.float32 or not tf.inside_function():
      x = self._multiply(images)
    else:
      x = self._multiply_in_dtype(images)
    if self._layer_norm is not None:
      x = self._layer_norm(x)
    return tf.nn.relu(x)

  def _multiply(self, x: tf.Tensor) -> tf.Tensor:
    for convolution in self._convolutions:
      x = tf.nn.relu(convolution(x))
    return self._linear(snt.flatten(x))

  def _multiply_in_dtype(self, x: tf.Tensor) -> tf.Tensor:
    """The same but for rounding."""
    x = tf.cast(x, self._dtype)
    for convolution in self._convolutions:
      w, b = (tf.cast(v, self._dtype) for v in (convolution.w, convolution.b))
      x = tf.nn.conv2d(x, w, convolution.stride, 'VALID')
      x = tf.nn.relu(tf.nn.bias_add(x, b))
    x = tf.matmul(snt.flatten(x), tf.cast(self._linear.w, self._dtype))
    return tf.cast(x, tf.float32) + self._linear.b


class MLPTorso(snt.Module):
  """A linear layer and a ReLU, for vectors; the depth is in the LSTM and the head."""

  def __init__(
    self,
    size: int,
    name: str | None = None,
    *,
    scaling: layouts.Scaling | None = None,
  ):
    """Constructs the torso; `scaling` None takes the numbers as they are."""
    super().__init__(name=name)
    self._linear = snt.Linear(size)
    self._scaling = scaling

  def __call__(self, vectors: tf.Tensor) -> tf.Tensor:
    """Numbers [N, D], scaled, to float32 [N, size]."""
    return tf.nn.relu(self._linear(_scale(vectors, self._scaling)))


class DuellingHead(snt.Module):
  """Q(s, a) = V(s) + A(s, a) - mean_a A(s, a) (Wang et al. 2016, equation 9).

  V and A have one hidden layer each.
  """

  def __init__(self, num_actions: int, hidden_size: int, name: str | None = None):
    super().__init__(name=name)
    self._value = snt.nets.MLP([hidden_size, 1], name='value')
    self._advantage = snt.nets.MLP([hidden_size, num_actions], name='advantage')

  def __call__(self, features: tf.Tensor) -> tf.Tensor:
    """float32 [N, D] to Q-values [N, A]."""
    advantage = self._advantage(features)  # [N, A]
    mean = tf.reduce_mean(advantage, axis=-1, keepdims=True)  # [N, 1]
    return self._value(features) + advantage - mean


class R2D2Network(snt.RNNCore):
  """Q-values from observations, previous actions, previous rewards and a state.

  `__call__` acts, `unroll` and `burn_in` learn: the same function of the same weights.
  """

  def __init__(
    self,
    num_actions: int,
    torso: snt.Module,
    core_size: int,
    head_size: int,
    recurrent: bool = True,
    name: str = 'r2d2_network',
  ):
    """Constructs the network.

    Args:
      num_actions: A.
      torso: from observations [N, ...] to float32 [N, D].
      core_size: LSTM units.
      head_size: hidden units of each stream of the duelling head.
      recurrent: or the memoryless baseline, see `lstm.MemorylessLSTM`.
      name: of the module.
    """
    super().__init__(name=name)
    self._num_actions = num_actions
    self._torso = torso
    make_core = lstm.LSTM if recurrent else lstm.MemorylessLSTM
    self._core = make_core(core_size)
    self._head = DuellingHead(num_actions, head_size)

  def __call__(
    self, observation: types.Observation, core_state: snt.LSTMState
  ) -> tuple[tf.Tensor, snt.LSTMState]:
    """One step: leading axis [B] to Q-values, float32 [B, A], and the next state."""
    output, next_state = self._core(self.features(observation), core_state)
    return self._head(output), next_state

  def unroll(
    self,
    observations: types.Observation,
    core_state: snt.LSTMState,
    keep: tf.Tensor | None = None,
  ) -> tuple[tf.Tensor, snt.LSTMState]:
    """A sequence: equals T calls, with torso and head applied once to [T x B].

    Args:
      observations: leading axes [T, B].
      core_state: before the first step.
      keep: float32 [T, B] or None; 0 restores the initial state after that step (see
        `lstm.LSTM.unroll`).

    Returns:
      Q-values, float32 [T, B, A], and the state after the last step.
    """
    features = _batch_apply(self.features, observations)  # [T, B, D + A + 1]
    outputs, final_state = self._core.unroll(features, core_state, keep)
    return _batch_apply(self._head, outputs), final_state

  def burn_in(
    self,
    observations: types.Observation,
    core_state: snt.LSTMState,
    keep: tf.Tensor | None = None,
  ) -> snt.LSTMState:
    """The state that `unroll` ends in, without the Q-values."""
    features = _batch_apply(self.features, observations)  # [T, B, D + A + 1]
    return self._core.unroll(features, core_state, keep)[1]

  def features(self, observation: types.Observation) -> tf.Tensor:
    """The LSTM's input, float32 [N, D + A + 1]: torso, previous action and reward.

    The paper does not say how the reward enters. As in Acme it goes through tanh:
    unclipped Atari rewards reach thousands and would saturate the gates.
    """
    action = tf.one_hot(observation.action, self._num_actions)  # [N, A]
    reward = tf.tanh(observation.reward)[:, tf.newaxis]  # [N, 1]
    return tf.concat([self._torso(observation.observation), action, reward], axis=-1)

  def initial_state(self, batch_size: int) -> snt.LSTMState:
    """Zeros, [B, H] each."""
    return self._core.initial_state(batch_size)


def make_network(
  config: R2D2Config,
  environment_spec: specs.EnvironmentSpec,
  torso_dtype: tf.DType = tf.float32,
) -> R2D2Network:
  """Builds the network that fits an environment, variables included.

  Initialisation is reproducible given `tf.random.set_seed`.

  Args:
    config: sizes, and the number of frames in an image's stack.
    environment_spec: discrete actions; a single frame [H, W, C] or a vector [D]. Its
      bounds scale images and integers to 0 … 1, see `layouts.scaling`.
    torso_dtype: of the products in the torso for images, see `AtariTorso`.

  Raises:
    ValueError: no network here fits the environment.
  """
  observations, actions = environment_spec.observations, environment_spec.actions
  layouts.check(observations, actions, environment_spec.rewards)
  num_frames = layouts.num_stacked(config, observations)
  scaling = _stack(layouts.scaling(observations), num_frames)
  if layouts.is_image(observations):
    torso = AtariTorso(
      config.conv_channels,
      config.torso_size,
      config.normalize_images,
      torso_dtype,
      scaling=scaling,
    )
  else:
    torso = MLPTorso(config.torso_size, scaling=scaling)
  network = R2D2Network(
    actions.num_values, torso, config.core_size, config.head_size, config.recurrent
  )
  *shape, channels = observations.shape
  inputs = types.Observation(
    observation=specs.Array([*shape, channels * num_frames], observations.dtype),
    action=specs.Array([], np.int32),
    reward=specs.Array([], np.float32),
  )
  tf_utils.create_variables(network, [inputs])
  return network


def _stack(scaling: layouts.Scaling | None, num: int) -> layouts.Scaling | None:
  """Returns the scaling of a stack of `num` frames from that of one of them."""
  if scaling is None:
    return None
  return layouts.Scaling(*(np.tile(x, num) if x.ndim else x for x in scaling))


def _scale(x: tf.Tensor, scaling: layouts.Scaling | None) -> tf.Tensor:
  """Numbers [N, ...] to float32, scaled."""
  minimum, span = scaling or _UNSCALED
  is_offset, is_scaled = np.any(minimum), np.any(span != 1)
  if x.dtype == tf.uint8:
    if not is_offset and np.all(span == 255):
      return _dequantize(x, 1.0)
    x = _dequantize(x, 255.0)
  x = tf.cast(x, tf.float32)
  if is_offset:
    x -= minimum
  return x / span if is_scaled else x


def _dequantize(x: tf.Tensor, maximum: float) -> tf.Tensor:
  """uint8 [N, ...] to float32 in 0 … `maximum`, which 255 becomes."""
  if tf.config.list_logical_devices('GPU'):
    return tf.cast(x, tf.float32) / (255.0 / maximum)
  # The same, but for the last bit, in a quarter of the time: TensorFlow's cast is not
  # vectorised on a CPU. It has no GPU kernel.
  return tf.quantization.dequantize(
    tf.bitcast(x, tf.quint8), 0.0, maximum, mode='SCALED'
  )


def _batch_apply(function: Callable[..., tf.Tensor], inputs):
  """Applies to [T x B, ...] a function of [N, ...]: [T, B, ...] in and out.

  `snt.BatchApply` does the same, but is a module: AutoGraph spends seconds on it.
  """
  merged = tree.map_structure(lambda x: snt.merge_leading_dims(x, 2), inputs)
  return snt.split_leading_dim(function(merged), tree.flatten(inputs)[0], 2)
