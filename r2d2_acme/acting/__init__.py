"""From observations to actions, Q-values and recurrent states."""
