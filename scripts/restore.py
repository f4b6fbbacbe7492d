"""Restore photos: `python scripts/restore.py PATH... -o FOLDER`."""

from lafr.commands.restore import command

if __name__ == "__main__":
    command()
