"""The subject, the warm-up and DPO."""
