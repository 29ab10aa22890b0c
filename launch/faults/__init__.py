"""What `chaos.py` does to a program, and what must hold nevertheless."""
