"""`vargen serve --ray` as it runs: two replicas that share models, one of which is killed under load, and the front.

One server lives as long as this module; its last test ends it. Ray is installed beside the environment (Makefile).
OpenAI's client asks again where it gets 500.
"""

import base64
import io
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openai
import pytest
from clusters import Cluster, needs_ray, needs_two
from PIL import Image
from served import KEY, LONG, ROOT, Running, end, soon

import vargen

MODELS = ("pocket-llamagen-small", "pocket-var-small", "pocket-lumina")
pytestmark = [needs_ray, needs_two]


class OnRay(Running):
    """The server, with a cluster of its own."""

    def __init__(self, cluster: Cluster) -> None:
        began = time.monotonic()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.lines, self.cluster = f"http://127.0.0.1:{self.port}", [], cluster
        words = [sys.executable, "scripts/serve.py", "--ray", "--port", str(self.port), "--device", "cpu"]
        words += ["--min-replicas", "2", "--max-replicas", "2", "--models-per-replica", "2", "--deadline", str(LONG)]
        words += [word for model in MODELS for word in ("--model", model)]
        pipes: dict[str, Any] = {"stderr": subprocess.PIPE, "text": True}
        env = {**cluster.environment, "VARGEN_API_KEY": KEY}
        self.process = subprocess.Popen(words, env=env, cwd=ROOT, **pipes)
        threading.Thread(target=self._read, daemon=True).start()
        assert soon(self.answers), self.lines
        print(f"started in {time.monotonic() - began:.1f} s")

    def replicas(self, part: str) -> list[int]:
        """The replicas of a deployment."""
        return [pid for pid, name in self.cluster.processes().items() if f"ServeReplica:vargen:{part}" in name]


@pytest.fixture(scope="module")
def server():
    cluster = Cluster()
    try:
        yield OnRay(cluster)
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=8, timeout=LONG)


def body(i):
    """A request: three of four of images that join a batch, and take 256 forwards; the fourth of images that do not."""
    asked = {"model": MODELS[0], "extra_body": {"seed": i, "method": "ar"}}
    return {"prompt": "harbour", **({"model": MODELS[1]} if i % 4 == 3 else asked)}


def picture(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


@pytest.fixture(scope="module")
def drawn():
    """What the pipelines draw, by model, subject and seed."""
    pipes = {name: vargen.load(name, device="cpu") for name in MODELS}

    def draw(model, subject, seed):
        pipes[model].set_progress_bar_config(disable=True)
        return np.asarray(pipes[model]([subject], seed=seed, batch_size=1).images[0])

    return draw


def test_models_are_loaded_when_they_are_asked_for_and_draw_what_the_pipelines_draw(server, client, drawn):
    """Three models where a replica keeps two."""
    subjects = dict(zip(MODELS, ("beach", "harbour", "a red lighthouse at night"), strict=True))
    assert [model.id for model in client.models.list()] == list(MODELS)
    for model, subject in [*subjects.items(), *subjects.items()]:
        answer = client.images.generate(model=model, prompt=subject, extra_body={"seed": 7})
        assert np.array_equal(picture(answer.data[0].b64_json), drawn(model, subject, 7)), model
    with pytest.raises(openai.BadRequestError, match="no such class"):
        client.images.generate(model=MODELS[1], prompt="no such class")
    with pytest.raises(openai.NotFoundError):
        client.images.generate(model="pocket-vax", prompt="beach")


def test_streams(client, drawn):
    events = list(
        client.images.generate(model=MODELS[0], prompt="snow", stream=True, partial_images=2, extra_body={"seed": 5})
    )
    assert [event.type.rpartition(".")[2] for event in events] == ["partial_image"] * 2 + ["completed"]
    assert np.array_equal(picture(events[-1].b64_json), drawn(MODELS[0], "snow", 5))


def taken(server):
    """Requests that are drawn, or were."""
    numbers = server.metrics()
    return numbers["vargen_batches_running"] + numbers.get('vargen_requests_total{status="200"}', 0)


def under_load(server, client, count, act):
    """Requests, an act once all of them are taken, and all answers."""
    before = taken(server)
    with ThreadPoolExecutor(count) as pool:
        asked = [pool.submit(lambda i=i: client.images.generate(**body(i))) for i in range(count)]
        assert soon(lambda: taken(server) >= before + count)
        act()
        return [one.result() for one in asked]


def test_all_is_answered_where_a_replica_is_killed_while_it_draws(server, client, drawn):
    killed = server.replicas("Drawer")[0]
    answers = under_load(server, client, 20, lambda: end(killed))
    assert killed not in server.cluster.processes()
    assert any("is lost" in line for line in server.lines)  # it was drawing, and what it drew was drawn by the other
    assert [len(answer.data) for answer in answers] == [1] * 20
    for answer in answers[:6]:
        (one,) = answer.data
        if answer.model == MODELS[0]:  # in any company, and by either method, its images are the same
            assert np.array_equal(picture(one.b64_json), drawn(MODELS[0], "harbour", one.seed)), one.seed
    assert client.images.generate(model=MODELS[1], prompt="beach").data


def test_all_is_answered_where_the_front_is_killed(server, client):
    """What it had taken is answered 500 by Ray's proxy, and asked for again."""
    killed = server.replicas("Front")[0]
    assert all(answer.data for answer in under_load(server, client, 6, lambda: end(killed)))
    assert soon(lambda: len(server.replicas("Drawer")) == 2)  # there is another one for what was killed before


def test_it_stops_gently(server, client):
    answers = under_load(server, client, 6, lambda: server.process.send_signal(signal.SIGTERM))
    assert all(answer.data for answer in answers)
    assert server.process.wait(LONG) == 0
    assert soon(lambda: not server.cluster.processes())
