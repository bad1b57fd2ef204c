"""Text to tokens in chunks, behind one function."""
