"""Evaluate: `python scripts/eval.py benchmark=NAME`."""

from lafr.commands.evaluate import command

if __name__ == "__main__":
    command()
