"""What the agent sees: all that acting, replay and learning must know about it."""
