"""The application over a worker in a thread: what each request is answered, on small random models."""

import asyncio
import base64
import io
import json
import time
import zipfile
from dataclasses import replace
from typing import Any

import pytest
import small
from PIL import Image

pytest.importorskip("litserve", reason="the server is an extra: pip install 'vargen[serve]'")

import httpx
from served import IMAGES, ask, limits, pictures, pipes, play

import vargen
from vargen.core import registry
from vargen.core.png import read_texts
from vargen.server import logs
from vargen.server.guard import EDITS
from vargen.server.metrics import Histogram
from vargen.server.orders import Batch, Done, Order
from vargen.server.painter import Painter
from vargen.server.threads import application


@pytest.fixture(autouse=True)
def _small_models(monkeypatch):
    for name in ("small", "small-scales"):
        monkeypatch.setitem(registry.MODELS, name, "small:PRESETS")
    monkeypatch.setattr(logs, "start", lambda: None)


def test_an_answer_in_openais_shape_and_the_same_images_as_the_pipeline():
    answer, auto = ask(
        {"class": "b", "n": 2, "seed": 7, "method": "ar"}, {"prompt": "c", "quality": "auto", "user": "me"}
    )
    assert answer.status_code == 200
    said = answer.json()
    shape = {"size": "12x12", "quality": "auto", "background": "opaque", "output_format": "png"}
    assert set(said) == {"created", "model", "method", "data", "usage", *shape}
    assert {key: said[key] for key in shape} == shape
    read = {"input_tokens": 2, "input_tokens_details": {"text_tokens": 2, "image_tokens": 0}}
    assert said["usage"] == {**read, "output_tokens": 72, "total_tokens": 74}
    assert (said["model"], said["method"], said["size"]) == ("small", "ar", "12x12")
    assert [data["seed"] for data in said["data"]] == [7, 8]
    for png, seed in zip(pictures(answer), (7, 8), strict=True):
        found = Image.open(io.BytesIO(png))
        assert found.text["seed"] == str(seed)  # type: ignore[attr-defined]
        drawn = pipes()["small"](["b"], method="ar", seed=seed)
        assert found.tobytes() == drawn.images[0].tobytes()
    again = ask({"class": 2, "seed": auto.json()["data"][0]["seed"]})[0]
    assert again.json()["method"] == "sjd-exact:window=16"
    assert pictures(again) == pictures(auto)


def test_an_image_does_not_hang_on_its_company():
    bodies = [
        {"class": i % 5, "n": 1 + i % 3, "seed": i, "method": method}
        for i in range(6)
        for method in ("sjd-coupled", "zipar:window=3", "sjd-exact")
    ]
    together = ask(*bodies)
    assert [answer.status_code for answer in together] == [200] * 18
    assert together[0].json()["method"] == "sjd-coupled:window=16"  # never auto
    for body, answer in list(zip(bodies, together, strict=True))[::5]:
        assert pictures(ask(body)[0]) == pictures(answer)


def test_nobody_is_told_what_another_asked_for():
    """Of a batch with negative prompts of several clients each file holds its own, as where it is drawn alone."""
    painter = Painter({"pocket-lumina": vargen.load("pocket-lumina", device="cpu")})
    asked = Order("pocket-lumina", "sjd-exact:window=16", None, (), None, None, "", (1,))
    texts = [("a red boat", ""), ("a hut", "a secret"), ("a tree", "another")]
    orders = [replace(asked, subject=text, negative=no) for text, no in texts]

    def files(*orders):
        events = painter.paint(Batch(orders, tuple(range(len(orders)))), lambda ticket: True)
        return {event.order: event.pictures[0] for event in events if isinstance(event, Done)}

    together = files(*orders)
    for index, text in enumerate(texts):
        said = read_texts(Image.open(io.BytesIO(together[index])))
        assert (said["prompt"], said.get("negative_prompt", "")) == text
    assert [files(order)[0] for order in orders[:2]] == [together[0], together[1]]


