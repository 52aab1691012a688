"""Names of models and methods, and settings from text. Nothing is imported before it is asked for."""

import dataclasses
import difflib
import importlib
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from vargen.core.messages import MOST, quoted, shown

if TYPE_CHECKING:
    from vargen.core.preset import Preset

MODELS = {
    "pocket-llamagen": "vargen.presets.pocket:PRESETS",
    "pocket-llamagen-small": "vargen.presets.pocket:PRESETS",
    "pocket-var": "vargen.presets.pocket:PRESETS",
    "pocket-var-small": "vargen.presets.pocket:PRESETS",
    "pocket-lumina": "vargen.presets.pocket:PRESETS",
    **{
        f"llamagen-c2i-{size}-{pixels}": "vargen.presets.llamagen:PRESETS"
        for size in ("b", "l", "xl", "xxl", "3b", "xxxl", "1b", "7b")
        for pixels in (256, 384, 512)
    },
    "pocket-mar": "vargen.presets.pocket:PRESETS",
    "pocket-mar-small": "vargen.presets.pocket:PRESETS",
    "llamagen-t2i-xl-256": "vargen.presets.llamagen:PRESETS",
    "llamagen-t2i-xl-512": "vargen.presets.llamagen:PRESETS",
    **{f"var-d{depth}": "vargen.presets.var:PRESETS" for depth in (16, 20, 24, 30, 36)},
    **{f"mar-{size}": "vargen.presets.mar:PRESETS" for size in ("base", "large", "huge")},
    "harmon-0.5b": "vargen.presets.harmon:PRESETS",
    "harmon-1.5b": "vargen.presets.harmon:PRESETS",
    "harmon-1.5b-o": "vargen.presets.harmon:PRESETS",
    **{f"lumina-mgpt-7b-{target}": "vargen.presets.lumina:PRESETS" for target in (512, 768, 1024)},
    "lumina-mgpt-7b-768-omni": "vargen.presets.lumina:PRESETS",
    "lumina-mgpt-34b-512": "vargen.presets.lumina:PRESETS",
    "lumina-mgpt-2": "vargen.presets.lumina:PRESETS",
    "anole-7b": "vargen.presets.lumina:PRESETS",
    **dict.fromkeys(("emu3-gen", "janus-1.3b", "janus-pro-1b", "janus-pro-7b"), "vargen.presets.wrapped:PRESETS"),
    "glm-image": "vargen.presets.glm_image:PRESETS",
    **{f"flowar-{size}": "vargen.presets.flowar:PRESETS" for size in ("s", "l", "h")},
    **{f"xar-{size}": "vargen.presets.xar:PRESETS" for size in ("b", "l", "h")},
    **{f"code-{role}-{n}": "vargen.presets.var:PRESETS" for role in ("drafter", "refiner") for n in (6, 7, 8, 9)},
}
TOKENIZERS = {
    "pocket-vq": "vargen.presets.pocket:tokenizer",
    "pocket-multiscale-vq": "vargen.presets.pocket:tokenizer",
    "pocket-kl": "vargen.presets.pocket:tokenizer",
    "llamagen-vq-16-c2i": "vargen.presets.llamagen:tokenizer",
    "llamagen-vq-8-c2i": "vargen.presets.llamagen:tokenizer",
    "llamagen-vq-16-t2i": "vargen.presets.llamagen:tokenizer",
    "chameleon-vqgan": "vargen.presets.lumina:tokenizer",
    "movqgan-270m": "vargen.presets.lumina:tokenizer",
    "mar-kl-16": "vargen.presets.mar:tokenizer",
    "var-vq-256": "vargen.presets.var:tokenizer",
    "var-vq-512": "vargen.presets.var:tokenizer",
}
METHODS = {
    "ar": "vargen.samplers.ar:Autoregressive",
    "sjd": "vargen.samplers.sjd:SpeculativeJacobi",
    "sjd-coupled": "vargen.samplers.sjd:CoupledJacobi",
    "sjd-exact": "vargen.samplers.sjd_exact:ExactJacobi",
    "sjd-pac": "vargen.samplers.pac:ProactiveJacobi",
    "zipar": "vargen.samplers.zipar:ZipAR",
    "zipar-adaptive": "vargen.samplers.zipar:AdaptiveZipAR",
    "jacobi-2d": "vargen.samplers.jacobi2d:Jacobi2D",
    "var": "vargen.samplers.var:NextScale",
    "code": "vargen.samplers.collaborative:Collaborative",
    "mar": "vargen.samplers.mar:MaskedAutoregressive",
    "flowar": "vargen.samplers.flowar:NextScaleFlow",
    "xar": "vargen.samplers.xar:NextCell",
    "disa": "vargen.samplers.disa:StepAnnealing",
    "csd": "vargen.samplers.continuous:ContinuousSpeculative",
    "speculative": "vargen.samplers.speculative:Speculative",
    "speculative-tree": "vargen.samplers.tree:TreeSpeculative",
    "speculative-dynamic": "vargen.samplers.dynamic:DynamicTree",
    "lantern": "vargen.samplers.speculative:Lantern",
    "lantern++": "vargen.samplers.speculative:LanternPlus",
    "gsd": "vargen.samplers.speculative:GSD",
    "cool": "vargen.samplers.speculative:Cool",
}

PUBLIC = {  # what `import vargen` offers
    "accelerate": "vargen.pipelines.accelerate:accelerate",
    "list_methods": "vargen.core.registry:list_methods",
    "list_models": "vargen.core.registry:list_models",
    "load": "vargen.pipelines.loading:load",
    "load_tokenizer": "vargen.pipelines.loading:load_tokenizer",
    "plan": "vargen.pipelines.plan:plan",
    "release": "vargen.pipelines.accelerate:release",
}


