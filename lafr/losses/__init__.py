"""The multi-level loss and each stage's objective."""
