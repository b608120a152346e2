"""Causal language models of any family."""
