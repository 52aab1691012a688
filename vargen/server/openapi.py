"""What the server's OpenAPI schema says beyond what FastAPI finds out by itself."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from vargen.server.schema import ErrorResponse, ImageResponse

BINARY = {"schema": {"type": "string", "format": "binary"}}
IMAGES_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ImageResponse,
        "description": "Images: JSON, a PNG or a zip of several (response_format file), or events (stream).",
        "content": {
            "image/png": BINARY,
            "application/zip": BINARY,
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
}
WORDS = {
    400: "The request cannot be drawn as it is",
    404: "No such model",
    408: "The body took too long to arrive",
    413: "The body is too large",
    415: "The body is no JSON",
    429: "Too many requests wait",
    500: "The server is at fault",
    503: "The server is stopping, or out of memory",
    504: "The deadline has passed",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": words} for status, words in WORDS.items()
}
REFUSED = {
    "description": "The API key is missing or wrong",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}},
}


def schema_of(app: FastAPI, *, secured: bool) -> dict[str, Any]:
    """The schema; with `secured`, of a server that wants a key."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path, operations in found["paths"].items():
            for operation in operations.values():
                operation["responses"].pop("422", None)  # what is wrong in a body is answered 400
                if secured and path != "/healthz":
                    operation["responses"]["401"] = REFUSED
                    operation["security"] = [{"key": []}]
        schemas = found["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        if secured:
            found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = found
    return app.openapi_schema
