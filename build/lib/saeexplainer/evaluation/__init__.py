"""One row of measurements a feature, and the means of comparing explanations."""
