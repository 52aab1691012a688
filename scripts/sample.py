"""Draw images: python scripts/sample.py --method sjd. See --help and --list."""

from vargen.commands.main import guarded
from vargen.commands.sample import command

if __name__ == "__main__":
    guarded(command)
