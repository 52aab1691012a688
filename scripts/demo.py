"""A page to play with in the browser: python scripts/demo.py. See --help."""

from vargen.cli import guarded
from vargen.demo.command import command

if __name__ == "__main__":
    guarded(command)
