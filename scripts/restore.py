"""Restore photos: `python scripts/restore.py input=PHOTO output=FOLDER`."""

from lafr.commands.restore import command

if __name__ == "__main__":
    command()
