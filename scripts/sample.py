"""Draw images: python scripts/sample.py --method sjd. See --help."""

from vargen.commands.main import door

if __name__ == "__main__":
    door("sample")
