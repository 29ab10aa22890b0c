"""From steps to actions: the policy, exploration and the loop."""
