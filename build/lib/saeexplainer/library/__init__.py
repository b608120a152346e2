"""What `import saeexplainer` offers: a few functions over the packages below, for notebooks and other programs."""
