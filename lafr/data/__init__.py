"""Training pairs and test sets."""
