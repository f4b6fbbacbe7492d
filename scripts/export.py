"""Export a model: `python scripts/export.py model.folder=FOLDER output=FOLDER`."""

from lafr.commands.export import command

if __name__ == "__main__":
    command()
