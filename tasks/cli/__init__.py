"""The commands of `sae-explainer`."""
