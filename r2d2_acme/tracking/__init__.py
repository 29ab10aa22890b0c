"""Sends what a run writes to a tracker, such as wandb, from a process of its own."""

# Trackers by the value of `--track`, with what pip installs for them; see setup.py.
KINDS = {
  'mlflow': ('mlflow-skinny==3.17.2', 'databricks-sdk==0.50.0'),
  'wandb': ('wandb==0.25.0',),
}
