"""The package's readme: the README, with links and pictures that work where there is no checkout around it."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def readme(root: Path = ROOT) -> str:
    """README.md with every relative link led to the repository that pyproject.toml names."""
    source = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Source"]

    def led(link: re.Match[str]) -> str:
        kind = "raw" if link[1] else "blob"
        return f"{link[1]}[{link[2]}]({source}/{kind}/main/{link[3]})"

    text = (root / "README.md").read_text(encoding="utf-8")
    return re.sub(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)", led, text)


if __name__ == "__main__":
    setup(long_description=readme(), long_description_content_type="text/markdown")
