"""Architectures of SAEs that are trained here: those of sae-lens, and one file for each that it lacks."""
