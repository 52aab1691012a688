"""A page to play with in the browser: python scripts/demo.py. See --help."""

from vargen.commands.demo import command
from vargen.commands.main import guarded

if __name__ == "__main__":
    guarded(command)
