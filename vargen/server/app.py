"""The HTTP side: routes in OpenAI's shape over a desk, whatever engine draws behind it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, ClassVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import HTMLResponse, PlainTextResponse, Response

import vargen
from vargen.core.preset import Preset
from vargen.server import answers, edits, reading
from vargen.server.desk import Desk, Engine, Job, described
from vargen.server.errors import Refusal, answer
from vargen.server.guard import EDITS, HUNG_UP, IMAGES, Guard, HungUp
from vargen.server.metrics import Metrics
from vargen.server.openapi import ERRORS, FORM, IMAGES_ANSWER, page, schema_of
from vargen.server.options import Options
from vargen.server.orders import Card, Done, Order
from vargen.server.schema import EditRequest, Health, ImageRequest, Model, ModelList
from vargen.server.uploads import Uploads

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


class Service:
    """What the routes share."""

    desk_type: ClassVar[type[Desk]] = Desk

    def __init__(self, engine: Engine, options: Options) -> None:
        self.engine, self.options, self.metrics = engine, options, Metrics()
        limits = {"batch_size": options.batch_size, "batch_wait": options.batch_wait, "max_queue": options.max_queue}
        self.desk, self._uploads = self.desk_type(engine, self.metrics, **limits), Uploads(options.max_queue)

    async def edit(self, request: Request) -> Response:
        """Draw what a form asks for."""
        async with request.form(max_files=edits.MOST + 1, max_fields=len(EditRequest.model_fields)) as form:
            fields, files = edits.fields(form)
            try:
                body = EditRequest.model_validate(fields)
            except ValidationError as error:
                raise _refusal(error.errors()[0], EditRequest) from None
            await self.meet(body.model or self.options.names[0])

            def read() -> Order:
                return reading.read(body, self.engine.cards, self.options, edits.read(files, self.options.max_pixels))

            until = time.monotonic() + self._seconds(body)
            try:
                order = await self._uploads.run(lambda wanted: _unless_gone(wanted, request), read, until)
            except HungUp:
                return Response(status_code=HUNG_UP)
        return await self._draw(body, order, request, until)

    async def generate(self, body: ImageRequest, request: Request) -> Response:
        """Draw what a body asks for."""
        await self.meet(body.model or self.options.names[0])
        order = reading.read(body, self.engine.cards, self.options)
        return await self._draw(body, order, request, time.monotonic() + self._seconds(body))

    def _seconds(self, body: ImageRequest) -> float:
        return min(body.deadline or self.options.deadline, self.options.deadline)

    async def _draw(self, body: ImageRequest, order: Order, request: Request, until: float) -> Response:
        self._uploads.check(order)
        job = self.desk.place(order, until - time.monotonic())
        self._uploads.hold(order)
        details, streamed = request.scope["state"]["details"], False
        try:
            told = answers.Told.of(order, reading.said_size(order, self.engine.cards))
            first = await _unless_gone(job.next(), request)
            if isinstance(first, Done) and not body.stream:
                return answers.whole(told, first, body.response_format or "b64_json")
            streamed = True
            return answers.Events(answers.events(told, first, job), lambda: self._leave(job, details))
        except HungUp:
            return Response(status_code=HUNG_UP)
        finally:
            if not streamed:
                self._leave(job, details)

    async def meet(self, *names: str) -> None:
        """Know what models are drawn with; workers that load all of them when they start have said so."""

    def _leave(self, job: Job, details: dict[str, Any]) -> None:
        details.update(described(job))
        if not job.answered:
            details["status"] = HUNG_UP
        if self.options.log_prompts or isinstance(job.order.subject, int):
            details["subject"] = job.order.subject
        self._uploads.free(job.order)
        self.desk.leave(job)

    def health(self) -> Health:
        """Whether requests are taken."""
        ready = self.engine.ready
        self.metrics.workers.set(ready)
        return Health(status="stopping" if not self.desk.open else "ok" if ready else "not ready", workers=ready)

    def models(self) -> dict[str, Any]:
        """The models that are served, and what can be asked of each."""
        cards = self.engine.cards
        presets, named = self.options.presets, [name for name in self.options.names if name in cards]
        return {"object": "list", "data": [_model(cards[name], presets[name]) for name in named]}

    def model(self, name: str) -> dict[str, Any]:
        """One of them. Refusal where there is none of that name."""
        return _model(reading.card(name, self.engine.cards), self.options.presets[name])


def _model(card: Card, preset: Preset) -> dict[str, Any]:
    return {
        "id": card.model,
        "object": "model",
        "created": 0,
        "owned_by": "vargen",
        "summary": preset.summary,
        "takes": "class" if preset.classes else "prompt",
        "classes": list(preset.names()),
        "edits": card.edits,
        "sizes": [f"{wide}x{high}" for high, wide in card.sizes],
        "presets": list(preset.recipes),
        "method": preset.method,
        "methods": reading.methods(preset, card),
    }


async def _unless_gone(wanted: Any, request: Request) -> Any:
    """What `wanted` gives. HungUp where the client goes first."""
    waiting = asyncio.ensure_future(wanted)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise HungUp
        return waiting.result()
    finally:
        waiting.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def build(service: Service, key: str | None, lifespan: Lifespan | None = None) -> FastAPI:
    """The application. `lifespan` surrounds its life; the service's desk works within it."""

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        async with service.desk.working():
            yield

    app = FastAPI(
        title="vargen", version=vargen.__version__, lifespan=lifespan or living, docs_url=None, redoc_url=None
    )
    app.openapi = lambda: schema_of(app, secured=key is not None)  # type: ignore[method-assign]
    _routes(app, service)
    _complaints(app)
    most = {IMAGES: service.options.max_body, EDITS: service.options.max_upload}
    app.add_middleware(Guard, key=key, most=most, metrics=service.metrics)
    if service.options.allowed_origins:  # before the guard: a browser asks first, and without a key
        origins, headers = list(service.options.allowed_origins), ["authorization", "content-type"]
        told: dict[str, Any] = {
            "allow_methods": ["GET", "POST"],
            "allow_headers": headers,
            "expose_headers": ["x-request-id"],
        }
        app.add_middleware(CORSMiddleware, allow_origins=origins, **told)
    return app


