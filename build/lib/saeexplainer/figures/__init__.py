"""From rows of measurements to figures with intervals."""
