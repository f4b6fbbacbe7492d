"""Serve the web page: `python scripts/demo.py`."""

from lafr.commands.demo import command

if __name__ == "__main__":
    command()
