"""Studies: cases that are trained with several seeds each, and compared."""
