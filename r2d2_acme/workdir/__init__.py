"""The contents of a workdir: checkpoints, logs, the description, the lock."""
