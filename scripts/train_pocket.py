"""Train the models that ship, from scratch: python scripts/train_pocket.py all (or one name). Resumes by itself."""

from vargen.commands.main import guarded
from vargen.commands.train_pocket import command

if __name__ == "__main__":
    guarded(command)