def find(table: dict[str, str], name: str, kind: str) -> Any:
    """The object that `name` stands for. ValueError lists the known names, or those most like it."""
    if not isinstance(name, str) or name not in table:
        raise ValueError(unknown(kind, name, list(table)))
    return resolve(table[name])


def resolve(where: str) -> Any:
    """The object that `module:object` names."""
    module, attribute = where.split(":")
    return getattr(importlib.import_module(module), attribute)


def unknown(kind: str, name: str, known: Sequence[str], *, few: int = 24) -> str:
    """A sentence on a name that is none of `known`: the one that it was meant for, if one is close; all of them if they
    are few, else those most like it.
    """
    name = str(name)[: 2 * MOST]
    small = {each.casefold(): shown(each) for each in known}
    like = [small[each] for each in difflib.get_close_matches(name.casefold(), small, n=5, cutoff=0.55)]
    close = difflib.get_close_matches(name.casefold(), small, n=1, cutoff=0.65)  # sdj is meant for sjd
    meant = f"did you mean {small[close[0]]}? " if close else ""
    if len(known) <= few:
        return f"unknown {kind} {quoted(name)}; {meant}there are {', '.join(map(shown, known)) or 'no names'}"
    others = ", ".join(like or map(shown, known[:3]))
    return f"unknown {kind} {quoted(name)}; {meant}of {len(known)} there are for instance {others}"


def preset(name: str) -> "Preset":
    """The preset of a model."""
    return find(MODELS, name, "model")[name]


def method(spec: str, defaults: Mapping[str, Mapping[str, Any]] | None = None, **overrides: Any) -> tuple[type, Any]:
    """Sampler class and settings of a method such as `sjd-coupled:window=64:guess=above`.

    `overrides` replace settings of the same name and must be settings that the method has. ValueError otherwise.
    `defaults` are, by method, settings that take effect where neither names them.
    """
    name, *parts = spec.split(":")
    made = sampler(name)
    hints = {field.name: get_type_hints(made.Settings)[field.name] for field in dataclasses.fields(made.Settings)}
    values: dict[str, Any] = {}
    for part in parts:
        key, equals, text = part.partition("=")
        if not equals or not key:
            raise ValueError(f"got {quoted(part)} in method {quoted(spec)}, expected setting=value")
        if key in values:
            raise ValueError(f"setting {shown(key)} stands twice in method {quoted(spec)}")
        values[key] = text
    values = {**(defaults or {}).get(name, {}), **values, **overrides}
    unknown = [key for key in values if key not in hints]
    if unknown:
        has = ", ".join(hints) or "none"
        raise ValueError(f"method {name} has no setting {quoted(unknown[0])}; its settings: {has}")
    return made, made.Settings(**{key: convert(value, hints[key], key) for key, value in values.items()})


def convert(value: Any, hint: Any, name: str) -> Any:
    """`value`, text or already typed, as type `hint`. ValueError names the setting and what it takes."""
    for option in choices(hint):
        if isinstance(option, type):
            parsed = _parse(value, option)
            if parsed is not None:
                return parsed
        elif value == option:
            return value
    raise ValueError(f"got {name} {quoted(value)}, expected {describe(hint)}")


def choices(hint: Any) -> list[Any]:
    """The types and literal values that `hint` allows."""
    if get_origin(hint) in (Union, types.UnionType):
        return [choice for part in get_args(hint) for choice in choices(part)]
    return list(get_args(hint)) if get_origin(hint) is Literal else [hint]


def describe(hint: Any) -> str:
    """`hint` in words, for help and errors."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    words = [names.get(option, option) if isinstance(option, type) else str(option) for option in choices(hint)]
    return " or ".join(map(str, words)) if len(words) < 3 else f"one of {', '.join(map(str, words))}"


def _parse(value: Any, kind: type) -> Any:
    if isinstance(value, kind) and not (kind is not bool and isinstance(value, bool)):
        return value
    try:
        if kind is bool and isinstance(value, str):
            return {"true": True, "false": False}.get(value.lower())
        return kind(value) if isinstance(value, str) or (kind is float and isinstance(value, int)) else None
    except ValueError:
        return None


def list_models() -> list[str]:
    """The names that `vargen.load` knows, sorted."""
    return sorted(MODELS)


def list_methods(model: str | None = None) -> list[str]:
    """The names of methods; with `model`, of those that draw with it. ValueError where there is no such model."""
    if model is None:
        return sorted(METHODS)
    found = preset(model)
    return sorted(methods(found.kind, found.plan))


def sampler(name: str) -> Any:
    """The class of a method."""
    return find(METHODS, name, "method")


def settings_of(name: str) -> list[dataclasses.Field]:
    """The settings that a method has."""
    return list(dataclasses.fields(sampler(name).Settings))


def methods(of: str, plan: str | None = None) -> list[str]:
    """The methods that draw with models of a kind, and of a plan where that kind has several."""
    found = {name: sampler(name) for name in METHODS}
    fits = (None, plan)
    return [name for name, made in found.items() if made.kind == of and made.plan in fits]


def summary(name: str) -> str:
    """One line on a method: whether it is exact, and what it does."""
    made = sampler(name)
    doc = (made.__doc__ or "").strip().splitlines()[0]
    return f"{'exact' if made.exact else 'approximate'}: {doc}"
