"""Harmon from a prompt to a picture: the text, every method, the preset from official files, the commands."""

import json
from dataclasses import replace

import pytest
import synth
import torch
from harmon_plain import SMALL, VOCABULARY, small, small_file, text_tokenizer
from PIL import Image
from small import randomised

import vargen
from vargen.commands import main, sample
from vargen.core import hub, registry
from vargen.core.preset import Preset, Recipe, Sources
from vargen.eval import plan, runs
from vargen.models import harmon
from vargen.models.harmon import Harmon
from vargen.models.mar import MAR, MARConfig
from vargen.pipelines.continuous import ContinuousPipeline
from vargen.presets import harmon as presets
from vargen.presets import mar as mar_presets
from vargen.tokenizers import kl
from vargen.tokenizers.kl import KLConfig, KLTokenizer

IMAGES = KLConfig((8, 8), 1, SMALL.mar.channels, norm_groups=4)
PROMPTS = ["a red boat", "the dog by the house on the sea by night", ""]
FEW = {"iterations": 5, "steps": 3}
METHODS = ["mar:iterations=5:steps=3", "disa:iterations=4:upper=6:lower=2:schedule=constant"]
RECIPE = Recipe(3.0, settings={"mar": {**FEW, "schedule": "constant"}})


def build(sources, device, dtype):
    raise AssertionError("not by name")


def relative(out, ref):
    """An untrained head's tokens are large, and what is small in them says nothing."""
    return ((out - ref).norm() / ref.norm()).item()


PRESET = Preset("small-harmon", "", {"default": RECIPE}, 0, build, spec=SMALL.spec)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small(tmp_path_factory.mktemp("harmon"))


