"""The server as it runs, its processes and all, on models that ship: load, hang-ups, abuse, a crash, and its end.

One server lives as long as this module; the tests that end it come last. Images must be those of `vargen sample`: files
are compared byte for byte. A draw of these methods is turned over by what else is in its batch with a probability below
1e-5 (none of the images in docs/serving.md was), so that a false alarm is expected once in thousands of runs.
"""

import asyncio
import base64
import contextlib
import io
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("litserve", reason="the server is an extra: pip install 'vargen[serve]'")

import httpx
import schemathesis
from hypothesis import HealthCheck, given, settings
from PIL import Image
from schemathesis import GenerationMode, checks
from schemathesis.core.result import Ok
from served import HEADERS, IMAGES, KEY, LONG, MODELS, ROOT, Running, descriptors, end, soon

from vargen.commands import sample
from vargen.server.guard import EDITS

DRAWN = {IMAGES, EDITS}
PATHS = (*DRAWN, "/v1/models", "/v1/models/{model}", "/docs", "/health", "/healthz", "/metrics")
PROMPTS = ("a red lighthouse at night", "snow", "a harbour with three boats under a full moon")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


@pytest.fixture(scope="module")
def server():
    running = Running()
    yield running
    if running.process.poll() is None:
        running.process.kill()
    for pid in running.pids:
        end(pid)