def _routes(app: FastAPI, service: Service) -> None:
    @app.post(IMAGES, responses=IMAGES_ANSWER | ERRORS)
    async def generations(body: ImageRequest, request: Request) -> Response:
        """Draw images of a class or of a prompt."""
        return await service.generate(body, request)

    @app.post(EDITS, responses=IMAGES_ANSWER | ERRORS, openapi_extra={"requestBody": FORM})
    async def edit(request: Request) -> Response:
        """Edit pictures: repaint one under a mask, or draw what a prompt says of them."""
        return await service.edit(request)

    @app.get("/v1/models", response_model=ModelList)
    async def models() -> Response:
        """The models that are served, and what can be asked of each."""
        await service.meet(*service.options.names)
        return answer(service.models())

    @app.get("/v1/models/{model:path}", response_model=Model, responses={404: ERRORS[404]})
    async def model(model: str) -> Response:
        """A model that is served, and what can be asked of it."""
        await service.meet(model)
        return answer(service.model(model))

    @app.get("/docs", response_class=HTMLResponse)
    async def docs() -> Response:
        """This, to be read in a browser."""
        return HTMLResponse(page(app.openapi()))

    told: dict[str, Any] = {"response_model": Health, "responses": {503: {"model": Health, "description": "Not now"}}}

    @app.get("/health", **told)
    @app.get("/healthz", **told)
    async def healthz() -> Response:
        """Whether requests are taken: 200, or 503 while the server starts or stops."""
        health = await asyncio.to_thread(service.health)
        return answer(health.model_dump(), 200 if health.status == "ok" else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        await asyncio.to_thread(service.health)
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _refusal(first: Any, body: type[ImageRequest], within: int = 0) -> Refusal:
    """Pydantic's first complaint about a body, which says where: behind so many names of what the body is within."""
    where = [str(part) for part in first["loc"][within:] if isinstance(part, str)][:1]
    if first["type"] == "json_invalid" or not where:
        return Refusal(400, f"the body is no JSON object as expected: {first['msg']}", code="invalid_json")
    name, known = where[0][:100], ", ".join(field.alias or key for key, field in body.model_fields.items())
    said = f"expected fields among {known}" if first["type"] == "extra_forbidden" else first["msg"]
    return Refusal(400, f"{name}: {said}", param=name, code=first["type"])


def _complaints(app: FastAPI) -> None:
    """Everything that is wrong is said in OpenAI's shape."""

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> Response:
        return error.response

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return _refusal(error.errors()[0], ImageRequest, within=1).response

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        response = Refusal(error.status_code, str(error.detail)).response
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return Refusal(500, "something is wrong with the server").response
