"""From steps to windows, from windows to batches, and priorities back."""