@pytest.fixture
def pipe(model):
    images = randomised(KLTokenizer(IMAGES), 0, 1.0)
    made = ContinuousPipeline(model, images, text_tokenizer=text_tokenizer(), preset=PRESET)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The text tokenizer's folder."""
    path = tmp_path_factory.mktemp("words")
    text_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Official files in one folder, of presets that were made small."""
    for name, file in presets.FILES.items():
        monkeypatch.setitem(presets.SHAPES, name, SMALL)
        torch.save(small_file() | {"vae.x": torch.ones(1)}, tmp_path / file)
        monkeypatch.setitem(presets.PRESETS, name, replace(presets.PRESETS[name], spec=SMALL.spec))
    monkeypatch.setitem(mar_presets.TOKENIZERS, "mar-kl-16", IMAGES)
    with torch.device("meta"):
        expected = kl.layout(IMAGES).expected(KLTokenizer(IMAGES))
    state = synth.state_dict({key: list(shape) for key, (_, shape) in expected.items()})
    torch.save({"model": state}, tmp_path / "kl16.ckpt")
    return tmp_path


def test_prompts_are_put_as_published():
    heard = []
    tokenizer = text_tokenizer()

    class Listening:
        eos_token_id = tokenizer.eos_token_id

        def __call__(self, texts, **options):
            heard.append((texts, options))
            return tokenizer(texts, **options)

    ids, mask = harmon.tokenize(["a {red} boat", "the sea by the house"], Listening())
    ends = "<|im_end|>\n<|im_start|>assistant\n"
    assert heard[0][0] == [
        "<|im_start|>user\nGenerate an image: a {red} boat" + ends,
        "<|im_start|>user\nGenerate an image." + ends,
        "<|im_start|>user\nGenerate an image: the sea by the house" + ends,
        "<|im_start|>user\nGenerate an image." + ends,
    ]
    assert heard[0][1] == {"add_special_tokens": True}
    assert ids.shape == mask.shape == (2, 2, 14)
    assert mask.sum(-1).tolist() == [[14, 9], [14, 9]]
    assert ids[0, 1, 9:].tolist() == [VOCABULARY.index("<|im_end|>")] * 5
    spoken = "<|im_start|> user Generate an image : the sea by the house <|im_end|> <|im_start|> assistant"
    assert " ".join(VOCABULARY[i] for i in ids[1, 0].tolist()) == spoken


@pytest.mark.parametrize("method", METHODS)
def test_an_image_does_not_depend_on_the_prompts_beside_it(pipe, method):
    together = pipe(prompt=PROMPTS, method=method, seed=0, output_type="latent").tokens
    assert together.shape == (3, 36, 4)
    assert torch.isfinite(together).all()
    for row, prompt in enumerate(PROMPTS):
        alone = pipe(prompt=prompt, method=method, seed=row, output_type="latent").tokens
        assert relative(alone[0], together[row]) < 1e-3
    one_by_one = pipe(prompt=PROMPTS, method=method, seed=0, batch_size=1, output_type="latent").tokens
    assert relative(one_by_one, together) < 1e-3
    other = pipe(prompt=PROMPTS[1], method=method, seed=0, output_type="latent").tokens
    assert relative(other[0], together[0]) > 0.05


def test_a_call_and_what_it_tells(pipe):
    out = pipe(prompt=PROMPTS[:2], num_images_per_prompt=2, seed=3)
    assert [image.size for image in out.images] == [(12, 12)] * 4
    assert (out.trace.images, out.trace.forwards, out.trace.method) == (4, 5, "mar")
    told = {key: out.trace.settings[key] for key in ("guidance_scale", "schedule", "iterations", "steps")}
    assert told == {"guidance_scale": 3.0, "schedule": "constant", **FEW}
    ids, mask = pipe.encode_prompt(PROMPTS[:2])
    given = {"prompt_embeds": ids, "prompt_attention_mask": mask}
    pipe.release_text_encoder()
    again = pipe(**given, num_images_per_prompt=2, seed=3, output_type="latent")
    assert torch.equal(again.tokens, out.tokens)
    assert relative(pipe(**given, seed=3, guidance_scale=1).tokens[0], out.tokens[0]) > 0.05
    assert relative(out.tokens[0], out.tokens[1]) > 0.05  # another seed
    steps = list(pipe.stream(prompt_embeds=ids[0], prompt_attention_mask=mask[0], seed=3))
    assert [step.settled[0] for step in steps] == sorted({step.settled[0] for step in steps})
    assert relative(steps[-1].tokens[0], out.tokens[0]) < 1e-3
    assert steps[2].images()[0].size == (12, 12)


def test_drafting_by_a_smaller_model(pipe):
    pipe.drafter = randomised(Harmon(replace(SMALL, layers=1)), 3, 1.0)
    how = {"prompt": PROMPTS, "seed": 0, "output_type": "latent"}
    drafted = pipe(**how, method="csd:iterations=6:upper=4:lower=4:prefill=0:rule=paper:draft=3")
    assert torch.isfinite(drafted.tokens).all()
    assert drafted.trace.drafts > 0
    exact = pipe(**how, method="csd:iterations=6:upper=4:lower=4:prefill=0.4")
    alone = pipe(prompt=PROMPTS[1], seed=1, output_type="latent", method=exact.trace.method)
    assert relative(alone.tokens[0], exact.tokens[1]) < 1e-3


def embeds(ids, mask=None):
    return {"prompt_embeds": ids, "prompt_attention_mask": torch.ones_like(ids) if mask is None else mask}


@pytest.mark.parametrize(
    ("wanted", "complaint"),
    [
        ({}, "give either a prompt or prompt_embeds with its mask"),
        ({"class_labels": [1]}, "takes no class: give a prompt"),
        ({"class_labels": 1, "prompt": "a"}, "takes no class: give a prompt"),
        ({"prompt": []}, r"got prompt \[\], expected text or a list of texts"),
        ({"prompt": ["a", None]}, "expected text or a list of texts"),
        ({"prompt": "a", "num_images_per_prompt": 0}, "number of images 0"),
        ({"prompt": "a", "top_k": 5}, "continuous tokens have none"),
        ({"prompt": "a", "method": "ar"}, "those that do: mar, disa, csd"),
        ({"prompt": "a", "iterations": 37}, "37 iterations for an image of 36 tokens"),
        ({"prompt": "a", **embeds(torch.ones(1, 2, 4).long())}, "either a prompt or prompt_embeds"),
        ({"prompt_embeds": torch.ones(1, 2, 4).long()}, "pass both, from encode_prompt"),
        (embeds(torch.ones(1, 3, 4).long()), r"expected token ids \(B, 2, T\)"),
        (embeds(torch.ones(0, 2, 4).long()), "expected token ids"),
        (embeds(torch.ones(1, 2, 4).long(), torch.ones(1, 2, 5)), "expected token ids"),
        (embeds(torch.ones(1, 2, 4)), "whole numbers from 0 to 19"),
        (embeds(torch.full((1, 2, 4), 20)), "whole numbers from 0 to 19"),
        (embeds(torch.ones(1, 2, 4).long(), torch.tensor([0, 1, 1, 1]).expand(1, 2, 4)), "words first and padding"),
        (embeds(torch.ones(1, 2, 4).long(), torch.zeros(1, 2, 4)), "words first and padding"),
    ],
)
def test_wrong_calls(pipe, wanted, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        pipe(**wanted)
    assert "\n" not in str(caught.value)


def test_text_for_models_that_draw_classes_and_tokenizers_that_are_not_there(pipe):
    config = MARConfig(1, 2, 16, 1, 16, 4, SMALL.mar.channels, 5, 3)
    classes = ContinuousPipeline(randomised(MAR(config), 0, 1.0), pipe.tokenizer)
    with pytest.raises(ValueError, match="draws classes and takes no prompt: give a class"):
        classes(prompt="a boat", iterations=3)
    bare = ContinuousPipeline(pipe.transformer, pipe.tokenizer)
    with pytest.raises(ValueError, match="custom has no text tokenizer here"):
        bare(prompt="a boat", iterations=3)


def test_the_text_tokenizer_is_checked(words, tmp_path):
    def load(source, vocabulary=20):
        return harmon.load_tokenizer(str(source), "Qwen/Qwen2.5-0.5B-Instruct", vocabulary)

    assert len(load(words)) == len(VOCABULARY) == 20
    with pytest.raises(ValueError, match="has 20 tokens, expected at most 19"):
        load(words, 19)
    with pytest.raises(ValueError, match="there is no such folder"):
        load("/nowhere/qwen")
    with pytest.raises(ValueError, match="has no tokenizer"):
        load(tmp_path)
    other = json.loads((words / "tokenizer.json").read_text().replace("<|im_start|>", "<start>"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(other))
    (tmp_path / "tokenizer_config.json").write_bytes((words / "tokenizer_config.json").read_bytes())
    with pytest.raises(ValueError, match=r"does not know <\|im_start\|>: expected that of Qwen/Qwen2.5-0.5B-Instruct"):
        load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=f"cannot load a text tokenizer from {tmp_path}"):
        load(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_preset_from_official_files(files, words, pipe, dtype):
    kind = getattr(torch, dtype)
    made = vargen.load("harmon-0.5b", checkpoint=files, text_encoder=words, device="cpu", dtype=kind)
    made.set_progress_bar_config(disable=True)
    assert (made.dtype, made.tokenizer.dtype, made.text_encoder) == (kind, torch.float32, None)
    out = made(prompt=PROMPTS, seed=0, iterations=5, steps=3)
    assert (out.trace.settings["guidance_scale"], out.trace.settings["schedule"]) == (3.0, "constant")
    assert len(out.images) == 3
    if dtype == "float32":
        assert torch.equal(pipe(prompt=PROMPTS, seed=0, output_type="latent").tokens, out.tokens)
    large = vargen.load("harmon-1.5b", checkpoint=files, text_encoder=words, drafter="harmon-0.5b",
                        drafter_checkpoint=files, device="cpu", dtype=kind)  # fmt: skip
    large.set_progress_bar_config(disable=True)
    drawn = large(prompt="a boat", seed=0, method="csd", iterations=5, upper=3, lower=3, prefill=0.2)
    assert drawn.trace.drafts_kept == drawn.trace.drafts  # by a drafter of the same weights


def test_files_come_from_the_hub(files, words, monkeypatch):
    asked = []

    def fetch(*given):
        asked.append(given)
        return files / given[1]

    monkeypatch.setattr(hub, "fetch", fetch)
    for name in presets.FILES:
        presets.build(name, Sources(text_encoder=str(words)), torch.device("cpu"), torch.float32)
    wanted = [file for large in presets.FILES.values() for file in ("kl16.ckpt", large)]
    assert asked == [("wusize/harmon", file, "main") for file in wanted]
    drafter = presets.build("harmon-0.5b", Sources(files, drafts=True), torch.device("cpu"), torch.float32)
    assert drafter.text_tokenizer is None


def test_the_command_line_and_a_sampling_run(pipe, words, files, tmp_path, capsys):
    argv = ["--model", "harmon-1.5b-o", "--checkpoint", str(files), "--text-encoder", str(words), "--device", "cpu"]
    few = ["--method", "mar", "--iterations", "3", "--steps", "2", "--prompt", "a red boat", "--prompt", "the dog"]
    main.guarded(sample.command, [*argv, *few, "--out", str(tmp_path / "a.png")])
    assert Image.open(tmp_path / "a.png").size == (768, 192)
    assert "4 images by mar" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main.guarded(sample.command, [*argv, "--iterations", "3", "--class", "a"])
    assert "give --prompt" in capsys.readouterr().err
    method = "mar:iterations=3:steps=2"
    wanted = plan.make(PRESET, method, 4, recipe=None, law={}, prompts=tuple(PROMPTS), batch_size=2)
    manifest = runs.sample(wanted, lambda device: pipe, tmp_path / "run", device="cpu")
    assert (manifest["complete"], manifest["forwards_per_image"]) == (True, 3.0)
    with Image.open(tmp_path / "run" / "images" / "000003.png") as image:
        assert (image.size, image.info["prompt"]) == ((12, 12), PROMPTS[0])


def test_methods_of_the_benchmark_run(pipe):
    from vargen.commands.bench import DEFAULT_METHODS, run

    names = [name for name in DEFAULT_METHODS[PRESET.plan].split(",") if name != "csd"]
    assert all(name in registry.METHODS for name in (name.split(":")[0] for name in names))
    drawn = run(pipe, PROMPTS[:2], ["mar:iterations=3:steps=2", "disa:iterations=3:upper=3:lower=2"], 2, 2, 0, {})
    assert [trace.images for trace, _ in drawn.values()] == [2, 2]
