"""Open-loop labels, which the warm-up learns from."""
