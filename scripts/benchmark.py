"""Compare methods on one model: python scripts/benchmark.py --methods ar,sjd:window=32 --json FILE. See --help."""

from vargen.commands.main import door

if __name__ == "__main__":
    door("bench")
