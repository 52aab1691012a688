"""What the server's OpenAPI schema says beyond what FastAPI finds out by itself."""

from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from vargen.server.guard import OPEN
from vargen.server.schema import EditRequest, ErrorResponse, ImageResponse

BINARY = {"schema": {"type": "string", "format": "binary"}}
IMAGES_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ImageResponse,
        "description": "Images: JSON, a picture or a zip of several (response_format file), or events (stream).",
        "content": {
            "image/png": BINARY,
            "image/jpeg": BINARY,
            "image/webp": BINARY,
            "application/zip": BINARY,
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
}
FILES = {"image": {"type": "array", "items": BINARY["schema"]}, "mask": BINARY["schema"]}


def form() -> dict[str, Any]:
    """The body of an edit."""
    schema = EditRequest.model_json_schema()
    schema["properties"] = FILES | schema["properties"]
    return {"content": {"multipart/form-data": {"schema": schema | {"required": ["image"]}}}, "required": True}


FORM = form()
WORDS = {
    400: "The request cannot be drawn as it is",
    404: "No such model",
    408: "The body took too long to arrive",
    413: "The body is too large",
    415: "The body is of another type",
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
                if secured and path not in OPEN:
                    operation["responses"]["401"] = REFUSED
                    operation["security"] = [{"key": []}]
        schemas = found["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        if secured:
            found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = found
    return app.openapi_schema


STYLE = "body{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}"
STYLE += "td,th{text-align:left;padding:.2em 1em .2em 0;vertical-align:top}"


def page(schema: dict[str, Any]) -> str:
    """The schema as a page that loads nothing from elsewhere."""
    parts = [f"<h1>{escape(schema['info']['title'])} {escape(schema['info']['version'])}</h1>"]
    for path, operations in schema["paths"].items():
        for verb, operation in operations.items():
            parts.append(
                f"<h2><code>{verb.upper()} {escape(path)}</code></h2><p>{escape(operation['description'])}</p>"
            )
    for name, found in schema["components"]["schemas"].items():
        parts.append(f"<h2>{escape(name)}</h2><p>{escape(found.get('description', ''))}</p><table>")
        for key, field in found.get("properties", {}).items():
            parts.append(f"<tr><th>{escape(key)}<td>{escape(_kind(field))}<td>{escape(field.get('description', ''))}")
        parts.append("</table>")
    body = "\n".join([*parts, '<p>As JSON: <a href="openapi.json">openapi.json</a></p>'])
    return f"<!doctype html><html lang=en><meta charset=utf-8><title>vargen</title><style>{STYLE}</style>{body}</html>"


def _kind(field: dict[str, Any]) -> str:
    """What a field takes, in a few words."""
    if "anyOf" in field:
        return " or ".join(_kind(one) for one in field["anyOf"] if one.get("type") != "null")
    if "enum" in field or "const" in field:
        return ", ".join(map(str, field.get("enum", [field.get("const")])))
    if "items" in field:
        return f"list of {_kind(field['items'])}"
    return field["$ref"].split("/")[-1] if "$ref" in field else str(field.get("type", "anything"))
