"""Models behind a server: calls, replies and what they cost."""
