"""What clients are told when something is wrong, in OpenAI's shape."""

from typing import Any

from starlette.responses import Response

from vargen.core.atomic import dumps

KINDS = {401: "authentication_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """A request that is not, or cannot be, answered with images."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: int = 0
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's shape of an error."""
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> Response:
        """The answer."""
        headers = {"retry-after": str(self.retry_after)} if self.retry_after else {}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return answer(self.body, self.status, headers)


def answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON in ASCII: what a client sent may hold halves of characters, which have no UTF-8."""
    return Response(dumps(content), status, headers, media_type="application/json")
