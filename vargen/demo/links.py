"""A drawing in words: the query string of a link that restores its settings, and what draws it elsewhere."""

import json
import shlex
from collections.abc import Mapping
from urllib.parse import urlencode

from vargen.core import registry
from vargen.demo import options
from vargen.demo.studio import Order
from vargen.demo.subject import SIZES, examples, order

NUMBERS = (("images", "1"), ("seed", "0"))
PICTURE, MASK = "picture.png", "mask.png"  # what the files of a repainting are called


def query(asked: Order) -> str:
    """The settings of an order as a query string; a picture that is repainted is none of them."""
    subject = "class" if registry.preset(asked.model).classes else "prompt"
    said = {"model": asked.model, subject: asked.subject, "method": asked.method, "seed": asked.seed}
    if asked.images > 1:
        said["images"] = asked.images
    if asked.size:
        said["size"] = "{1}x{0}".format(*asked.size)
    return urlencode(said | {name: options.written(value) for name, value in asked.options.items()}, safe=":,=")


def parse(given: Mapping[str, str], model: str) -> Order:
    """The order that a query's fields say, with what a model has anyhow for those that are not there; `model` is the
    one where it names none. ValueError for a field that there is not, or that says what cannot be read.
    """
    said = dict(given)
    model = said.pop("model", model)
    preset = registry.preset(model)
    first = (preset.names() or ["0"])[0] if preset.classes else examples(model)[0]
    subject = said.pop("class" if preset.classes else "prompt", first)
    images, seed = (registry.convert(said.pop(name, usual), int, name) for name, usual in NUMBERS)
    method, size = said.pop("method", preset.method), said.pop("size", None)
    if size and size not in SIZES.get(model, []):
        known = f"sizes {', '.join(SIZES[model])}" if model in SIZES else "none: it has one size"
        raise ValueError(f"the link has size {size[:20]!r}, {model} takes {known}")
    if wrong := [name for name in said if name not in options.taken(model)]:
        raise ValueError(f"the link has {wrong[0]!r}, which {model} does not take")
    return order(model, subject, method, images, seed, size, options.chosen(model, said))


def command(asked: Order) -> str:
    """What draws the same from a shell."""
    said = {"model": asked.model, "class" if registry.preset(asked.model).classes else "prompt": asked.subject}
    said |= {"method": asked.method, "num-images": asked.images, "seed": asked.seed}
    if asked.size:
        said |= {"height": asked.size[0], "width": asked.size[1]}
    said |= {name.replace("_", "-"): options.written(value) for name, value in asked.options.items()}
    if asked.repainted:
        said |= {"image": PICTURE, "mask-image": MASK}
    return " ".join(["vargen sample", *(_flag(name, str(value)) for name, value in said.items())])


def _flag(name: str, value: str) -> str:
    """A flag with its value, which is no flag where it begins with a dash."""
    return f"--{name}={shlex.quote(value)}" if value.startswith("-") else f"--{name} {shlex.quote(value)}"


def python(asked: Order) -> str:
    """What draws the same in Python."""
    subject = "class_labels" if registry.preset(asked.model).classes else "prompt"
    said = {subject: asked.subject, "method": asked.method, "num_images_per_prompt": asked.images, "seed": asked.seed}
    if asked.size:
        said |= {"height": asked.size[0], "width": asked.size[1]}
    lines = [f"    {name}={_literal(value)}," for name, value in (said | dict(asked.options)).items()]
    head = "import vargen\n"
    if asked.repainted:
        head += "from PIL import Image\n"
        opened = (("image", PICTURE), ("mask_image", MASK))
        lines += [f'    {name}=Image.open("{file}"),' for name, file in opened]
    called = "\n".join(["out = pipe(", *lines, ")"])
    saved = f'out.images[0].save("{asked.model}-{asked.seed}.png")'
    return f'{head}\npipe = vargen.load("{asked.model}")\n{called}\n{saved}\n'


def _literal(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
