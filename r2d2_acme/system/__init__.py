"""This machine and its processes: cores, memory, signals, how a process ends."""
