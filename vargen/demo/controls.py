"""Settings of methods and options of a call as components: one for each name, of which the page shows those that the
method has, and the model takes.
"""

from functools import cache
from typing import Any, get_type_hints

import gradio as gr

from vargen.core import registry
from vargen.demo import options
from vargen.demo.explain import words
from vargen.demo.studio import Order
from vargen.samplers.tree import SHAPES

# What the page begins with where the default, `auto`, chooses by the clock: a seed is to repeat its picture.
FIRST = {name: {"window": 16} for name in ("sjd", "sjd-coupled", "sjd-exact", "sjd-pac")}
RACING = {"zipar": {"window": 4}, "zipar-adaptive": {"window": 4}, "jacobi-2d": {"window": 4}, "code": {"scales": 6}}
OFFERED = {"window": ["auto", "4", "8", "16", "32", "64"], "tree": ["32", "8", "4-4-4", "3-2-1", *SHAPES]}
# Settings that matter under one rule alone, and are shown with it.
RULED = {
    "lantern": ("k", "delta"),
    "lantern++": ("k", "factor"),
    "gsd": ("group",),
    "cool": ("tolerance", "decay"),
    "paper": ("inner", "tries"),
}
OF_RULES = tuple(dict.fromkeys(name for names in RULED.values() for name in names))
OWN = "the model's own"  # what a drafter or refiner is called that is not named
PARTNERS = ("drafter", "refiner")


@cache
def hints(method: str) -> dict[str, Any]:
    """The type of each setting of a method."""
    settings = registry.sampler(method).Settings
    found = get_type_hints(settings)
    return {field.name: found[field.name] for field in registry.settings_of(method)}


def defaults(model: str, method: str) -> dict[str, Any]:
    """The value that each setting of a method has for a model unless it is named."""
    recipe = registry.preset(model).recipe.settings.get(method, {})
    return {field.name: recipe.get(field.name, field.default) for field in registry.settings_of(method)}


def usual_method(model: str) -> str:
    """The name of a model's own method, whose settings the page begins with."""
    return registry.preset(model).method.split(":")[0]


def methods(model: str) -> list[str]:
    """The methods that draw with a model, without those that want a second model where it comes with none."""
    preset = registry.preset(model)
    found = registry.methods(preset.kind, preset.plan)
    return [name for name in found if preset.drafter or registry.sampler(name).partner is None]


def named(model: str) -> list[tuple[str, str]]:
    """The same for a list: each as it is shown, with whether it is exact, and its name."""
    exact = {name: registry.sampler(name).exact for name in methods(model)}
    return [(f"{name} · {'exact' if exact[name] else 'approximate'}", name) for name in exact]


def spelled(model: str, method: str, values: dict[str, Any]) -> str:
    """A method with those of its settings that are not its defaults, as on the command line."""
    out, usual = [method], defaults(model, method)
    for name, hint in hints(method).items():
        value = values.get(name)
        if value is None or value == OWN:
            continue
        text = str(value).lower() if isinstance(value, bool) else str(value).strip()
        try:
            same = registry.convert(text, hint, name) == usual[name]
        except ValueError:  # whoever draws it says what is wrong
            same = False
        if not same:
            out.append(f"{name}={text}")
    return ":".join(out)


def first(model: str, method: str) -> str:
    """A method as the page begins with it."""
    return spelled(model, method, FIRST.get(method, {}))


def suggested(model: str) -> list[str]:
    """Each method that draws with a model, as a race begins with it."""
    return [spelled(model, method, {**FIRST.get(method, {}), **RACING.get(method, {})}) for method in methods(model)]


