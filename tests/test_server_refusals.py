"""What the server refuses, and what it says: requests over a worker in a thread, keys, flags."""

import re
import socket

import pytest

pytest.importorskip("litserve", reason="the server is an extra: pip install 'vargen[serve]'")

from served import IMAGES, ask, limits, play

from vargen.commands import main
from vargen.commands.serve import command
from vargen.core import registry
from vargen.server import logs
from vargen.server.options import WORDS, Options

WRONG = [
    ({}, 400, "class"),
    ({"class": 9}, 400, "class"),
    ({"class": -1}, 400, "class"),
    ({"class": "z"}, 400, "class"),
    ({"class": 0, "prompt": "a"}, 400, "class"),
    ({"prompt": "z"}, 400, "prompt"),
    ({"prompt": "a" * 51}, 400, "prompt"),
    ({"class": 0, "n": 0}, 400, "n"),
    ({"class": 0, "n": 5}, 400, "n"),
    ({"class": 0, "n": "1"}, 400, "n"),
    ({"class": 0, "n": True}, 400, "n"),
    ({"class": 0, "size": "big"}, 400, "size"),
    ({"class": 0, "seed": 2**63}, 400, "seed"),
    ({"class": 0, "method": "nope"}, 400, "method"),
    ({"class": 0, "method": "var"}, 400, "method"),
    ({"class": 0, "method": "sjd:window=auto"}, 400, "method"),
    ({"class": 0, "method": "sjd:window=129"}, 400, "method"),
    ({"class": 0, "method": "speculative"}, 400, "method"),
    ({"class": 0, "method": "code:refiner=var-d36", "model": "small-scales"}, 400, "method"),
    ({"class": 0, "preset": "nope"}, 400, "preset"),
    ({"class": 0, "temperature": 0}, 400, "temperature"),
    ({"class": 0, "top_k": -1}, 400, "top_k"),
    ({"class": 0, "guidance_scale": -1}, 400, "guidance_scale"),
    ({"class": 0, "method": "a" * 257}, 400, "method"),
    ({"class": 0, "negative_prompt": "a"}, 400, "negative_prompt"),
    ({"class": 0, "output_compression": 50}, 400, "output_compression"),
    ({"class": 0, "output_format": "webp", "output_compression": 101}, 400, "output_compression"),
    ({"class": 0, "output_format": "gif"}, 400, "output_format"),
    ({"class": 0, "style": "bright"}, 400, "style"),
    ({"class": 0, "size": "0x12"}, 400, "size"),
    ({"class": 0, "temperature": 1e308}, 400, "temperature"),
    ({"class": 0, "sead": 1}, 400, "sead"),
    ({"class": 0, "response_format": "url"}, 400, "response_format"),
    ({"class": 0, "partial_images": 1}, 400, "partial_images"),
    ({"class": 0, "stream": True, "partial_images": 4}, 400, "partial_images"),
    ({"class": 0, "stream": True, "response_format": "file"}, 400, "response_format"),
    ({"class": 0, "background": "transparent"}, 400, "background"),
    ({"class": 0, "quality": "best"}, 400, "quality"),
    ({"class": 0, "deadline": 0}, 400, "deadline"),
    ({"class": 0, "deadline": 1e-6}, 504, None),
    ({"class": 0, "model": "nope"}, 404, "model"),
]


@pytest.fixture(autouse=True)
def _small_models(monkeypatch):
    for name in ("small", "small-scales"):
        monkeypatch.setitem(registry.MODELS, name, "small:PRESETS")
    monkeypatch.setattr(logs, "start", lambda: None)


def test_what_is_wrong_is_said_in_one_sentence():
    answers = ask(*(body for body, _, _ in WRONG))
    found = [
        (body, answer.status_code, answer.json()["error"]["param"])
        for (body, *_), answer in zip(WRONG, answers, strict=True)
    ]
    assert found == WRONG
    for answer in answers:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == ("server_error" if answer.status_code >= 500 else "invalid_request_error")


