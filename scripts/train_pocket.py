"""Train the models that ship, from scratch: python scripts/train_pocket.py all (or one name). Resumes by itself."""

from vargen.commands.main import door

if __name__ == "__main__":
    door("train-pocket")
