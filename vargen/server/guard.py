"""What every request passes before anything looks at it: the key, the kind and the size of its body; and the log.

Bodies are read whole, up to their limit and within a few seconds, so that nobody is kept waiting by a client that
sends a byte a minute.
"""

import asyncio
import hmac
import time
import uuid
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vargen.server.errors import Refusal
from vargen.server.logs import write
from vargen.server.metrics import Metrics

IMAGES, EDITS = "/v1/images/generations", "/v1/images/edits"
KINDS = {IMAGES: "application/json", EDITS: "multipart/form-data"}  # of bodies
OPEN = frozenset({"/health", "/healthz", "/docs"})  # load balancers and browsers have no key
QUIET = OPEN | {"/metrics"}  # they are asked every few seconds
SECONDS_TO_SEND = 20.0
HUNG_UP = 499  # what nginx calls it; nobody reads it


class HungUp(Exception):
    """The client has gone."""


class Guard:
    """An ASGI middleware."""

    def __init__(self, app: ASGIApp, *, key: str | None, most: Mapping[str, int], metrics: Metrics) -> None:
        """`most` are the bytes that bodies may have, by path; as for `IMAGES` where none is said."""
        self._app, self._most, self._metrics = app, most, metrics
        self._key = None if key is None else _digest(key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, told = time.monotonic(), HUNG_UP, uuid.uuid4().hex
        details = scope.setdefault("state", {})["details"] = {}

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", told.encode())]
            await send(message)

        try:
            await self._pass(scope, receive, noting)
        except HungUp:
            pass
        except BaseException:
            status = 500 if status == HUNG_UP else status
            raise
        finally:
            self._note(scope, told, details.get("status", status), time.monotonic() - began, details)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._admit(scope)
            body = await _body(receive, self._most_of(scope)) if scope["method"] == "POST" else b""
        except Refusal as refusal:
            await refusal.response(scope, receive, send)
            return
        await self._app(scope, _again(body, receive), send)

    def _admit(self, scope: Scope) -> None:
        """Refusal where the key is wrong, or where the body's kind or length are known to be."""
        headers = dict(scope["headers"])
        if self._key is not None and scope["path"] not in OPEN:
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            # Digests are compared, in a time that does not hang on where they differ.
            if not hmac.compare_digest(_digest(key.strip()), self._key) or scheme.lower() != b"bearer":
                raise Refusal(
                    401, "the API key is missing or wrong: send Authorization: Bearer KEY", code="invalid_api_key"
                )
        if scope["method"] != "POST":
            return
        kind, *more = (part.strip().lower() for part in headers.get(b"content-type", b"").split(b";"))
        charset = next((part for part in more if part.startswith(b"charset=")), b"charset=utf-8")
        wanted = KINDS.get(scope["path"])
        if wanted is not None and kind != wanted.encode():
            raise Refusal(415, f"expected a body of type {wanted}", code="unsupported_media_type")
        if charset.partition(b"=")[2].strip(b'"') not in (b"utf-8", b"utf8"):
            raise Refusal(415, "expected a body in UTF-8", code="unsupported_media_type")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self._most_of(scope):
            raise _too_large(self._most_of(scope))

    def _most_of(self, scope: Scope) -> int:
        return self._most.get(scope["path"], self._most[IMAGES])

    def _note(self, scope: Scope, told: str, status: int, seconds: float, details: dict[str, Any]) -> None:
        if scope["path"] in KINDS:
            self._metrics.requests.add(1, str(status))
            self._metrics.seconds.observe(seconds)
        if scope["path"] in QUIET and status == 200:
            return
        named = {"id": told, "http_method": scope["method"], "path": scope["path"][:100], "status": status}
        write(
            "request", **{**named, "seconds": round(seconds, 4), **{k: v for k, v in details.items() if k != "status"}}
        )


def _digest(key: bytes) -> bytes:
    return sha256(key).digest()


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"the body is larger than {most} bytes", code="body_too_large")


async def _body(receive: Receive, most: int) -> bytes:
    """A request's whole body. Refusal where it is too large or too slow."""
    parts, size, more = [], 0, True
    try:
        async with asyncio.timeout(SECONDS_TO_SEND):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise HungUp
                parts.append(message.get("body", b""))
                size, more = size + len(parts[-1]), message.get("more_body", False)
                if size > most:
                    raise _too_large(most)
    except TimeoutError:
        raise Refusal(408, f"the body did not arrive within {SECONDS_TO_SEND:g} seconds", code="timeout") from None
    return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """`receive` as if the body had not been read."""
    given = False

    async def read() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return read