def bodies():
    """36 requests of three models, four methods and three sizes."""
    made = [{"model": "pocket-var", "class": i % 10, "seed": 10 * i, "n": 1 + i % 2} for i in range(18)]
    sizes = ("64x64", "96x64", "64x96")
    for i in range(9):
        made.append({"model": "pocket-lumina", "prompt": PROMPTS[i % 3], "size": sizes[i // 3], "seed": i})
        made[-1]["method"] = "zipar:window=4"
    made += [{"model": "pocket-llamagen", "class": i, "seed": i, "method": "zipar:window=4"} for i in range(7)]
    made += [{"model": "pocket-llamagen", "prompt": "beach", "seed": i} for i in range(2)]
    for i in (0, 20, 30):
        made[i] |= {"stream": True, "partial_images": 1}
    return made


def drawn(body, folder):
    """The files that `vargen sample` writes for a request's images."""
    method = body.get("method") or {"pocket-var": "var"}.get(body["model"], "sjd-exact:window=16")
    out, count = folder / f"{body['model']}-{body['seed']}.png", body.get("n", 1)
    subject = ["--prompt", body["prompt"]] if body["model"] == "pocket-lumina" else []
    subject = subject or ["--class", str(body.get("class", body.get("prompt")))]
    wide, high = body.get("size", "64x64").split("x")
    size = ["--height", high, "--width", wide] if body["model"] == "pocket-lumina" else []
    rest = ["--seed", str(body["seed"]), "--num-images", str(count), "--batch-size", "1", "--device", "cpu"]
    sample.command(["--model", body["model"], "--method", method, *subject, *size, *rest, "--out", str(out)])
    return [(out if count == 1 else out.with_name(f"{out.stem}-{i}.png")).read_bytes() for i in range(count)]


def images_of(answer):
    """The images of an answer, streamed or not."""
    if answer.headers["content-type"].startswith("text/event-stream"):
        said = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
        assert any(one["type"] == "image_generation.partial_image" for one in said)
        data = [one for one in said if one["type"] == "image_generation.completed"]
    else:
        data = answer.json()["data"]
    return [base64.b64decode(one["b64_json"]) for one in data]


async def crowd(url):
    """64 requests at a time: 36 that are in order, 10 that hang up, 18 that are wrong in one way or another."""
    limits = httpx.Limits(max_connections=None)
    json_of = {**HEADERS, "content-type": "application/json"}
    async with httpx.AsyncClient(base_url=url, timeout=LONG, limits=limits, headers=HEADERS) as client:

        async def hang_up(i):
            try:
                body = {"class": i % 10, "model": MODELS[i % 2], "n": 8, "stream": i % 3 == 0}
                await client.post(IMAGES, json=body, timeout=0.05 + 0.02 * i)
            except httpx.TimeoutException:
                return "hung up"

        good = [client.post(IMAGES, json=body) for body in bodies()]
        gone = [hang_up(i) for i in range(10)]
        bad = [client.post(IMAGES, content=b" " * 5000, headers=json_of) for _ in range(4)]
        bad += [client.post(IMAGES, json={}, headers={"authorization": f"Bearer {i}"}) for i in range(4)]
        bad += [
            client.post(IMAGES, content=text, headers=json_of) for text in (b"{", b"\x00", b"[1", b"nul", b"\xff{}")
        ]
        bad += [client.post(IMAGES, json={"class": 0, "n": n}) for n in (0, 11, "x", 1.5, -1)]
        answers = await asyncio.gather(*good, *gone, *bad)
    return answers[:36], answers[36:46], [getattr(answer, "status_code", None) for answer in answers[46:]]


@pytest.fixture(scope="module")
def answers(server):
    began = time.monotonic()
    answers = asyncio.run(crowd(server.url))
    print(f"64 requests in {time.monotonic() - began:.1f} s")
    return answers


def test_every_request_in_order_is_answered_in_a_crowd(server, answers):
    good, gone, bad = answers
    assert [answer.status_code for answer in good] == [200] * 36
    assert gone.count("hung up") >= 8  # the others were answered first
    assert bad == [413] * 4 + [401] * 4 + [400] * 10
    for body, answer in zip(bodies(), good, strict=True):
        assert len(images_of(answer)) == body.get("n", 1)


def test_they_were_drawn_together_and_nothing_leaks(server, answers):
    busy = ("vargen_batches_running", "vargen_requests_waiting")
    assert soon(lambda: not any(server.metrics()[name] for name in busy))
    found = server.metrics()
    assert found['vargen_requests_total{status="200"}'] >= 36
    assert not any('status="5' in name for name in found)
    assert found["vargen_batch_rows_sum"] / found["vargen_batch_rows_count"] > 2.5
    front = [pid for pid in server.children() if descriptors(pid)]
    before = {pid: descriptors(pid) for pid in front}
    for _ in range(2):
        asyncio.run(abuse(server.url))
    assert soon(lambda: all(descriptors(pid) <= count + 3 for pid, count in before.items())), before
    assert sorted(server.children()) == server.pids


async def abuse(url):
    """40 clients that ask and go."""

    async def one(client, i):
        with contextlib.suppress(httpx.TimeoutException):
            await client.post(IMAGES, json={"class": i % 10, "model": "pocket-var", "stream": i % 2 == 0}, timeout=0.02)

    async with httpx.AsyncClient(base_url=url, headers=HEADERS, limits=httpx.Limits(max_connections=None)) as client:
        await asyncio.gather(*(one(client, i) for i in range(40)))


@pytest.mark.parametrize("index", [1, 20, 25, 35], ids=lambda i: f"{bodies()[i]['model']}-{i}")
def test_files_are_those_of_vargen_sample(answers, tmp_path, index):
    assert images_of(answers[0][index]) == drawn(bodies()[index], tmp_path)


def test_an_image_alone_is_the_one_from_the_crowd(server, answers):
    for index in (0, 28):
        body = bodies()[index] | {"stream": False, "partial_images": None}
        assert images_of(server.post(body)) == images_of(answers[0][index])


SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much]
CHECKS = [
    check
    for check in checks.CHECKS.get_all()
    if check.__name__
    in (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "negative_data_rejection",
        "ignored_auth",
    )
]


@pytest.mark.parametrize("mode", GenerationMode)
def test_the_server_is_as_its_schema_says(server, mode):
    schema, asked = schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=HEADERS), []
    for operation in (found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)):
        if mode is GenerationMode.NEGATIVE and operation.path not in DRAWN:
            continue  # there is nothing to get wrong

        @settings(
            max_examples=25,
            deadline=None,
            suppress_health_check=SLOW,
            derandomize=True,
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def play(case):
            if mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
                case.body["deadline"] = 0.5  # what is in order by chance need not be drawn to the end
            case.call_and_validate(checks=CHECKS, headers=HEADERS, timeout=LONG)
            asked.append(case)

        play()
    assert len(asked) >= 25
    assert {case.operation.path for case in asked} == (set(PATHS) if mode is GenerationMode.POSITIVE else DRAWN)


def test_the_curls_of_the_page(server):
    page = (ROOT / "docs" / "serving.md").read_text()
    found = re.findall(r"-d '(\{.*?\})'", page, re.DOTALL)
    assert len(found) >= 3
    for body in map(json.loads, found):
        assert server.post(body).status_code == 200
    fields = re.search(r"edits -F (.*)$", page, re.MULTILINE)
    assert fields is not None
    named = dict(part.split("=", 1) for part in fields[1].split(" -F "))
    beach, mask = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (64, 64), "orange").save(beach, "PNG")
    Image.new("L", (64, 64), "white").save(mask, "PNG")
    files = {name: (named.pop(name), held.getvalue()) for name, held in (("image", beach), ("mask", mask))}
    answer = httpx.post(f"{server.url}{EDITS}", data=named, files=files, headers=HEADERS, timeout=LONG)
    assert answer.json()["data"][0]["seed"] == 3


