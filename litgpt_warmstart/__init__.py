"""Start a large language model from a small one: arXiv 2411.07340 on LitGPT."""

__version__ = "0.2.0.dev0"