def test_files():
    one, several = ask(
        {"class": 0, "response_format": "file"}, {"class": 0, "response_format": "file", "n": 2, "seed": 5}
    )
    assert one.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(one.content)).size == (12, 12)
    assert several.headers["content-type"] == "application/zip"
    assert zipfile.ZipFile(io.BytesIO(several.content)).namelist() == ["0-small-5.png", "1-small-6.png"]


@pytest.mark.parametrize(("kind", "suffix"), [("png", "png"), ("jpeg", "jpg"), ("webp", "webp")])
def test_formats(kind, suffix):
    body = {"class": 0, "seed": 5, "output_format": kind}
    file, said, streamed = ask(
        {**body, "response_format": "file"}, body, {**body, "stream": True, "partial_images": 1, "method": "ar"}
    )
    assert file.headers["content-type"] == f"image/{kind}"
    assert f'filename="small-5.{suffix}"' in file.headers["content-disposition"]
    assert said.json()["output_format"] == kind
    assert pictures(said) == [file.content]
    found = Image.open(io.BytesIO(file.content))
    assert found.format == kind.upper()
    assert read_texts(found)["seed"] == "5"
    shown = [Image.open(io.BytesIO(base64.b64decode(data["b64_json"]))).format for _, data in events(streamed)]
    assert shown == [kind.upper()] * 2
    if kind != "png":
        coarse = ask({**body, "output_compression": 5})[0]
        assert pictures(coarse)[0] != file.content


def test_the_nearest_size_is_drawn_unless_told_otherwise():
    for answer in ask({"class": 0, "size": "1024x1024"}, {"class": 0, "size": "1x99999", "model": "small-scales"}):
        assert answer.status_code == 200
        size = "x".join(map(str, Image.open(io.BytesIO(pictures(answer)[0])).size))
        assert answer.json()["size"] == size


def test_what_openais_clients_send_is_taken():
    plain = {"class": 0, "seed": 1}
    more = {"quality": "high", "style": "vivid", "moderation": "low", "background": "opaque", "user": "me"}
    first, second = ask(plain, {**plain, **more, "size": "auto", "output_format": "png", "output_compression": 100})
    assert pictures(first) == pictures(second)


def events(answer):
    parts = [part.split("\n") for part in answer.text.split("\n\n") if part and not part.startswith(":")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in parts]


def test_a_stream_has_pictures_on_their_way_and_ends_with_the_images():
    body = {"class": 1, "n": 2, "seed": 3, "method": "ar"}
    streamed, whole, none = ask(
        {**body, "stream": True, "partial_images": 3}, body, {**body, "stream": True, "partial_images": 0}
    )
    assert streamed.headers["content-type"].startswith("text/event-stream")
    found = events(streamed)
    partial = [said for name, said in found if name == "image_generation.partial_image"]
    assert [(said["index"], said["partial_image_index"]) for said in partial] == [
        (image, number) for number in range(3) for image in range(2)
    ]
    done = [said for name, said in found if name == "image_generation.completed"]
    assert [base64.b64decode(said["b64_json"]) for said in done] == pictures(whole)
    assert all(said["type"] == name for name, said in found)
    assert [name for name, _ in events(none)] == ["image_generation.completed"] * 2
    assert len({said["b64_json"] for said in partial}) == 6


def test_presets_laws_and_sizes():
    plain, sized, law = ask(
        {"class": 0, "preset": "plain", "seed": 1},
        {"class": 0, "preset": "plain", "size": "12x12", "seed": 1},
        {"class": 0, "guidance_scale": 1, "temperature": 0.5, "top_k": 3, "seed": 1, "model": "small-scales"},
    )
    assert [Image.open(io.BytesIO(pictures(answer)[0])).size for answer in (plain, sized)] == [(20, 20), (12, 12)]
    assert [answer.json()["size"] for answer in (plain, sized)] == ["20x20", "12x12"]
    drawn = pipes()["small-scales"](0, guidance_scale=1, temperature=0.5, top_k=3, seed=1)
    assert Image.open(io.BytesIO(pictures(law)[0])).tobytes() == drawn.images[0].tobytes()


def slow_pipes():
    """A hundredth of a second a forward."""
    pipe: Any = small.pipeline()
    stream = pipe.stream

    def paced(**arguments):
        for partial in stream(**arguments):
            time.sleep(0.01)
            yield partial

    pipe.stream = paced
    return {"small": pipe}


