"""Texts of the user's own, of files or of the hub."""
