"""Names and messages in markdown, for the flows: they see the library through tasks alone."""

from saeexplainer.figures.notation import literal

__all__ = ["literal"]
