"""Serve images over HTTP: python scripts/serve.py --model pocket-llamagen. See --help and docs/serving.md."""

from vargen.cli import guarded
from vargen.server.command import command

if __name__ == "__main__":
    guarded(command)
