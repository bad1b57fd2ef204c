"""Studies: each a list of runs as data, carried out by runner.py; none imports another."""
