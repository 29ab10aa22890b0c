"""Types of command-line arguments."""

import argparse


def positive_int(text: str) -> int:
  """Parses a count; an `ArgumentTypeError` says what is wrong with it."""
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError('must be a number, at least 1')
  return int(text)
