"""The one place that chooses the kind of an environment's observations.

A new kind of observation is a subclass of `base.Kind` in a file of its own, which is
added to `_KINDS` here, and whose specs `layouts` lets through.
"""

from typing import Any

from acme import specs

from r2d2_acme.config import R2D2Config
from r2d2_acme.observations import layouts
from r2d2_acme.observations.base import Kind
from r2d2_acme.observations.grids import Grids
from r2d2_acme.observations.images import Images
from r2d2_acme.observations.nested import Nested
from r2d2_acme.observations.one_hots import OneHots
from r2d2_acme.observations.vectors import Vectors

_KINDS: tuple[type[Kind], ...] = (Images, Grids, OneHots, Vectors)


def make(observation_spec: Any, config: R2D2Config) -> Kind:
  """Returns the kind that a spec of single observations, perhaps a nest, is of.

  Raises:
    ValueError: no kind fits; one line that says why and what to do.
  """
  layouts.check_observations(observation_spec)
  if not Nested.fits(observation_spec):
    return _make_leaf(observation_spec, config)
  return Nested(observation_spec, lambda spec: _make_leaf(spec, config), config)


def _make_leaf(spec: specs.Array, config: R2D2Config) -> Kind:
  (kind,) = (kind for kind in _KINDS if kind.fits(spec))
  return kind(spec, config)
