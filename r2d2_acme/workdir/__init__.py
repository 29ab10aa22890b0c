"""What a run keeps in its workdir: checkpoints, logs, the config, the lock."""
