"""Draw images: python scripts/sample.py --method sjd. See --help and --list."""

from vargen.cli import guarded
from vargen.drawing import command

if __name__ == "__main__":
    guarded(command)
