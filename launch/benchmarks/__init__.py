"""The parts of `launch/benchmark.py`: ours, Acme's and the machine's limit.

`measuring` runs sides in turn, `report` prints them; `our_parts` and `acme_parts` make
the same things of each; every other module is one part, with `run(rounds)`.
"""
