"""Observations that are dicts and tuples, nested: each leaf is of a kind of its own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import sonnet as snt
import tensorflow as tf
from acme import specs

from r2d2_acme.config import R2D2Config
from r2d2_acme.observations import layouts
from r2d2_acme.observations.base import Kind


class Nested(Kind):
  """A nest of observations; what is made of it is a tuple with a part for each leaf.

  The leaves are in the order of `layouts.numeric_leaves`. The mask of valid actions is
  one of them, and the only one that the torso does not see.
  """

  def __init__(
    self, spec: Any, make_kind: Callable[[specs.Array], Kind], config: R2D2Config
  ):
    """Constructs the kind; `make_kind` makes that of a leaf's spec."""
    leaves = layouts.numeric_leaves(spec)
    kinds = [make_kind(leaf.value) for leaf in leaves]
    self._spec = spec
    self._paths = [leaf.path for leaf in leaves]
    self._kinds = kinds
    self._config = config
    self.frame_spec = layouts.rebuild(spec, {x.path: x.value for x in leaves})
    self.input_spec = tuple(kind.input_spec for kind in kinds)
    self.block_length = kinds[0].block_length  # all have the same
    if (layouts.ACTION_MASK,) in self._paths:
      self.action_mask = self._paths.index((layouts.ACTION_MASK,))
    self._seen = {i: k for i, k in enumerate(kinds) if i != self.action_mask}

  @classmethod
  def fits(cls, frame_spec: Any) -> bool:
    return layouts.is_nest(frame_spec)

  def flatten(self, observation: Any) -> Sequence[np.ndarray]:
    return [layouts.get(observation, path) for path in self._paths]

  def make_inputs(self, num_envs: int) -> Any:
    return tuple(kind.make_inputs(num_envs) for kind in self._kinds)

  def push_frames(self, inputs: Any, frames: Sequence[Any], is_first: Sequence[bool]):
    for kind, path, part in zip(self._kinds, self._paths, inputs, strict=True):
      kind.push_frames(part, [layouts.get(x, path) for x in frames], is_first)

  def next_inputs(self, inputs: Any, frames: Any) -> Any:
    return tuple(
      kind.next_inputs(part, layouts.get(frames, path))
      for kind, path, part in zip(self._kinds, self._paths, inputs, strict=True)
    )

  @property
  def torso_inputs(self) -> int:
    joined = self._config.torso_size * len(self._seen) if len(self._seen) > 1 else 0
    return joined + sum(kind.torso_inputs for kind in self._seen.values())

  @property
  def stored_spec(self) -> Any:
    return tuple(kind.stored_spec for kind in self._kinds)

  @property
  def stored_bytes(self) -> float:
    return sum(kind.stored_bytes for kind in self._kinds)

  def rebuild_inputs(self, stored: Any) -> Any:
    return tuple(
      kind.rebuild_inputs(part) for kind, part in zip(self._kinds, stored, strict=True)
    )

  def adapt_torso(self, make_torso: Callable[[Any], snt.Module]) -> snt.Module:
    def nest(parts: Sequence[Any]) -> Any:
      seen = {self._paths[i]: parts[i] for i in self._seen}
      return layouts.rebuild(self._spec, seen)

    return NestTorso(make_torso(nest(self.input_spec)), nest)

  def make_torso(self, dtype: tf.DType) -> snt.Module:
    torsos = {i: kind.make_torso(dtype) for i, kind in self._seen.items()}
    return JoinedTorso(torsos, self._config.torso_size)


class NestTorso(snt.Module):
  """A module that takes a nest as the environment has it, without texts and mask."""

  def __init__(
    self,
    torso: snt.Module,
    nest: Callable[[Sequence[Any]], Any],
    name: str | None = None,
  ):
    """Constructs the torso from one that takes what `nest` makes of a tuple."""
    super().__init__(name=name)
    self._torso = torso
    self._nest = nest

  def __call__(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
    """Turns a tuple of inputs [N, ...] into what the module makes of them."""
    return self._torso(self._nest(inputs))


class JoinedTorso(snt.Module):
  """A torso for each leaf, and a linear layer and a ReLU that join their features."""

  def __init__(
    self, torsos: Mapping[int, snt.Module], size: int, name: str | None = None
  ):
    """Constructs the torso.

    Args:
      torsos: by the leaf's place in a tuple of inputs. One alone needs no joining.
      size: the number of features.
      name: of the module.
    """
    super().__init__(name=name)
    self._places = tuple(torsos)
    self._torsos = list(torsos.values())
    self._linear = snt.Linear(size) if len(torsos) > 1 else None

  def __call__(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
    """Turns a tuple of inputs [N, ...] into features, float32 [N, size]."""
    features = [torso(inputs[self._places[i]]) for i, torso in enumerate(self._torsos)]
    if self._linear is None:
      return features[0]
    return tf.nn.relu(self._linear(tf.concat(features, axis=-1)))
