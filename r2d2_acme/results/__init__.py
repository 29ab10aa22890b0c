"""What one looks at afterwards: evaluations, curves, videos, scores."""