class Controls:
    """Components for settings, in the order of `names`; a method may name `partners` as drafters."""

    def __init__(self, model: str, method: str, partners: tuple[str, ...]) -> None:
        self._partners = [OWN, "eagle", *partners]
        shapes = {name: hint for each in reversed(registry.METHODS) for name, hint in hints(each).items()}
        shapes = {name: shapes[name] for name in sorted(shapes, key=lambda name: (name in OF_RULES, name == "rule"))}
        self.names = list(shapes)
        self.parts = [self._component(name, hint, self._state(name, model, method)) for name, hint in shapes.items()]

    def _component(self, name: str, hint: Any, state: dict[str, Any]) -> Any:
        common = {"label": name.replace("_", " "), "info": words(name), "min_width": 140}
        if hint is bool:
            return gr.Checkbox(**{"value": False, **state}, **common)
        if _listed(name, hint):
            choices, free = self._choices(name, hint), name in OFFERED
            first = {"choices": choices, "value": choices[0], **state}
            return gr.Dropdown(**first, allow_custom_value=free, filterable=free, **common)
        return gr.Number(**{"value": 0, **state}, **common)

    def _choices(self, name: str, hint: Any) -> list[str]:
        if name in PARTNERS:
            return self._partners
        offered = OFFERED.get(name) or [str(choice) for choice in registry.choices(hint)]
        return [choice for choice in offered if hint is not int or choice != "auto"]

    def _state(self, name: str, model: str, method: str) -> dict[str, Any]:
        """What a component shows for a method; nothing where that has no such setting."""
        known, usual = hints(method), defaults(model, method)
        if name not in known:
            return {"visible": False}
        value = FIRST.get(method, {}).get(name, usual[name])
        shown: dict[str, Any] = {"visible": name not in OF_RULES or name in RULED.get(usual["rule"], ())}
        if not _listed(name, known[name]):
            return {"value": value, **shown}
        return {"value": str(value) or OWN, "choices": self._choices(name, known[name]), **shown}

    def update(self, model: str, method: str) -> list[Any]:
        """What becomes of each component when a model or a method is chosen."""
        return [gr.update(**self._state(name, model, method)) for name in self.names]

    def restore(self, order: Order) -> list[Any]:
        """What becomes of each for an order that was given before."""
        name, preset = order.method.split(":")[0], registry.preset(order.model)
        _, settings = registry.method(order.method, preset.recipe.settings)
        shown = []
        for state, each in zip(self.update(order.model, name), self.names, strict=True):
            value = vars(settings).get(each)
            listed = each in hints(name) and _listed(each, hints(name)[each])
            shown.append(state if value is None else {**state, "value": (str(value) or OWN) if listed else value})
        return shown

    def part(self, name: str) -> Any:
        """The component of a setting."""
        return self.parts[self.names.index(name)]

    @property
    def of_rules(self) -> list[Any]:
        """The components that `ruled` is about."""
        return [self.part(name) for name in OF_RULES]

    def ruled(self, method: str, rule: str) -> list[Any]:
        """Which of them are shown when a rule is chosen."""
        known = hints(method)
        return [gr.update(visible=name in known and name in RULED.get(rule, ())) for name in OF_RULES]

    def spelled(self, model: str, method: str, values: tuple[Any, ...]) -> str:
        """A method with the settings that the components hold."""
        return spelled(model, method, dict(zip(self.names, values, strict=True)))


class OptionControls:
    """Components, folded, for the options of a call that the page has no other parts for, each with its words.

    A box that is empty leaves an option as the model has it; what that is, it shows faintly.
    """

    def __init__(self, model: str) -> None:
        self.names = list(options.offered())
        with gr.Accordion("Guidance, temperature and more", open=False), gr.Row(elem_classes="vg-settings"):
            self.parts = [self._component(name, state) for name, state in self._states(model).items()]

    def _component(self, name: str, state: dict[str, Any]) -> Any:
        known = options.offered()[name]
        common = {"label": name.replace("_", " "), "info": known.words, "min_width": 140}
        return gr.Checkbox(**state, **common) if known.text is bool else gr.Textbox(**state, max_lines=1, **common)

    def _states(self, model: str, said: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
        taken, usual, said = options.taken(model), options.usual(model), said or {}
        states: dict[str, dict[str, Any]] = {}
        for name, known in options.offered().items():
            if known.text is bool:
                states[name] = {"value": said.get(name, usual[name])}
            else:
                states[name] = {"value": options.written(said.get(name)), "placeholder": options.written(usual[name])}
            states[name]["visible"] = name in taken
        return states

    def update(self, model: str, said: dict[str, Any] | None = None) -> list[Any]:
        """What becomes of each component for a model, and for what was said of it before."""
        return [gr.update(**state) for state in self._states(model, said).values()]

    def one(self, model: str, at: int, value: Any) -> dict[str, Any]:
        """The same of one component."""
        return options.chosen(model, {self.names[at]: value})

    def chosen(self, model: str, values: tuple[Any, ...]) -> dict[str, Any]:
        """The options that the components ask for. ValueError where one says what cannot be read."""
        return options.chosen(model, dict(zip(self.names, values, strict=True)))


def _listed(name: str, hint: Any) -> bool:
    """Whether a setting is chosen from a list."""
    return name in OFFERED or name in PARTNERS or not isinstance(hint, type)