def test_bodies_that_are_none():
    async def use(client):
        async def pour():
            for _ in range(5):
                yield b" " * 500

        json_of = {"content-type": "application/json"}
        yield_of = [
            (await client.post(IMAGES, content=text, headers=json_of)).status_code
            for text in (b"{", b"", b"[]", b"\xff", b"[" * 1900, b'{"seed":' + b"9" * 1900 + b"}", b'{"class":NaN}')
        ]
        large = [(await client.post(IMAGES, content=c, headers=json_of)).status_code for c in (b" " * 2001, pour())]
        form = await client.post(IMAGES, data={"class": "a"})
        other = [(await client.get(path)).status_code for path in (IMAGES, "/nowhere", "/predict", "/v1/models/nope")]
        return yield_of, large, form.status_code, other

    assert play(use) == ([400] * 7, [413, 413], 415, [405, 404, 404, 404])


def test_keys(tmp_path):
    key = tmp_path / "key"
    key.write_text("secret\n")

    async def use(client):
        found = {}
        for told in (
            None,
            "secret",
            "Bearer",
            "Bearer secre",
            "Bearer secrets",
            "Basic secret",
            "Bearer secret",
            "bearer secret",
        ):
            headers = {} if told is None else {"authorization": told}
            found[told] = (await client.get("/v1/models", headers=headers)).status_code
        closed = [
            (await client.get(path)).status_code
            for path in ("/metrics", "/openapi.json", "/healthz", "/nowhere", "/v1/models/small", "/health", "/docs")
        ]
        refused = await client.post(IMAGES, content=b" " * 9999)
        return found, closed, refused.status_code, refused.json()["error"]["code"]

    found, closed, *refused = play(use, limits(api_key_file=key))
    assert [told for told, status in found.items() if status == 200] == ["Bearer secret", "bearer secret"]
    assert set(found.values()) == {200, 401}
    assert closed == [401, 401, 200, 401, 401, 200, 200]
    assert refused == [401, "invalid_api_key"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--model", "nope"], "unknown model"),
        (["--batching", "wild"], "got batching 'wild'"),
        (["--port", "0"], "got port 0"),
        (["--api-key", "x"], "unrecognized arguments"),
        (["--api-key-file", "/nowhere"], "/nowhere"),
        (["--device", "tpu"], "expected cpu or cuda"),
        (["--model", "pocket-var", "--model", "pocket-var:dtype=float32"], "each once"),
    ],
)
def test_a_server_that_cannot_be_has_one_sentence(argv, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main.guarded(command, argv)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert re.search(words, said)


def test_every_option_is_described():
    assert set(WORDS) == set(Options.__dataclass_fields__)


def test_sizes_are_strict_where_that_is_asked_for():
    async def use(client):
        return [await client.post(IMAGES, json={"class": 0, "size": size}) for size in ("13x12", "12x12", "auto")]

    answers = play(use, limits(strict=True))
    assert [answer.status_code for answer in answers] == [400, 200, 200]
    assert answers[0].json()["error"]["param"] == "size"
    assert "its sizes: 12x12" in answers[0].json()["error"]["message"]


def test_an_unknown_field_is_answered_with_those_that_there_are():
    (answer,) = ask({"class": 0, "sead": 1})
    assert answer.json()["error"]["message"].startswith("sead: expected fields among method, preset, seed, ")
    assert ", class, " in answer.json()["error"]["message"]


def test_a_port_that_is_taken(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit):
            main.guarded(command, ["--port", str(port)])
    assert f"port {port} of 127.0.0.1 is taken; give another --port" in capsys.readouterr().err


def test_pages_of_other_origins():
    asks = {"origin": "https://a.example", "access-control-request-method": "POST"}
    asks["access-control-request-headers"] = "authorization,content-type"

    async def use(client):
        before = await client.options(IMAGES, headers=asks)
        other = await client.options(IMAGES, headers={**asks, "origin": "https://b.example"})
        return before, other, await client.get("/v1/models", headers={"origin": "https://a.example"})

    before, other, after = play(use, limits(allowed_origins=("https://a.example",)))
    assert before.status_code == 200
    assert (
        before.headers["access-control-allow-origin"] == after.headers["access-control-allow-origin"] == asks["origin"]
    )
    assert "access-control-allow-origin" not in other.headers
    closed = play(lambda client: client.get("/v1/models", headers={"origin": "https://a.example"}))
    assert "access-control-allow-origin" not in closed.headers
