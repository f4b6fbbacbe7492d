"""The commands: configuration and argument parsing. The only package that imports Hydra."""
