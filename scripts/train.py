"""Train: `python scripts/train.py +experiment=NAME`."""

from lafr.commands.train import command

if __name__ == "__main__":
    command()
