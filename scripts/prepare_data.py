"""Prepare a set: `python scripts/prepare_data.py dataset=NAME source=...`."""

from lafr.commands.prepare import command

if __name__ == "__main__":
    command()
