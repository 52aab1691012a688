"""Train the models that ship, from scratch: python scripts/train_pocket.py all (or one name). Resumes by itself."""

from vargen.cli import guarded
from vargen.training.command import command

if __name__ == "__main__":
    guarded(command)
