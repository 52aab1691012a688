"""What files say: JSON that nests, and names that would forge a line of ours."""

import json

import pytest
import torch
from small import llamagen

from vargen.commands import main
from vargen.core import checkpoints, messages, safe_json, weight_files
from vargen.eval import plan, prompts


@pytest.mark.parametrize("text", ["[" * 200_000 + "]" * 200_000, "[" * 65 + "]" * 65, '{"a":' * 65 + "1" + "}" * 65])
def test_json_that_nests(tmp_path, text):
    with pytest.raises(ValueError, match="got JSON that nests more than 64 deep"):
        safe_json.parse(text)
    for name, read in (
        ("a.json", prompts.read),
        ("a.jsonl", prompts.read),
        ("manifest.json", plan.load),
        ("model.safetensors.index.json", lambda path: weight_files.shards(path.parent)),
    ):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(ValueError, match=r"(damaged|are damaged)") as error:
            read(path)
        assert str(path) in str(error.value)


def test_json_within_bounds(tmp_path):
    path, value = tmp_path / "a.json", {"a": [[1, 2.5, None, True, "\u00e9"]], "b": {}}
    path.write_text(json.dumps(value))
    assert safe_json.read(path) == value
    assert safe_json.parse("[" * 64 + "]" * 64)
    with pytest.raises(ValueError, match=r"got \d+ bytes of JSON, expected at most 5"):
        safe_json.read(path, most=5)


FORGED = "a\nvargen: all is well\x1b[2K\u202e\x07"


@pytest.mark.parametrize("key", [FORGED, "k" * (8 << 20)])
def test_what_files_say_is_shown_short_and_on_one_line(tmp_path, key):
    state = {**llamagen().state_dict(), key: torch.zeros(1)}
    checkpoints.save(tmp_path / "a.safetensors", state)
    torch.save(state, tmp_path / "a.pt")
    torch.save({key: 3}, tmp_path / "b.pt")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": key}}))
    checkpoints.save(tmp_path / "c.safetensors", {key: torch.zeros(1)})
    for name in ("a.safetensors", "a.pt", "b.pt", "c.safetensors", "."):
        with pytest.raises(ValueError, match=r"none of LlamaGen|not fit|holds|lacks|damaged") as error:
            checkpoints.load_into(llamagen(), tmp_path / name)
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 700


def test_whatever_reaches_the_user_is_on_one_line(capsys):
    def fail(_):
        raise ValueError(f"got {FORGED}, expected peace")

    with pytest.raises(SystemExit):
        main.guarded(fail, [])
    said = capsys.readouterr().err
    assert said == "vargen: got a\\nvargen: all is well\\x1b[2K\\u202e\\x07, expected peace\n"


def test_shown():
    assert messages.shown("h\u00e9 \u4e2d") == "h\u00e9 \u4e2d"
    assert messages.shown("x" * 81) == "x" * 80 + "..."
    assert messages.quoted("a\n") == "'a\\n'"
    assert len(messages.quoted([["y" * 1000] * 1000] * 1000)) < 200
    assert messages.first_line(ValueError("")) == "ValueError"
    assert messages.first_line(ValueError("a.\nb")) == "a"
