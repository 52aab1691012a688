"""Text to image: CLIP score, FID-CLIP, prompt files, and the folders that benchmarks want."""

import json

import numpy as np
import pytest
import torch
from made_up import made_up, save_folder
from PIL import Image

from vargen.eval import clip, features, prompts
from vargen.eval.measure import measure, reference

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    """A CLIP of a few parameters, saved as transformers does."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    path = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**shape, "vocab_size": 20, "max_position_embeddings": 12, "eos_token_id": 1, "bos_token_id": 0},
        vision_config={**shape, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(path)
    letters = [letter + end for letter in "abdegort" for end in ("", "</w>")]
    vocabulary = {word: i for i, word in enumerate(("<|startoftext|>", "<|endoftext|>", *letters))}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=12)
    size = {"height": 16, "width": 16}
    CLIPProcessor(CLIPImageProcessor(size=size, crop_size=size), tokenizer).save_pretrained(path)
    return str(path)


def test_clip_score_against_cosines(tiny_clip):
    images, texts = made_up(5, size=16), ["a red boat", "a dog", "a boat", "dog", "red"]
    found = clip.score(images, texts, tiny_clip, CPU, batch=2)
    model, processor = clip.load(tiny_clip, CPU)
    pixels = [torch.from_numpy(x).permute(2, 0, 1) for x in images.read(0, 5)]
    inputs = processor(text=texts, images=pixels, return_tensors="pt", padding=True)
    out = model.model(**inputs)
    cosines = (torch.nn.functional.normalize(out.image_embeds) * torch.nn.functional.normalize(out.text_embeds)).sum(1)
    assert found == pytest.approx(100 * cosines.mean().clamp(min=0).item(), abs=1e-3)
    with pytest.raises(ValueError, match="got 2 prompts for 5 images"):
        clip.score(images, texts[:2], tiny_clip, CPU)


def test_fid_clip(tiny_clip, tmp_path):
    extractor = features.clip(CPU, tiny_clip)
    with reference(save_folder(made_up(20, size=16), tmp_path / "real"), extractor, tmp_path) as against:
        result = measure(made_up(20, size=16), extractor, against)
    assert result["fid"] == pytest.approx(0, abs=1e-6)
    assert result.get("inception_score") is None  # CLIP has no classes
    with pytest.raises(ValueError, match="cannot load CLIP from /nowhere"):
        clip.load("/nowhere", CPU)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "a boat\n\n  a dog \n", ["a boat", "a dog"]),
        ("a.tsv", "Prompt\tCategory\na boat\tsea\na dog\tland\n", ["a boat", "a dog"]),
        ("a.jsonl", '{"tag": "x", "prompt": "a boat"}\n{"tag": "y", "prompt": "a dog"}\n', ["a boat", "a dog"]),
        (
            "a.json",
            '{"annotations": [{"id": 3, "caption": "a boat "}, {"id": 4, "caption": "a dog"}]}',
            ["a boat", "a dog"],
        ),
        ("b.tsv", 'Prompt\tCategory\n"Hello" on a boat\tx\n"a dog\tland\n', ['"Hello" on a boat', '"a dog']),
        ("b.jsonl", '{"prompt": "a\u2028boat"}\n{"prompt": "a dog"}\n', ["a\u2028boat", "a dog"]),
    ],
)
def test_prompt_files(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    assert [prompt.text for prompt in prompts.read(tmp_path / name)] == expected
    (tmp_path / name).write_text("\ufeff" + text)  # as some editors save it
    assert [prompt.text for prompt in prompts.read(tmp_path / name)] == expected


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", "\n", "no prompts in"),
        ("a.tsv", "Text\na boat\n", "are damaged: KeyError"),
        ("a.jsonl", "{", "are damaged"),
        ("a.jsonl", '{"prompt": 3}', "or an empty one"),
        ("a.json", "[]", "are damaged"),
        ("a.json", '{"annotations": [{"id": 3, "caption": null}]}', "are damaged"),
        ("b.jsonl", '{"prompt": "  "}', "or an empty one"),
        ("a.csv", "x", "expected a folder or one of"),
        ("b.txt", None, "no prompts"),
    ],
)
def test_wrong_prompt_files(tmp_path, name, text, words):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        prompts.read(tmp_path / name)


def test_exports(tmp_path):
    (tmp_path / "dpg").mkdir()
    for name in ("12", "7"):
        (tmp_path / "dpg" / f"{name}.txt").write_text(f"prompt {name}")
    found = prompts.read(tmp_path / "dpg")
    paths = sorted(save_folder(made_up(8), tmp_path / "images").iterdir())
    prompts.export(paths, found, "dpg", tmp_path / "out")
    grid = np.asarray(Image.open(tmp_path / "out" / "12.png"))
    assert grid.shape == (16, 16, 3)
    assert (grid[:8, 8:] == np.asarray(Image.open(paths[2]))).all()
    (tmp_path / "g.jsonl").write_text(
        '{"prompt": "a", "tag": "x", "include": []}\n{"prompt": "b", "tag": "y", "include": []}\n'
    )
    prompts.export(paths, prompts.read(tmp_path / "g.jsonl"), "geneval", tmp_path / "geneval")
    assert json.loads((tmp_path / "geneval" / "00001" / "metadata.jsonl").read_text())["tag"] == "y"
    assert (tmp_path / "geneval" / "00001" / "samples" / "00003.png").read_bytes() == paths[7].read_bytes()
    with pytest.raises(ValueError, match="are not GenEval's"):
        prompts.export(paths, found, "geneval", tmp_path / "out")
    for names in (("1", "1"), ("a", "../../b")):
        odd = [prompts.Prompt("x", name, {}) for name in names]
        with pytest.raises(ValueError, match="no plain names of their own"):
            prompts.export(paths, odd, "dpg", tmp_path / "out")
    with pytest.raises(ValueError, match="got 8 images of 3 prompts"):
        prompts.export(paths, [*found, found[0]], "dpg", tmp_path / "out")
