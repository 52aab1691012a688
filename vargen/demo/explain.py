"""What the demo says of methods and settings: data beside this file, as text for the page."""

import json
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

from vargen.core import registry

KINDS = {
    "raster": "Token by token: LlamaGen, Lumina-mGPT, Emu3, Janus",
    "next-scale": "Scale by scale: VAR",
    "continuous": "Continuous tokens: MAR, FlowAR, xAR, Harmon",
}


@dataclass(frozen=True)
class Explanation:
    """Of a method: three sentences, and the papers by their arXiv numbers."""

    name: str
    kind: str
    exact: bool
    says: tuple[str, ...]
    papers: tuple[str, ...]


@cache
def explanations() -> tuple[Explanation, ...]:
    """Of every method, in the order in which they are registered."""
    out = []
    for name, entry in _data("methods.json").items():
        sampler = registry.sampler(name)
        out.append(Explanation(name, sampler.kind, sampler.exact, tuple(entry["says"]), tuple(entry["papers"])))
    return tuple(out)


def words(setting: str) -> str:
    """What a setting means, in a few words."""
    return _data("settings.json")[setting]


@cache
def _data(name: str) -> dict:
    return json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


def law(exact: bool) -> str:
    """A badge that says whether a method keeps the law of plain decoding."""
    word = "exact" if exact else "approximate"
    return f'<span class="vg-badge vg-{word}">{word}</span>'


def brief(name: str) -> str:
    """HTML of one line on a method."""
    found = next(each for each in explanations() if each.name == name)
    return f'<p class="vg-brief">{law(found.exact)} {escape(found.says[0])}</p>'


def glossary() -> str:
    """HTML that says what the words of the page mean, folded."""
    parts = "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in _data("glossary.json").items())
    return (
        f'<details class="vg-words"><summary>What is a token, a forward, a window?</summary><dl>{parts}</dl></details>'
    )


def page() -> str:
    """HTML of everything on every method."""
    parts = []
    for kind, title in KINDS.items():
        cards = "".join(_card(each) for each in explanations() if each.kind == kind)
        parts.append(f'<h2>{escape(title)}</h2><div class="vg-cards">{cards}</div>')
    return f'<div class="vg-methods">{"".join(parts)}</div>'


def _card(each: Explanation) -> str:
    papers = ", ".join(
        f'<a href="https://arxiv.org/abs/{number}" target="_blank" rel="noopener noreferrer">arXiv {number}</a>'
        for number in each.papers
    )
    text = " ".join(map(escape, each.says))
    return (
        f'<article class="vg-card"><header><code>{escape(each.name)}</code>{law(each.exact)}</header>'
        f"<p>{text}</p><footer>{papers}</footer></article>"
    )
