"""What a run took, and what one will take."""
