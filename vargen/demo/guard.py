"""What every request passes before Gradio looks at it: bodies are small, and there are not too many at a time."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Guard:
    """Refuses bodies of more than `most` bytes with 413, and more than `connections` requests at a time with 503."""

    def __init__(self, app: ASGIApp, most: int = 1 << 16, connections: int = 512) -> None:
        self._app, self._most, self._connections = app, most, connections
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._most:
            await refuse(send, 413, f"a request here has at most {self._most} bytes")
            return
        if self._open >= self._connections:
            await refuse(send, 503, "too many visitors at the moment")
            return
        self._open += 1
        try:
            await self._app(scope, self._counted(receive), send)
        finally:
            self._open -= 1

    def _counted(self, receive: Receive) -> Receive:
        """`receive`, which hangs up behind so many bytes: a body need not say how long it is."""
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            return message if read <= self._most else {"type": "http.disconnect"}

        return counted


async def refuse(send: Send, status: int, text: str) -> None:
    """Answer with one sentence."""
    kind = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": kind})
    await send({"type": "http.response.body", "body": text.encode()})
