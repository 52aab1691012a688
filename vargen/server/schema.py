"""The bodies of requests and answers, as OpenAI has them, with fields of our own; unknown fields are refused."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from vargen.core.preset import LAW
from vargen.pipelines.options import about

Whole = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]
IGNORED = "taken, and ignored"
SHARED = ("method", "preset", "seed", "negative_prompt", *LAW)  # options of a call that a request may set


def shared() -> Any:
    """The fields that a call has as well, of the types and with the words that its options have."""
    kinds: dict[Any, Any] = {int: Whole, float: Number, str: str}
    return {name: (kinds[about(name).text] | None, Field(None, description=about(name).words)) for name in SHARED}


Shared = create_model("Shared", **shared())


class ImageRequest(Shared):
    """What is to be drawn: a `prompt` or a `class`, as the model takes it."""

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=False)

    model: str | None = Field(None, description="a name from /v1/models (default: the first of them)")
    prompt: str | None = Field(None, description="what to draw; models of classes take a class's name here")
    class_: int | str | None = Field(None, alias="class", description="name or index of a class")
    n: int | None = Field(None, ge=1, le=1024, description="images (default: 1); image i has seed + i")
    size: str | None = Field(
        None,
        pattern="^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$",
        description="WIDTHxHEIGHT, or auto; the nearest is drawn",
    )
    response_format: Literal["b64_json", "file"] | None = Field(
        None, description="file: the picture itself, or a zip of several (default: b64_json)"
    )
    stream: bool | None = Field(None, description="server-sent events, with pictures of images on their way")
    partial_images: int | None = Field(None, ge=0, le=64, description="so many of them, of each image (default: 2)")
    output_format: Literal["png", "jpeg", "webp"] | None = Field(None, description="(default: png)")
    output_compression: int | None = Field(None, ge=0, le=100, description="quality of jpeg and webp, in percent")
    background: Literal["auto", "opaque"] | None = Field(None, description="pictures are opaque")
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] | None = Field(None, description=IGNORED)
    style: Literal["vivid", "natural"] | None = Field(None, description=IGNORED)
    moderation: Literal["auto", "low"] | None = Field(None, description=IGNORED)
    user: str | None = Field(None, max_length=512, description=IGNORED)
    # vargen's own
    priority: int | None = Field(None, ge=-1000, le=1000, description="who is first in line: lower comes first (0)")
    deadline: Number | None = Field(None, gt=0, description="seconds, at most those that the server allows")

    @property
    def options(self) -> dict[str, Any]:
        """Options of a call, by name."""
        return {name: getattr(self, name) for name in SHARED}


class EditRequest(ImageRequest):
    """What is to be made of pictures, as a form: `image`, one file or several (`image[]`), and `mask`, a file."""

    model_config = ConfigDict(strict=False)

    input_fidelity: Literal["high", "low"] | None = Field(None, description=IGNORED)


class ImageData(BaseModel):
    """An image, and the seed that draws it again."""

    b64_json: str
    seed: int


class InputDetails(BaseModel):
    """Tokens that were read."""

    text_tokens: int
    image_tokens: int


class Usage(BaseModel):
    """Tokens: read, of the class or the prompt, for each image; and drawn."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    total_tokens: int


class ImageResponse(BaseModel):
    """The images of a request."""

    created: int
    model: str
    method: str
    size: str
    quality: Literal["auto"]
    background: Literal["opaque"]
    output_format: Literal["png", "jpeg", "webp"]
    data: list[ImageData]
    usage: Usage


class Problem(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """What is wrong, in OpenAI's shape."""

    error: Problem


class Model(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    summary: str
    takes: Literal["class", "prompt"]
    classes: list[str]
    sizes: list[str]
    edits: Literal["repaint", "read"] | None
    presets: list[str]
    method: str
    methods: list[str]


class ModelList(BaseModel):
    """The models that are served."""

    object: Literal["list"]
    data: list[Model]


class Health(BaseModel):
    """Whether requests are taken."""

    status: Literal["ok", "stopping", "not ready"]
    workers: int
