"""From batches to a loss, and from it to parameters and priorities."""