@pytest.mark.parametrize("streamed", [False, True], ids=["before any picture", "after a picture"])
def test_a_client_that_hangs_up_is_forgotten(streamed):
    async def run():
        app = application(limits(), slow_pipes)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://server") as client,
        ):
            body = json.dumps({"class": 0, "n": 4, "method": "ar", "stream": streamed}).encode()
            sent, messages = [], [{"type": "http.request", "body": body}]

            async def receive():
                if messages:
                    return messages.pop(0)
                while not sent if streamed else "vargen_batches_running 1" not in (await client.get("/metrics")).text:
                    await asyncio.sleep(0.001)
                return {"type": "http.disconnect"}

            async def send(message):
                sent.append(message)

            headers = [(b"content-type", b"application/json")]
            scope = {"type": "http", "method": "POST", "path": IMAGES, "headers": headers, "query_string": b""}
            scope |= {"asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "root_path": ""}
            await app(scope, receive, send)
            next_one = await client.post(IMAGES, json={"class": 0})
            return next_one.status_code, (await client.get("/metrics")).text

    status, metrics = asyncio.run(run())
    assert status == 200
    assert 'vargen_requests_total{status="499"} 1' in metrics
    assert "vargen_abandoned_total 1" in metrics
    assert "vargen_requests_waiting 0" in metrics


def test_logs_have_no_prompt_unless_they_are_told_to(caplog):
    caplog.set_level("INFO", logger=logs.NAME)

    async def use(client):
        return await client.post(IMAGES, json={"prompt": "no such class"})

    assert play(use).status_code == 400
    ask({"prompt": "b", "n": 2})
    lines = [json.loads(logs.Lines().format(record)) for record in caplog.records]
    drawn = next(line for line in lines if line["event"] == "request" and line["status"] == 200)
    assert {"time", "level", "id", "path", "seconds", "waited", "batch", "model", "images"} <= set(drawn)
    assert (drawn["http_method"], drawn["method"]) == ("POST", "sjd-exact:window=16")
    assert (drawn["images"], drawn["batch"], drawn["subject"]) == (2, 2, 1)
    assert not any("no such class" in json.dumps(line) for line in lines)


def test_models_health_metrics_and_the_schema():
    async def use(client):
        await client.post(IMAGES, json={"class": 0, "n": 3})
        paths = ("/v1/models", "/healthz", "/metrics", "/openapi.json", "/v1/models/small", "/docs")
        return [await client.get(path) for path in paths]

    models, health, metrics, schema, one, page = play(use)
    assert one.json() == models.json()["data"][0]
    assert "POST /v1/images/generations" in page.text
    assert "<tr><th>guidance_scale<td>number<td>classifier-free guidance" in page.text
    assert "http" not in page.text.replace("https://example.org", "")  # nothing is loaded from elsewhere
    first = models.json()["data"][0]
    assert (first["id"], first["object"], first["takes"], first["sizes"]) == ("small", "model", "class", ["12x12"])
    assert "sjd-exact" in first["methods"]
    assert "speculative" not in first["methods"]  # no drafter is there
    assert health.json() == {"status": "ok", "workers": 1}
    assert 'vargen_batch_rows_bucket{le="2"} 0\nvargen_batch_rows_bucket{le="4"} 1' in metrics.text
    assert 'vargen_images_total{model="small"} 3' in metrics.text
    assert set(schema.json()["paths"]) == {
        *(IMAGES, EDITS, "/v1/models", "/v1/models/{model}", "/docs", "/health", "/healthz", "/metrics")
    }
    assert "422" not in schema.json()["paths"][IMAGES]["post"]["responses"]


def test_histograms_count_from_below():
    found = Histogram("h", "words", (1, 2))
    for value in (0.5, 1, 1.5, 9):
        found.observe(value)
    assert list(found.lines())[2:] == [
        'h_bucket{le="1"} 2',
        'h_bucket{le="2"} 3',
        'h_bucket{le="+Inf"} 4',
        "h_sum 12",
        "h_count 4",
    ]
