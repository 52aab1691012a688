"""The pipeline on a small random model: shapes, seeds, streams, traces, and one sentence for bad input."""

import re
import time
from typing import Any

import numpy as np
import pytest
import torch
from small import CONFIG, pipeline

import vargen
from vargen.models.llamagen import LlamaGen

SLOTS = CONFIG.side**2
FIXED = ["ar", "sjd:window=8", "sjd-coupled:window=8:guess=above", "sjd-exact:window=8"]


@pytest.fixture(scope="module")
def pipe():
    return pipeline()


def test_output_types(pipe):
    kinds = {kind: pipe(["a", 3], seed=1, output_type=kind) for kind in ("pil", "np", "pt", "latent")}
    assert [image.size for image in kinds["pil"].images] == [(12, 12), (12, 12)]
    assert kinds["np"].images.shape == (2, 12, 12, 3)
    assert kinds["pt"].images.shape == (2, 3, 12, 12)
    assert 0 <= kinds["pt"].images.min() <= kinds["pt"].images.max() <= 1
    assert torch.equal(kinds["latent"].images, kinds["pil"].tokens)
    assert kinds["pil"].tokens.shape == (2, 6, 6)
    pixels = np.asarray(kinds["pil"].images[0])
    assert np.abs(pixels - kinds["np"].images[0] * 255).max() <= 0.5 + 1e-3  # rounded, not cut off


@pytest.mark.parametrize("method", FIXED)
def test_batch_size_and_order_do_not_change_images(pipe, method):
    labels = ["a", "b", "c", "a", "e"]
    whole = pipe(labels, method=method, seed=10, output_type="latent").tokens
    split = pipe(labels, method=method, seed=10, output_type="latent", batch_size=2).tokens
    assert torch.equal(whole, split)
    one = pipe(["c"], method=method, seed=12, output_type="latent").tokens
    assert torch.equal(whole[2], one[0])
    backwards = pipe(labels[::-1], method=method, seed=[14, 13, 12, 11, 10], output_type="latent").tokens
    assert torch.equal(whole, backwards.flip(0))


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_sjd_exact_equals_ar(pipe, scale):
    options = {"seed": 3, "num_images_per_prompt": 4, "guidance_scale": scale, "top_k": 30, "output_type": "latent"}
    reference = pipe(["a", "d"], method="ar", **options).tokens
    for method in ("sjd-exact", "sjd-exact:window=5:guess=left", "sjd-exact:window=64"):
        assert torch.equal(pipe(["a", "d"], method=method, **options).tokens, reference)


def test_seeds(pipe):
    def draw(**options):
        out = pipe("a", num_images_per_prompt=2, method="ar", output_type="latent", **options)
        return out.tokens, out.trace.seeds

    tokens, seeds = draw(seed=7)
    assert seeds == [7, 8]
    again, taken = draw(seed=[7, 8])
    assert torch.equal(again, tokens)
    assert taken == seeds
    free, taken = draw()
    assert not torch.equal(free, tokens)
    assert torch.equal(draw(seed=taken)[0], free)  # the trace is enough to draw them again
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    draw(seed=7)
    assert torch.equal(torch.random.get_rng_state(), state)  # the global generator is nobody's business


@pytest.mark.parametrize("method", [*FIXED, "sjd-coupled", "sjd-exact"])
def test_stream_grows_to_the_image_of_the_call(pipe, method):
    seen = []
    partial = None
    for partial in pipe.stream(["a", "b"], method=method, seed=4):
        seen.append((list(partial.settled), partial.tokens.clone(), partial.forwards))
    assert partial is not None
    assert [forwards for *_, forwards in seen] == list(range(1, len(seen) + 1))
    assert len(partial.images()) == 2
    final = seen[-1][1]
    for settled, tokens, _ in seen:
        for row, count in enumerate(settled):
            assert torch.equal(tokens[row, :count], final[row, :count])  # what is settled stays
    if "window" in method or method == "ar":  # a fixed window always draws the same image
        assert torch.equal(pipe(["a", "b"], method=method, seed=4, output_type="latent").images.flatten(1), final)


def test_cancelling_a_stream_leaves_the_pipeline_usable(pipe):
    stream = pipe.stream(["a"], method="ar", seed=0)
    next(stream)
    stream.close()
    assert pipe(["a"], method="ar", seed=0).tokens.shape == (1, 6, 6)


