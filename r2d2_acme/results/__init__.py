"""What one looks at after or during training: evaluations, curves, videos, scores."""
