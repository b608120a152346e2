"""Rewards, and the pairs that are built from them."""
