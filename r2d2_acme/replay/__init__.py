"""From steps to windows and from windows to batches; priorities come back."""