def test_trace(pipe):
    trace = pipe(["a", "b", "c"], method="sjd:window=4", seed=0, batch_size=2).trace
    assert (trace.model, trace.method, trace.images, trace.seeds) == ("small", "sjd:window=4", 3, [0, 1, 2])
    assert set(trace.seconds) == {"model", "sampler", "decode", "total"}
    assert trace.seconds["total"] == pytest.approx(sum(trace.seconds[k] for k in ("model", "sampler", "decode")))
    assert trace.forwards == sum(trace.windows.values())
    assert SLOTS / 4 <= trace.forwards_per_image <= SLOTS
    assert trace.tokens_per_forward >= SLOTS / trace.forwards_per_image * 0.999
    assert trace.peak_memory_bytes > 1 << 20
    assert trace.settings["window"] == 4
    assert {"vargen", "torch", "python", "device"} <= set(trace.versions)
    plain = pipe(["a"], method="ar", seed=0).trace
    assert (plain.forwards, plain.forwards_per_image, plain.tokens_per_forward) == (SLOTS, SLOTS, 1)


def test_rows_of_a_batch_progress_on_their_own(pipe):
    """The calls of a batch are those of its slowest row, not more, and each row counts its own."""
    method = "sjd-coupled:window=8"
    together = pipe("a", num_images_per_prompt=8, method=method, seed=0).trace
    alone = [pipe("a", method=method, seed=seed).trace.forwards for seed in range(8)]
    assert together.forwards == max(alone)
    assert together.forwards_per_image == pytest.approx(sum(alone) / 8)
    assert min(alone) < max(alone)


@pytest.mark.parametrize("method", ["sjd:window=5", "sjd-coupled:window=64", "sjd-exact:window=2"])
def test_blocks_keep_the_bounds_they_state(pipe, method, monkeypatch):
    """Rows of one batch stand far apart, and some are finished: every slot lies in [first, stop) and in the image."""
    decode, widths = LlamaGen.decode, set()

    def checked(self, block, cache):
        assert block.first <= int(block.slots.min())
        assert int(block.slots.max()) < block.stop <= SLOTS
        widths.add(block.tokens.shape[1])
        return decode(self, block, cache)

    monkeypatch.setattr(LlamaGen, "decode", checked)
    pipe("a", num_images_per_prompt=16, method=method, seed=0, output_type="latent")
    assert max(widths) <= SLOTS + 64
    assert len(widths) > 1 or "window=2" in method  # wide windows narrow where the image ends


