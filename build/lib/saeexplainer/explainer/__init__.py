"""The model that reads a feature token and says what the feature means."""
