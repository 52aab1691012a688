"""`vargen models`: the models that can be drawn with, one closely, and the methods."""

from vargen.commands.flags import Parser
from vargen.core import registry
from vargen.core.preset import Preset
from vargen.core.specs import ScaleSpec

MOST_SIZES = 60  # that are all listed


def parser() -> Parser:
    """The flags."""
    made = Parser(prog="vargen models", description="Show models and methods; with a name, all of that model.")
    made.add_argument("name", nargs="?", metavar="NAME", help="a model: its methods, presets, size and files")
    made.add_argument("--all", action="store_true", help="shapes too of which no weights were ever released")
    return made


def command(argv: list[str]) -> None:
    """Print the list, or what there is to say of one."""
    options = parser().parse_args(argv)
    print(of(registry.preset(options.name)) if options.name else listing(everything=options.all))


def listing(*, everything: bool = False) -> str:
    """Every model that was released, those that ship first, and every method, a line each."""
    known = [registry.preset(name) for name in registry.list_models()]
    shown = [preset for preset in known if preset.released or everything]
    ships = [preset for preset in shown if preset.scenes]
    published = [preset for preset in shown if not preset.scenes]
    lines = ["models that ship:", *map(_line, ships), "published models, from their own files:", *map(_line, published)]
    if len(shown) < len(known):
        lines.append(f"  and {len(known) - len(shown)} shapes of which no weights were released: vargen models --all")
    lines.append("methods (vargen models NAME has those of a model):")
    lines += [f"  {name:24} {registry.summary(name)}" for name in registry.list_methods()]
    return "\n".join(lines)


def _line(preset: Preset) -> str:
    return f"  {preset.name:24} {preset.summary}"


def of(preset: Preset) -> str:
    """What there is to say of a model."""
    names = preset.names()
    takes = f"{preset.classes} classes" if preset.classes else "prompts"
    if names:
        few = names if len(names) <= 10 else names[:3]
        takes += f": {', '.join(few)}" + (" ..." if len(few) < len(names) else "")
    lines = [
        f"{preset.name}: {preset.summary}",
        f"draws    {takes}",
        f"methods  {', '.join(sorted(registry.methods(preset.kind, preset.plan)))} (default: {preset.method})",
        f"presets  {', '.join(map(_recipe, preset.recipes.items()))}",
        f"image    {_layout(preset)}",
        f"files    {preset.source or 'no weights were ever released: name a --checkpoint'}",
    ]
    return "\n".join([*lines, *([f"drafter  {preset.drafter}"] if preset.drafter else [])])


def _recipe(named: tuple[str, object]) -> str:
    name, recipe = named
    off = {"guidance_scale": None, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    law = [f"{key} {vars(recipe)[key]}" for key, value in off.items() if vars(recipe)[key] != value]
    return f"{name} ({', '.join(law)})"


def _layout(preset: Preset) -> str:
    """What an image is made of, and the sizes of a model that draws several."""
    spec = preset.spec
    if spec is None:
        return "of a layout that its files say"
    if isinstance(spec, ScaleSpec):
        return f"{spec.slots} tokens in {len(spec.sides)} scales"
    sizes = [f"{wide}x{high}" for high, wide in _sizes(preset)]
    few = sizes if len(sizes) <= MOST_SIZES else sizes[:8]
    listed = ", ".join(few) + (f" and {len(sizes) - len(few):,} more" if few != sizes else "")
    return f"{spec.slots} tokens" + (f" at {sizes[0]}; sizes: {listed}" if sizes else "")


def _sizes(preset: Preset) -> tuple[tuple[int, int], ...]:
    """Height and width of what a model with several sizes draws; of others nothing: their summary says it."""
    import torch

    from vargen.models.prompted import Prompted

    if preset.skeleton is None or preset.classes:
        return ()
    with torch.device("meta"):
        model = preset.skeleton()
    if not isinstance(model, Prompted):
        return ()
    return (model.size, *(size for size in model.sizes if size != model.size))