def test_auto_window_is_measured_once_and_recorded(pipe):
    first = pipe(["a"], method="sjd-coupled", seed=0).trace
    second = pipe(["a"], method="sjd-coupled", seed=0).trace
    assert sum(first.windows.values()) == first.forwards
    assert first.seconds["calibration"] > 10 * second.seconds["calibration"]
    assert first.settings["window"] == "auto"


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (["z"], {}, "unknown class 'z'; there are a, b"),
        ([5], {}, "got class 5, expected 0 to 4"),
        ([-1], {}, "got class -1"),
        ([], {}, "no class labels"),
        (None, {}, "draws classes"),
        (None, {"prompt": "a boat"}, "takes no prompt"),
        ("a", {"num_images_per_prompt": 0}, "number of images 0, expected at least 1"),
        ("a", {"batch_size": 0}, "batch size 0"),
        ("a", {"method": "sjdd"}, "unknown method 'sjdd'; did you mean sjd? there are ar, sjd"),
        ("a", {"method": "sjd:window=0"}, "window 0"),
        ("a", {"method": "sjd:window=many"}, "window 'many'"),
        ("a", {"method": "sjd:window"}, "expected setting=value"),
        ("a", {"method": "sjd:width=3"}, "no setting 'width'; its settings: window, guess"),
        ("a", {"method": "ar", "window": 3}, "no setting of ar"),
        ("a", {"method": "sjd:guess=right"}, "guess 'right'"),
        ("a", {"temperature": 0.0}, "temperature 0"),
        ("a", {"top_p": 1.5}, "top-p 1.5"),
        ("a", {"top_k": -2}, "top-k -2"),
        ("a", {"guidance_scale": -1.0}, "guidance scale -1.0"),
        ("a", {"seed": [1, 2]}, "2 seeds for 1 images"),
        ("a", {"seed": 1, "generator": torch.Generator()}, "both seed and generator"),
        ("a", {"output_type": "jpeg"}, "output type 'jpeg'"),
        ("a", {"method": 3}, "method 3"),
        ("a", {"method": "sjd:window=4:window=8"}, "window stands twice"),
        ("a", {"guidance_scale": 1e38}, "guidance scale 1e+38"),
        ("a", {"temperature": "1"}, "temperature '1'"),
        ("a", {"top_k": 5.5}, "top-k 5.5"),
        ("a", {"batch_size": 1.5}, "batch size 1.5"),
        ("a", {"num_images_per_prompt": 1.5}, "number of images 1.5"),
        ("a", {"seed": "12"}, "seed '12'"),
        ("a", {"seed": [1.5]}, "seed 1.5"),
        ([3.7], {}, "class 3.7"),
        ([None], {}, "class None"),
        ([True], {}, "class True"),
        (2.5, {}, "class labels 2.5"),
        ("²", {}, "unknown class '²'"),
        ("--5", {}, "unknown class '--5'"),
    ],
)
def test_bad_input(pipe, arguments, options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        pipe(arguments, **{"method": "ar", **options})


def test_numbers_of_other_libraries(pipe):
    expected = pipe([3], method="ar", seed=5, output_type="latent").images
    for label, seed in ((np.int64(3), np.int64(5)), (torch.tensor([3]), torch.tensor([5])), ("3", [5])):
        assert torch.equal(pipe(label, method="ar", seed=seed, output_type="latent").images, expected)


def test_bad_input_to_a_stream_is_refused_at_the_call(pipe):
    with pytest.raises(ValueError, match="it takes no output_type"):
        pipe.stream(["a"], method="ar", output_type="np")


def test_stream_leaves_out_the_seconds_of_its_reader(pipe):
    began, read = time.perf_counter(), 0.0
    final = next(stream := pipe.stream(["a"], method="ar", seed=0))
    for final in stream:  # noqa: B007
        start = time.perf_counter()
        time.sleep(0.01)
        read += time.perf_counter() - start
    assert 0 < sum(final.trace.seconds.values()) <= time.perf_counter() - began - read
    assert final.trace.forwards == SLOTS


def test_window_of_one_is_plain_decoding(pipe):
    plain = pipe("a", method="ar", seed=0, output_type="latent").images
    for method in ("sjd:window=1", "sjd-coupled:window=1", "sjd-exact:window=1"):
        assert torch.equal(pipe("a", method=method, seed=0, output_type="latent").images, plain)


def test_a_window_wider_than_the_image_is_the_image(pipe):
    out = pipe("a", method="sjd:window=1000000000", seed=0, output_type="latent")
    assert max(out.trace.windows) <= SLOTS


def test_diffusers_habits(pipe):
    assert pipe.to("cpu") is pipe
    assert pipe.device.type == "cpu"
    half = pipeline().to(torch.bfloat16)
    assert half("a", method="ar", seed=0).images[0].size == (12, 12)
    with pytest.raises(ValueError, match="unknown model"):
        type(pipe).from_pretrained("nope", torch_dtype=torch.float32)
    for name in ("mps", "bogus", "cuda:99"):
        with pytest.raises(ValueError, match="device"):
            vargen.load("pocket-llamagen", device=name)


def test_sampler_settings_by_keyword(pipe):
    by_name = pipe("a", method="sjd:window=4:guess=left", seed=0, output_type="latent").images
    assert torch.equal(pipe("a", method="sjd", window=4, guess="left", seed=0, output_type="latent").images, by_name)


def test_images_are_resized_before_they_are_rounded():
    """Bicubic without antialiasing, on the decoder's floats; by the preset, by the call, and in a stream."""
    pipe = pipeline()
    tokens = pipe([0, 1], seed=0, method="ar", output_type="latent").tokens
    decoded = pipe.tokenizer.decode(tokens)
    wanted = torch.nn.functional.interpolate(decoded, size=(20, 20), mode="bicubic", align_corners=False)
    wanted = (wanted / 2 + 0.5).clamp(0, 1)
    by_preset: dict[str, Any] = {"preset": "plain", "guidance_scale": 2.0}
    by_call: dict[str, Any] = {"image_size": 20}
    for options in (by_preset, by_call):
        out = pipe([0, 1], seed=0, method="ar", output_type="pt", **options)
        torch.testing.assert_close(out.images, wanted)
        last = list(pipe.stream([0, 1], seed=0, method="ar", **options))[-1]
        assert last.images()[0].size == (20, 20)
    pixels = np.asarray(pipe([0, 1], seed=0, method="ar", image_size=20).images[1])
    assert (pixels == (wanted[1].permute(1, 2, 0) * 255).round().numpy()).all()
    assert pipe([0], seed=0, method="ar").images[0].size == (12, 12)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_guidance_of_one_or_less_is_off(scale):
    pipe = pipeline()
    tokens = [
        pipe([0, 1], seed=0, method="ar", output_type="latent", guidance_scale=s).tokens for s in (scale, 1.0, 1.5)
    ]
    assert torch.equal(tokens[0], tokens[1])
    assert not torch.equal(tokens[1], tokens[2])


@pytest.mark.parametrize("interval", [0, 3, 10**30])
@pytest.mark.parametrize("method", ["ar", "sjd:window=4", "sjd-coupled:window=7", "sjd-exact:window=5"])
def test_an_image_depends_on_its_seed_alone_where_guidance_ends_early(method, interval):
    pipe, options = pipeline(), {"method": method, "cfg_interval": interval, "output_type": "latent"}
    together = pipe([0, 1, 2, 3] * 4, seed=0, **options).tokens
    for index in (0, 5, 15):
        assert torch.equal(pipe([index % 4], seed=index, **options).tokens[0], together[index])
