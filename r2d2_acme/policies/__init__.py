"""Trained policies for other programs: in Python, and as a TensorFlow SavedModel."""
