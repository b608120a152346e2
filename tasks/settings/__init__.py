"""From conf/ to checked parameters."""
