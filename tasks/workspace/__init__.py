"""The folder in which a pipeline runs: its state, its locks, its terminal."""
