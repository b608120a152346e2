"""The page is one HTML file without network. `payload` is what it says, `glance` its overview, `build` its bytes."""
