"""Images as clients get them: JSON, a PNG, a zip, or server-sent events."""

import asyncio
import base64
import io
import time
import zipfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from vargen.core.atomic import dumps
from vargen.server.desk import Job
from vargen.server.errors import Refusal, answer
from vargen.server.orders import Done, Order, Shown

SUFFIXES = {"jpeg": "jpg"}  # of formats that are not called so
SECONDS_OF_SILENCE = 15.0  # then a comment is sent, so that nobody between takes the connection for dead


@dataclass(frozen=True)
class Told:
    """What is said with every image."""

    model: str
    method: str
    size: str
    seeds: tuple[int, ...]
    format: str  # of the files, as OpenAI calls it
    kind: str  # of events

    @classmethod
    def of(cls, order: Order, size: str) -> "Told":
        """What is said with the images of an order."""
        kind = "image_edit" if order.pictures else "image_generation"
        return cls(order.model, order.method, size, order.seeds, order.kind.lower(), kind)

    @property
    def shape(self) -> dict[str, str]:
        """OpenAI's fields of what the images are."""
        return {"size": self.size, "quality": "auto", "background": "opaque", "output_format": self.format}


def whole(told: Told, done: Done, kind: str) -> Response:
    """All images at once: JSON with base64, or (`file`) a picture, or a zip of several, named by their seeds."""
    if kind == "b64_json":
        data = [{"b64_json": _text(one), "seed": seed} for one, seed in zip(done.pictures, told.seeds, strict=True)]
        about = {"model": told.model, "method": told.method, **told.shape}
        return answer({"created": int(time.time()), **about, "data": data, "usage": _usage(done, 1)})
    names = [f"{told.model}-{seed}.{SUFFIXES.get(told.format, told.format)}" for seed in told.seeds]
    if len(names) == 1:
        return _file(done.pictures[0], names[0], f"image/{told.format}")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:  # stored as they are: pictures do not shrink
        for index, (name, picture) in enumerate(zip(names, done.pictures, strict=True)):
            archive.writestr(f"{index}-{name}", picture)
    return _file(out.getvalue(), f"{told.model}-{told.seeds[0]}.zip", "application/zip")


def _file(content: bytes, name: str, kind: str) -> Response:
    return Response(content, headers={"content-disposition": f'attachment; filename="{name}"'}, media_type=kind)


def _text(picture: bytes) -> str:
    return base64.b64encode(picture).decode("ascii")


def _usage(done: Done, images: int) -> dict[str, Any]:
    """Tokens of an image, of so many."""
    words, seen, drawn = (tokens // images for tokens in (done.read, done.seen, done.drawn))
    details = {"text_tokens": words, "image_tokens": seen}
    read = {"input_tokens": words + seen, "input_tokens_details": details}
    return {**read, "output_tokens": drawn, "total_tokens": words + seen + drawn}


async def events(told: Told, first: Shown | Done, job: Job) -> AsyncIterator[bytes]:
    """Events of OpenAI's names: `image_generation.partial_image`, and `image_generation.completed` for each image;
    `image_edit` where pictures were given.
    """
    event = first
    while isinstance(event, Shown):
        more = {"partial_image_index": event.number}
        yield _event("partial_image", told, event.image, event.picture, more)
        waiting = asyncio.ensure_future(job.next())
        try:
            while not (await asyncio.wait((waiting,), timeout=SECONDS_OF_SILENCE))[0]:
                yield b": still drawing\n\n"
            event = waiting.result()
        except Refusal as refusal:
            yield _line("error", {"type": "error", **refusal.body})
            return
        finally:
            waiting.cancel()
    usage = {"usage": _usage(event, len(event.pictures))}
    for image, picture in enumerate(event.pictures):
        yield _event("completed", told, image, picture, usage)


def _event(name: str, told: Told, image: int, picture: bytes, more: dict[str, Any]) -> bytes:
    name = f"{told.kind}.{name}"
    own = {"index": image, "seed": told.seeds[image], "model": told.model, "method": told.method}
    return _line(
        name, {"type": name, "b64_json": _text(picture), "created_at": int(time.time()), **told.shape, **own, **more}
    )


def _line(name: str, content: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {dumps(content)}\n\n".encode()


class Events(StreamingResponse):
    """Server-sent events; `over` is called when they end, or when the client has gone."""

    def __init__(self, content: AsyncIterator[bytes], over: Callable[[], None]) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}  # nginx would hold events back
        super().__init__(content, headers=headers, media_type="text/event-stream")
        self._over = over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._over()
