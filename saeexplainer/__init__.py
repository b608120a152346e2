"""SAEExplainer: close the loop between a sentence about an SAE feature and the activations it causes."""
