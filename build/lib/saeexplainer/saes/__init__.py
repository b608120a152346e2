"""Sparse autoencoders: where they sit, what they say, how well they fit."""
