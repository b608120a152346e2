"""Hypotheses about the surface of words, for any text, and the language that describes them."""
