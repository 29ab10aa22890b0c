"""The priority that an actor gives to a new window, by the learner's arithmetic."""

from collections.abc import Callable

import tensorflow as tf

from r2d2_acme import calls
from r2d2_acme.config import R2D2Config
from r2d2_acme.learning import losses


def make_priority_fn(config: R2D2Config) -> Callable[..., float]:
  """Builds the function that gives a new window its priority.

  It applies the learner's arithmetic to the Q-values that the actor computed anyway,
  and takes them for those of both networks. (Kapturowski et al. 2019, section 2.3,
  does not say which Q-values the actor uses.) Without `actor_priorities` the priority
  of each new window is 1.

  Returns:
    A function of a window's trained part: Q-values float32 [T + 1, A], actions int32
    [T], rewards, discounts and mask float32 [T]. It returns a float.
  """
  if not config.actor_priorities:
    return lambda *_: 1.0
  length = config.trace_length

  def priority(q, actions, rewards, discounts, mask):
    q, actions, rewards, discounts, mask = (
      tf.expand_dims(x, 1) for x in (q, actions, rewards, discounts, mask)
    )  # B = 1
    td_errors = losses.window_td_errors(
      q,
      q,
      actions=actions,
      rewards=rewards,
      discounts=discounts,
      mask=mask,
      gamma=config.discount,
      n_step=config.n_step,
      epsilon=config.rescaling_epsilon,
    )
    return [losses.sequence_priorities(td_errors, mask, config.priority_eta)[0]]

  function = calls.Traced(
    priority,
    tf.TensorSpec([length + 1, None], tf.float32),
    tf.TensorSpec([length], tf.int32),
    *[tf.TensorSpec([length], tf.float32)] * 3,
  )
  return lambda *args: float(function(*args)[0])
