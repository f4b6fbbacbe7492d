"""Terms of the multi-level loss, each a scalar of a `Restoration`: appearance, identity, structure, and two learned."""
