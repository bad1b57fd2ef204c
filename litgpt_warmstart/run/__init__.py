"""One training run, from its arguments to its folder."""
