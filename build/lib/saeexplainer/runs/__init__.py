"""What makes a stage repeatable: whole files, seeds, shares of the work, resuming."""
