"""How much a text is about an explanation."""
