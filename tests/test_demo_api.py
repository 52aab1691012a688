"""The demo for programs: `gradio_client`, the queue, and what a request may not do."""

import asyncio
import re

import httpx
import pytest
from PIL import Image

import vargen

pytest.importorskip("gradio", reason="the demo is an extra: pip install 'vargen[demo]'")

from demo_served import serving, waited
from gradio_client import Client

from vargen.demo.guard import Guard


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("gradio")) as found:
        yield found


@pytest.fixture(scope="module")
def client(served, tmp_path_factory):
    return Client(served[1], verbose=False, analytics_enabled=False, download_files=str(tmp_path_factory.mktemp("got")))


def test_client_draws_what_the_library_draws(client):
    files, trace = client.predict("pocket-llamagen", "canyon", "sjd-coupled:window=16", 5, 2, "", api_name="/draw")
    out = vargen.load("pocket-llamagen", device="cpu")(
        "canyon", method="sjd-coupled:window=16", num_images_per_prompt=2, seed=5
    )
    assert len(files) == 2
    for index, (name, image) in enumerate(zip(files, out.images, strict=True)):
        with Image.open(name) as found:
            assert found.format == "PNG"
            assert found.tobytes() == image.tobytes()
            assert found.info["seed"] == str(5 + index)
    assert trace["forwards"] == out.trace.forwards
    assert trace["seeds"] == [5, 6]


def test_client_says_options(client):
    law = {"guidance_scale": 1.5, "top_k": 40}
    files, trace = client.predict("pocket-var", "beach", "", 5, 1, "", "guidance_scale=1.5&top_k=40", api_name="/draw")
    with Image.open(files[0]) as found:
        assert found.tobytes() == vargen.load("pocket-var", device="cpu")("beach", seed=5, **law).images[0].tobytes()
    assert trace["settings"] | law == trace["settings"]


def test_client_draws_sizes_and_watches(client):
    job = client.submit("pocket-lumina", "a red boat in a harbour", "", 1, 1, "96x64", api_name="/draw")
    files, _ = job.result(timeout=60)
    with Image.open(files[0]) as found:
        assert found.size == (96, 64)
        assert found.info["method"] == "sjd-exact:window=16"
    settled = [step[1]["settled"] for step in job.outputs()[:-1]]
    assert settled == sorted(settled)
    assert len(settled) >= 2


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("pocket-llamagen", "beach", "sjd:window=999", 0, 1, ""), "got window 999, expected at most 256 here"),
        (("pocket-llamagen", "beach", "speculative:drafter=var-d30", 0, 1, ""), "unknown drafter 'var-d30'"),
        (("var-d30", "beach", "var", 0, 1, ""), "unknown model 'var-d30'"),
        (("pocket-mar", "beach", "mar", 0, 1, "", "top_k=3"), "unknown option 'top_k'"),
        (("pocket-mar", "beach", "mar", 0, 9, ""), "got 9 images, expected 1 to 4"),
        (("pocket-llamagen", "beach", "ar", "five", 1, ""), "got seed 'five', expected a whole number"),
        (("pocket-llamagen", "beach", "ar", 2.5, 1, ""), "got seed 2.5, expected a whole number"),
        (("pocket-llamagen", "beach", "ar", 0, [1], ""), "got number of images [1], expected a whole number"),
        (("pocket-llamagen", "beach", "ar", 10**400, 1, ""), "000...000"),
        (("pocket-llamagen", "beach", "ar", 0, 1, "", f"cfg_interval={10**20}"), "got cfg_interval 1000"),
        (("pocket-llamagen", "beach", "ar", 0, 1, "", "top_k=" + "x" * 999), "xxx', expected a whole number"),
        (("pocket-lumina", "b" * 400, "ar", 0, 1, ""), "got a prompt of 400 characters, expected at most 300"),
    ],
)
def test_client_gets_errors_as_sentences(client, served, given, sentence):
    with pytest.raises(Exception, match=re.escape(sentence)) as caught:
        client.predict(*given, api_name="/draw")
    assert "Traceback" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert not served[0].running


def test_the_queue_is_short_and_one_decode_runs_at_a_time(client, served):
    studio, _ = served
    slow = ("pocket-mar", "beach", "mar:iterations=256:steps=50", 0, 4, "")
    first = client.submit(*slow, api_name="/draw")
    waited(lambda: len(studio.running) == 1)
    (run,) = studio.running
    others = [client.submit("pocket-var", "beach", "var", 0, 1, "", api_name="/draw") for _ in range(8)]
    waited(lambda: sum(job.done() for job in others) >= 5)  # three wait, the others are sent away
    assert len(studio.running) == 1
    errors = [job.exception() for job in others if job.done()]
    assert all(error and "queue" in str(error).lower() for error in errors), errors
    assert first.cancel()
    waited(lambda: run not in studio.running)
    assert not run.done
    waited(lambda: all(job.done() for job in others))
    assert sum(job.exception() is None for job in others) == 3
    waited(lambda: not studio.running)


def test_nobody_sends_much_or_uploads(served):
    _, url = served
    big = {"data": ["x" * (1 << 17)], "fn_index": 0, "session_hash": "me"}
    assert httpx.post(f"{url}/gradio_api/queue/join", json=big).status_code == 413
    found = httpx.post(f"{url}/gradio_api/upload", files={"files": ("a.txt", b"some text")})
    assert found.status_code >= 400
    assert httpx.get(f"{url}/gradio_api/file=/etc/passwd").status_code == 403


class Sent(list):
    async def __call__(self, message):
        self.append(message)


def call(guard: Guard, headers: dict[bytes, bytes], *bodies: bytes) -> Sent:
    sent, parts = Sent(), list(bodies)

    async def receive():
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    asyncio.run(guard({"type": "http", "headers": list(headers.items())}, receive, sent))
    return sent


def test_guard_refuses_large_bodies_and_too_many_requests():
    seen = []

    async def app(scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            seen.append(message["body"])
            if not message["more_body"]:
                break
        await send({"type": "done"})

    guard = Guard(app, most=10, connections=1)
    assert call(guard, {b"content-length": b"11"})[0]["status"] == 413
    assert call(guard, {b"content-length": b"many"})[0]["status"] == 413
    assert not seen
    assert call(guard, {b"content-length": b"10"}, b"x" * 10)[0]["type"] == "done"
    call(guard, {}, b"a" * 6, b"b" * 6, b"c")  # says nothing of its length: hung up behind ten bytes
    assert seen == [b"x" * 10, b"a" * 6]
    assert call(Guard(app, connections=0), {})[0]["status"] == 503
