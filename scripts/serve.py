"""Serve images over HTTP: python scripts/serve.py --model pocket-llamagen. See --help and docs/serving.md."""

from vargen.commands.main import door

if __name__ == "__main__":
    door("serve")
