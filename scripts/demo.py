"""A page to play with in the browser: python scripts/demo.py. See --help."""

from vargen.commands.main import door

if __name__ == "__main__":
    door("demo")
