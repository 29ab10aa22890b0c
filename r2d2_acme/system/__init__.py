"""The machine and its processes: cores, memory, signals, and how processes end."""
