"""What the agent sees: which observations fit, and how they are stacked."""
