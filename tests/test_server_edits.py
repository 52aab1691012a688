"""Pictures that are edited through the server, and OpenAI's own client in front of it."""

import asyncio
import base64
import io
import threading
from dataclasses import replace

import chameleon
import httpx
import pytest
import small
from PIL import Image, ImageDraw

pytest.importorskip("litserve", reason="the server is an extra: pip install 'vargen[serve]'")

import openai
from served import LONG, limits, pipes, play

from vargen.core import image_processor, registry
from vargen.pipelines.prompted import PromptedPipeline
from vargen.server import logs
from vargen.server.guard import EDITS, IMAGES
from vargen.server.orders import Batch, Done, Order
from vargen.server.painter import Painter
from vargen.server.threads import application


@pytest.fixture(autouse=True)
def _small_models(monkeypatch):
    for name in ("small", "small-scales"):
        monkeypatch.setitem(registry.MODELS, name, "small:PRESETS")
    monkeypatch.setattr(logs, "start", lambda: None)


def picture(size=(8, 8), colour=(200, 80, 20), kind="PNG", **more):
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, kind, **more)
    return out.getvalue()


def mask(size=(8, 8)):
    """Of which the right half is white."""
    image, out = Image.new("L", size), io.BytesIO()
    ImageDraw.Draw(image).rectangle((size[0] // 2, 0, *size), fill=255)
    image.save(out, "PNG")
    return out.getvalue()


def hole(size=(8, 8)):
    """A picture whose right half is transparent."""
    image, out = Image.open(io.BytesIO(picture(size))), io.BytesIO()
    image.putalpha(Image.open(io.BytesIO(mask(size))).point(lambda value: 255 - value))
    image.save(out, "PNG")
    return out.getvalue()


def form(*files, **fields):
    """Answers to a form: files are pairs of a name and bytes."""
    data = {"model": "small-scales", "seed": "3", **fields}

    async def use(client):
        return await client.post(EDITS, data=data, files=[(name, ("x.png", content)) for name, content in files])

    return play(use)


def drawn(answer):
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(one["b64_json"]) for one in answer.json()["data"]]


def repainted(image=None, where=None, label=1, seed=3):
    pipe = small.scale_pipeline()
    image, where = Image.open(io.BytesIO(image or picture())), Image.open(io.BytesIO(where or mask()))
    return pipe(label, image=image, mask_image=where, seed=seed).images[0]


def same(png, image):
    return Image.open(io.BytesIO(png)).tobytes() == image.tobytes()


def test_a_picture_is_repainted_under_its_mask():
    answer = form(("image", picture()), ("mask", mask()), prompt="b", n="2")
    assert [same(png, repainted(seed=3 + i)) for i, png in enumerate(drawn(answer))] == [True, True]
    slots = small.scale_pipeline().transformer.spec.slots
    assert answer.json()["usage"]["input_tokens_details"] == {"text_tokens": 2, "image_tokens": 2 * slots}


def test_holes_are_a_mask_and_no_class_is_what_is_around():
    (png,) = drawn(form(("image[]", hole())))
    assert same(png, repainted(hole(), hole(), label=-1))


def test_a_picture_of_another_size_covers_the_image():
    (png,) = drawn(form(("image", picture((40, 16))), ("mask", mask((40, 16))), prompt="b"))
    assert same(png, repainted())  # of one colour, and of a mask whose middle is the same


def test_pictures_are_read_with_a_prompt():
    """By a model that reads prompts itself; who asks for the same prompt with another picture gets another image."""
    pipe = PromptedPipeline(chameleon.lumina(), chameleon.vqgan(), None, chameleon.text())
    pipe.set_progress_bar_config(disable=True)
    painter, red = Painter({"lumina": pipe}, 4), Image.open(io.BytesIO(picture((64, 64))))
    assert painter.cards[0].edits == "read"
    order = Order("lumina", "ar", None, (), None, None, "a boat", (1, 2), pictures=(red,))
    other = replace(order, pictures=(Image.new("RGB", (96, 32)),))
    events = list(painter.paint(Batch((order, other), (0, 1)), lambda ticket: True))
    done = {event.order: event for event in events if isinstance(event, Done)}
    for index, one in enumerate((order, other)):
        for seed, png in zip(one.seeds, done[index].pictures, strict=True):
            assert same(png, pipe("a boat", image=one.pictures[0], seed=seed, method="ar").images[0])
    assert done[0].read == 2 * len(chameleon.text()("a boat")["input_ids"])
    assert done[0].seen > 2 * 16  # codes, and what they stand in
    assert done[0].cached > 0  # of the second image


def test_exif_turns_it_upright():
    exif = Image.Exif()
    exif[image_processor.ORIENTATION] = 6  # a quarter to the right
    halves = Image.new("RGB", (8, 8), "white")
    halves.paste((0, 0, 0), (0, 0, 8, 4))
    turned, upright = io.BytesIO(), io.BytesIO()
    halves.save(turned, "PNG", exif=exif)
    halves.transpose(Image.Transpose.ROTATE_270).save(upright, "PNG")
    (png,) = drawn(form(("image", turned.getvalue()), ("mask", mask()), prompt="b"))
    assert same(png, repainted(upright.getvalue()))


BAD = {
    "no picture": ((("mask", mask()),), {}, "image", "got no image"),
    "no mask": ((("image", picture()),), {}, "mask", "got no mask"),
    "no picture at all": ((("image", b"GIF89a..."),), {}, "image", "in no format that is read here"),
    "a GIF": ((("image", picture(kind="GIF")),), {}, "image", "expected PNG, JPEG, WEBP"),
    "half a file": ((("image", picture((64, 64))[:60]), ("mask", mask())), {}, "image", "the file"),
    "a mask of another size": ((("image", picture()), ("mask", mask((9, 9)))), {}, "mask", "got a mask of 9x9"),
    "two pictures": ((("image[]", picture()), ("image[]", picture())), {}, "image", "repaints one"),
    "two masks": ((("image", picture()), ("mask", mask()), ("mask", mask())), {}, "image", "2 masks"),
    "a strange file": ((("image", picture()), ("video", mask())), {}, "video", "expected image"),
    "too many pixels": ((("image", picture((5000, 5000))),), {}, "image", "pixels, expected at most 16,777,216"),
    "text for a picture": ((("mask", mask()),), {"image": "x"}, "image", "got text"),
    "no number": ((("image", picture()), ("mask", mask())), {"n": "many"}, "n", "valid integer"),
    "an unknown field": ((("image", picture()), ("mask", mask())), {"sed": "3"}, "sed", "expected fields among"),
    "a model that cannot": ((("image", picture()),), {"model": "small", "prompt": "b"}, "model", "takes no pictures"),
    "no such model": ((("image", picture()),), {"model": "other"}, "model", "other"),
    "no such class": ((("image", picture()), ("mask", mask())), {"prompt": "zebra"}, "prompt", "zebra"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_is_said_at_its_field(what):
    files, fields, param, words = BAD[what]
    answer = form(*files, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (404 if what == "no such model" else 400, param), error
    assert words in error["message"]


def test_forms_are_bounded_and_are_forms():
    async def use(client):
        large = await client.post(EDITS, data={}, files={"image": ("x.png", bytes(30000))})
        plain = await client.post(EDITS, json={"prompt": "b"})
        torn = await client.post(EDITS, content=b"--x\r\n", headers={"content-type": "multipart/form-data"})
        many = await client.post(EDITS, data={str(i): "1" for i in range(99)}, files={"image": ("x.png", picture())})
        kinds = {"content-type": "multipart/form-data; boundary=x; charset=rot13"}
        coded = await client.post(EDITS, content=b"--x--\r\n", headers=kinds)
        return [answer.status_code for answer in (large, plain, torn, many, coded)]

    assert play(use, limits(max_upload=20000)) == [413, 415, 400, 400, 415]


def test_whoever_decodes_keeps_nobody_waiting(monkeypatch):
    """A picture that takes long to decode holds up neither health nor others, and its deadline counts from arrival."""
    go, decoded = threading.Event(), image_processor.decoded

    def slow(*arguments):
        assert go.wait(LONG)
        return decoded(*arguments)

    monkeypatch.setattr(image_processor, "decoded", slow)
    files = [("image", ("x.png", picture())), ("mask", ("x.png", mask()))]

    async def use(client):
        def edit(**more):
            return client.post(EDITS, data={"model": "small-scales", "seed": "3", "prompt": "b"} | more, files=files)

        first = asyncio.create_task(edit())
        hung_up = [asyncio.create_task(edit()) for _ in range(3)]
        await asyncio.sleep(0.2)
        for one in hung_up:
            one.cancel()
        health, other = await client.get("/health"), await client.post(IMAGES, json={"class": 0})
        late = await edit(deadline="0.1")
        waiting = [asyncio.create_task(edit()) for _ in range(6)]
        while sum(one.done() for one in waiting) < 3:  # for whom there is no room beside the first one
            await asyncio.sleep(0.01)
        go.set()
        return health, other, late, await first, await asyncio.gather(*waiting)

    health, other, late, first, waiting = play(use, limits(max_queue=4))
    assert [one.status_code for one in (health, other, late, first)] == [200, 200, 504, 200]
    assert sorted(one.status_code for one in waiting) == [200] * 3 + [429] * 3
    assert same(drawn(first)[0], repainted())


def client_of(use, retries=0, **options):
    """What `use(client)` gives of OpenAI's own client, with a server as `limits` has it."""

    async def run():
        app = application(limits(**options), pipes)
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, timeout=LONG) as inner:
                yields = {"base_url": "http://server/v1", "api_key": "none", "http_client": inner}
                return await use(openai.AsyncOpenAI(max_retries=retries, **yields))

    return asyncio.run(run())


def test_openais_client_draws_streams_and_edits():
    async def use(client):
        images = client.images
        drawn = await images.generate(model="small", prompt="b", n=2, size="auto", extra_body={"seed": 7})
        more = {"seed": 7, "method": "ar"}
        shown = await images.generate(model="small", prompt="b", stream=True, partial_images=2, extra_body=more)
        events = [event async for event in shown]
        files = {"image": ("x.png", picture()), "mask": ("y.png", mask())}
        edited = await images.edit(model="small-scales", prompt="b", **files, extra_body={"seed": 3})
        again = await images.edit(model="small-scales", prompt="b", **files, stream=True, extra_body={"seed": 3})
        return drawn, events, edited, [event async for event in again]

    drawn, events, edited, again = client_of(use)
    pipe = small.pipeline()
    expected = pipe(1, num_images_per_prompt=2, seed=7).images
    assert [same(base64.b64decode(one.b64_json), image) for one, image in zip(drawn.data, expected, strict=True)]
    assert (drawn.usage.output_tokens, drawn.usage.input_tokens_details.text_tokens) == (72, 2)
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert same(base64.b64decode(edited.data[0].b64_json), repainted())
    assert again[-1].type == "image_edit.completed"
    assert again[-1].b64_json == edited.data[0].b64_json


def test_openais_client_is_told_what_is_wrong():
    async def use(client):
        with pytest.raises(openai.BadRequestError, match="zebra") as wrong:
            await client.images.generate(model="small", prompt="zebra")
        with pytest.raises(openai.NotFoundError):
            await client.images.generate(model="other", prompt="b")
        with pytest.raises(openai.InternalServerError) as late:
            await client.images.generate(model="small", prompt="b", extra_body={"deadline": 1e-6})
        return wrong.value.param, late.value.status_code

    assert client_of(use) == ("prompt", 504)


def test_openais_client_tries_again():
    """A full queue is answered 429, and it comes back."""

    async def use(client):
        asked = [client.images.generate(model="small", prompt="b", extra_body={"seed": i}) for i in range(6)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        return [answer for answer in answers if isinstance(answer, Exception)]

    assert client_of(use, retries=20, max_queue=1, batch_size=1, max_images=1) == []
    assert any(isinstance(one, openai.RateLimitError) for one in client_of(use, max_queue=1, batch_size=1))
