"""From an explanation to texts."""
