"""Slow and obvious versions of the arithmetic of `losses.py` and `delta_q.py`.

Plain float64 loops over NumPy arrays, written from the equations of Kapturowski et al.
2019, Pohlen et al. 2018 and Schaul et al. 2016; time-major, with the same meaning of
each argument as in `losses.py`. Masks are handled by never looking at padding, not by
replacing it.
"""

import decimal
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# The textbook forms of h and h^-1 cancel near 0; with 60 digits that does not matter.
_CONTEXT = decimal.Context(prec=60)


def signed_hyperbolic(x, epsilon: float = 1e-3) -> np.ndarray:
  """h(x) = sign(x) (sqrt(|x| + 1) - 1) + epsilon x, elementwise."""

  def transform(value):
    with decimal.localcontext(_CONTEXT):
      size = abs(decimal.Decimal(float(value)))
      result = (size + 1).sqrt() - 1 + decimal.Decimal(epsilon) * size
      return float(result if value >= 0 else -result)

  return _elementwise(transform, x)


def signed_parabolic(x, epsilon: float = 1e-3) -> np.ndarray:
  """h^-1(x) = sign(x) (((sqrt(1 + 4 e (|x| + 1 + e)) - 1) / (2 e))^2 - 1)."""

  def transform(value):
    with decimal.localcontext(_CONTEXT):
      size, e = abs(decimal.Decimal(float(value))), decimal.Decimal(epsilon)
      root = (1 + 4 * e * (size + 1 + e)).sqrt()
      result = ((root - 1) / (2 * e)) ** 2 - 1
      return float(result if value >= 0 else -result)

  return _elementwise(transform, x)


def _elementwise(transform, x):
  x = np.asarray(x, np.float64)
  return np.array([transform(value) for value in x.ravel()]).reshape(x.shape)


def n_step_return(
  rewards: Sequence[float],
  discounts: Sequence[float],
  values: Sequence[float],
  n_step: int,
) -> float:
  """Return of the first transition; `values[k]` is of the state that k leads to."""
  total, weight = 0.0, 1.0
  num_used = min(n_step, len(rewards))
  for k in range(num_used):
    total += weight * rewards[k]
    if discounts[k] == 0:  # The episode is over.
      return total
    weight *= discounts[k]
  return total + weight * values[num_used - 1]


def n_step_bootstrapped_returns(rewards, discounts, values, n_step) -> np.ndarray:
  num_steps, batch_size = rewards.shape
  returns = np.zeros([num_steps, batch_size])
  for b in range(batch_size):
    for t in range(num_steps):
      returns[t, b] = n_step_return(
        rewards[t:, b], discounts[t:, b], values[t:, b], n_step
      )
  return returns


def double_q_td_errors(
  q: np.ndarray,
  target_q: np.ndarray,
  actions: np.ndarray,
  rewards: np.ndarray,
  discounts: np.ndarray,
  n_step: int,
  epsilon: float | None = 1e-3,
  mask: np.ndarray | None = None,
) -> np.ndarray:
  """delta_t = y_t - Q(s_t, a_t), and 0 where `mask` says padding.

  Looks at the first `mask[:, b].sum()` transitions of each column and at no others.
  """

  def h(x):
    return x if epsilon is None else float(signed_hyperbolic(x, epsilon))

  def h_inverse(x):
    return x if epsilon is None else float(signed_parabolic(x, epsilon))

  num_steps, batch_size = rewards.shape
  errors = np.zeros([num_steps, batch_size])
  for b in range(batch_size):
    length = num_steps if mask is None else int(mask[:, b].sum())
    values = []  # Of s_1 ... s_length, not rescaled.
    for t in range(1, length + 1):
      online, target = list(q[t, b]), list(target_q[t, b])
      best_action = online.index(max(online))
      values.append(h_inverse(target[best_action]))
    for t in range(length):
      target = n_step_return(
        rewards[t:length, b], discounts[t:length, b], values[t:], n_step
      )
      errors[t, b] = h(target) - q[t, b, actions[t, b]]
  return errors


def sequence_priorities(td_errors, mask, eta: float) -> np.ndarray:
  priorities = []
  for b in range(td_errors.shape[1]):
    sizes = [abs(td_errors[t, b]) for t in range(td_errors.shape[0]) if mask[t, b]]
    if sizes:
      priorities.append(eta * max(sizes) + (1 - eta) * sum(sizes) / len(sizes))
    else:
      priorities.append(0.0)
  return np.array(priorities)


def importance_weights(probabilities, table_size, exponent: float) -> np.ndarray:
  sizes = np.broadcast_to(table_size, np.shape(probabilities))
  weights = [
    (float(n) * float(p)) ** -exponent if p > 0 else 0.0
    for n, p in zip(sizes, probabilities, strict=True)
  ]
  largest = max(weights)
  return np.array([w / largest if largest else 0.0 for w in weights])


def r2d2_loss(td_errors, mask, weights) -> float:
  total = 0.0
  for b in range(td_errors.shape[1]):
    for t in range(td_errors.shape[0]):
      if mask[t, b]:
        total += weights[b] * 0.5 * td_errors[t, b] ** 2
  return total / td_errors.shape[1]


def delta_q(q: np.ndarray, stored_q: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
  """Delta-Q [2, B] of windows of `lengths` transitions; section 3 of the paper."""
  result = np.zeros([2, len(lengths)])
  for b, length in enumerate(lengths):
    values = [float(x) for row in q[: length + 1, b] for x in row]
    for end, row in enumerate((0, length)):
      square = 0.0
      for x, y in zip(q[row, b], stored_q[end, b], strict=True):
        square += (float(x) - float(y)) ** 2
      result[end, b] = square**0.5 / max(abs(max(values)), 1e-3)
  return result


class Steps(NamedTuple):
  """One column of a batch: `states` has one entry more than the others."""

  states: np.ndarray
  actions: np.ndarray
  rewards: np.ndarray
  discounts: np.ndarray


class Chain:
  """A deterministic chain with known optimal values.

  In state s, action a leads to s + 1 + a; past the last state the episode terminates.
  Because it is deterministic, Q = h(Q*) is the fixed point of the rescaled Bellman
  operator: along a greedy path every n-step error is 0.
  """

  def __init__(self, num_states: int = 9, num_actions: int = 3, gamma: float = 0.9):
    rng = np.random.RandomState(0)
    self.num_states, self.num_actions, self.gamma = num_states, num_actions, gamma
    self.rewards = rng.uniform(-30, 100, [num_states, num_actions])
    q = np.zeros([num_states, num_actions])
    for state in reversed(range(num_states)):
      for action in range(num_actions):
        next_state = state + 1 + action
        q[state, action] = self.rewards[state, action]
        if next_state < num_states:
          q[state, action] += gamma * q[next_state].max()
    self.q = q  # In units of reward; [num_states, num_actions].

  def walk(self, state: int, action: int, length: int) -> Steps:
    """Takes `action`, then greedy ones; a new episode starts in 0 after each end."""
    states, actions, rewards, discounts = [state], [], [], []
    for _ in range(length):
      actions.append(action)
      rewards.append(self.rewards[state, action])
      state += 1 + action
      discounts.append(self.gamma if state < self.num_states else 0.0)
      state = state if state < self.num_states else 0
      states.append(state)
      action = int(np.argmax(self.q[state]))
    return Steps(
      np.array(states),
      np.array(actions, np.int32),
      np.array(rewards),
      np.array(discounts),
    )
