"""Open-loop labels, which supervised fine-tuning learns from."""
