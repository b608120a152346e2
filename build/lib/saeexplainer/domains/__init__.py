"""Where texts come from, and what is true of their words."""
