"""Feature records in the forms that other tools read."""
