"""What Great Expectations asks of a preference set."""
