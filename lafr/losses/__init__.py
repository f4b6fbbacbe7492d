"""Terms of the multi-level loss: appearance, identity and structure, each a scalar of a `Restoration`."""
