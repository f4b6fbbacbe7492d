"""The training loop, what each stage minimises, and how a run is saved and resumed."""
