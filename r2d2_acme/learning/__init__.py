"""From batches to a loss, and from there to parameters and priorities."""