def test_a_worker_that_dies_is_replaced_and_its_requests_are_drawn(server):
    worker, answer = server.worker(), []
    asking = threading.Thread(
        target=lambda: answer.append(server.post({"model": "pocket-llamagen", "class": 1, "n": 8}))
    )
    asking.start()
    assert soon(lambda: server.metrics()["vargen_batches_running"])
    os.kill(worker, signal.SIGKILL)
    asking.join()
    assert answer[0].status_code == 200  # nothing was sent yet: it is drawn anew
    assert server.post({"model": "pocket-var", "class": 1}).status_code == 200
    assert server.worker() != worker
    server.pids = sorted(server.children())


def test_what_comes_before_a_body_is_bounded(server):
    """Whoever has no key cannot fill the memory with headers, or with the address."""
    for head in ("GET /healthz HTTP/1.1\r\nHost: a\r\nX-Long: ", "GET /healthz?"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=LONG) as line:
            line.sendall(head.encode())
            answer = b""
            with contextlib.suppress(ConnectionError):
                for _ in range(64):
                    line.sendall(b"x" * 65536)
                answer = line.recv(100)
            assert b" 200 " not in answer
    assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_it_stops_when_what_was_begun_is_done(server):
    answers, before = [], server.rows()
    ask = {"model": "pocket-llamagen", "class": 1}
    asking = [threading.Thread(target=lambda s=s: answers.append(server.post(ask | {"seed": s}))) for s in range(2)]
    for thread in asking:
        thread.start()
    assert soon(lambda: server.rows() + server.metrics()["vargen_requests_waiting"] >= before + 2)
    server.process.send_signal(signal.SIGTERM)
    assert soon(lambda: httpx.get(f"{server.url}/healthz").json()["status"] == "stopping")
    late = server.post(ask)
    assert (late.status_code, late.json()["error"]["code"]) == (503, "stopping")
    for thread in asking:
        thread.join()
    assert [answer.status_code for answer in answers] == [200, 200]
    assert server.process.wait(timeout=LONG) == 0, server.lines[-4:]
    assert not server.children()
    # What is nobody's child any more ends by itself.
    assert soon(lambda: not any(Path(f"/proc/{pid}").exists() for pid in server.pids))


def test_the_log_is_json_and_has_no_prompts(server, answers):
    assert server.process.poll() is not None
    lines = [json.loads(line) for line in server.lines if line.startswith("{")]
    assert len(lines) > 64
    assert not any(prompt in line for line in server.lines for prompt in PROMPTS if len(prompt) > 5)
    assert not any(KEY in line or "Traceback" in line for line in server.lines)


def test_it_ends_where_the_process_that_answers_has_died():
    """So that whoever watches it can start another; nothing is left behind."""
    other = Running(("pocket-llamagen-small",))
    try:
        pids = other.children()
        os.kill(other.front(), signal.SIGKILL)
        assert other.process.wait(timeout=LONG) == 2
        assert soon(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
        assert any("has died" in line for line in other.lines)
    finally:
        other.process.kill()
