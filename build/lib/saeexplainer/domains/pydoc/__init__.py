"""The documentation of the standard library."""
