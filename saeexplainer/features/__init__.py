"""What features fire on."""
