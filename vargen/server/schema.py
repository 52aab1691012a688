"""The bodies of requests and answers, as OpenAI has them, with fields of our own; unknown fields are refused."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from vargen.core.preset import LAW
from vargen.pipelines.options import about

Whole = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]


def law() -> Any:
    """The fields that shape the law, of the types and with the words that a call's options have."""
    kinds: dict[Any, Any] = {int: Whole, float: Number}
    return {name: (kinds[about(name).text] | None, Field(None, description=about(name).words)) for name in LAW}


Law = create_model("Law", **law())


class ImageRequest(Law):
    """What is to be drawn: a `prompt` or a `class`, as the model takes it."""

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=False)

    model: str | None = Field(None, description="a name from /v1/models (default: the first of them)")
    prompt: str | None = Field(None, description="what to draw; models of classes take a class's name here")
    class_: int | str | None = Field(None, alias="class", description="name or index of a class")
    n: int | None = Field(None, ge=1, le=1024, description="images (default: 1); image i has seed + i")
    size: str | None = Field(None, pattern="^(auto|[0-9]{1,5}x[0-9]{1,5})$", description="WIDTHxHEIGHT, or auto")
    response_format: Literal["b64_json", "file"] | None = Field(
        None, description="file: the PNG itself, or a zip of several (default: b64_json)"
    )
    stream: bool | None = Field(None, description="server-sent events, with pictures of images on their way")
    partial_images: int | None = Field(None, ge=0, le=64, description="so many of them, of each image (default: 2)")
    output_format: Literal["png"] | None = None
    quality: Literal["auto"] | None = None
    background: Literal["auto", "opaque"] | None = None
    user: str | None = Field(None, max_length=512, description="taken, and ignored")
    # vargen's own
    seed: Whole | None = Field(None, description="of the first image (default: drawn, and told in the answer)")
    method: str | None = Field(None, max_length=256, description="with its settings, sjd-coupled:window=16")
    preset: str | None = Field(None, max_length=128, description="a published recipe of the model")
    deadline: Number | None = Field(None, gt=0, description="seconds, at most those that the server allows")


class ImageData(BaseModel):
    """An image, and the seed that draws it again."""

    b64_json: str
    seed: int


class ImageResponse(BaseModel):
    """The images of a request."""

    created: int
    model: str
    method: str
    size: str
    output_format: Literal["png"]
    data: list[ImageData]


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
