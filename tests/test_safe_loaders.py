"""Nothing that is loaded runs code of its own, asks on the terminal, or is believed about how large it is."""

import ast
import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_wrapped import saved
from wrapped import EMU, JANUS, emu_model, janus_model

import vargen
from vargen.models.pocket import WEIGHTS, WORDS_FILE

PACKAGE = Path(vargen.__file__).parent
NEEDED = {  # a call by its last name -> what it has to say
    "from_pretrained": ("trust_remote_code", False),
    "load_state_dict_from_url": ("weights_only", True),
    "torch.load": ("weights_only", True),
}
NEVER = {
    "torch.hub.load",
    "pickle.load",
    "pickle.loads",
    "yaml.load",
    "yaml.unsafe_load",
    "eval",
    "exec",
}


def complaints(text):
    """Lines of calls that could run a file's code."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        said = {key.arg: key.value.value for key in node.keywords if isinstance(key.value, ast.Constant)}
        wanted = NEEDED.get(name) or NEEDED.get(name.rsplit(".", 1)[-1])
        if name in NEVER or (wanted and said.get(wanted[0], wanted) is not wanted[1]):
            yield node.lineno
        if name == "np.load" and said.get("allow_pickle"):
            yield node.lineno


def test_no_call_can_run_a_file_s_code():
    found = {(path.name, line) for path in PACKAGE.rglob("*.py") for line in complaints(path.read_text())}
    assert not found


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("A.from_pretrained(x)", True),
        ("A.from_pretrained(x, trust_remote_code=True)", True),
        ("A.from_pretrained(x, trust_remote_code=flag)", True),
        ("A.from_pretrained(x, trust_remote_code=False)", False),
        ("torch.load(x)", True),
        ("torch.load(x, weights_only=True)", False),
        ("np.load(x, allow_pickle=True)", True),
        ("np.load(x)", False),
        ("yaml.load(x)", True),
    ],
)
def test_the_search_finds_them(text, bad):
    assert bool(list(complaints(text))) == bad


LOADERS = {
    "text encoder": "t5.load(PLACE, 64, torch.device('cpu'), torch.float32)",
    "text tokenizer": "t5.load_tokenizer(PLACE, 'nobody/nothing')",
    "Harmon": "harmon.load_tokenizer(PLACE, 'nobody/nothing', 99)",
    "CLIP": "clip.load(PLACE, torch.device('cpu'))",
    "Emu3": "wrapped.pretrained(transformers.Emu3ForConditionalGeneration, pathlib.Path(PLACE))",
}


@pytest.fixture
def canary(tmp_path):
    """A folder whose tokenizer, processor and model are code that says so when it runs."""
    names = ("AutoTokenizer", "AutoConfig", "AutoModel", "AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor")
    remote = dict.fromkeys(names, "canary.Canary") | {"AutoTokenizer": ["canary.Canary", "canary.Canary"]}
    said = {"tokenizer_class": "Canary", "processor_class": "Canary", "model_type": "seabird", "auto_map": remote}
    for name in ("config", "tokenizer_config", "processor_config", "preprocessor_config"):
        (tmp_path / f"{name}.json").write_text(json.dumps(said))
    shutil.copyfile(WEIGHTS / WORDS_FILE, tmp_path / "tokenizer.json")
    (tmp_path / "canary.py").write_text("print('THE CANARY RAN')\nclass Canary:\n    pass\n")
    return tmp_path


def test_no_loader_runs_a_folder_s_code_or_asks_whether_it_may(canary):
    """With every question answered by y."""
    code = f"""
        import pathlib, torch, transformers
        from vargen.eval import clip
        from vargen.models import harmon, t5, wrapped
        PLACE = {str(canary)!r}
        for load in {list(LOADERS.values())!r}:
            try:
                eval(load)
            except ValueError as error:
                print("refused:", error)
            else:
                print("loaded")
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, input="y\n" * 99, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(LOADERS)
    assert all(line.startswith("refused: ") for line in lines)
    assert "which never happens" in lines[1]
    assert "CANARY" not in done.stdout + done.stderr
    assert "[y/N]" not in done.stdout + done.stderr


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        "emu3-gen": saved(emu_model(), EMU, tmp_path_factory.mktemp("emu3"), bos=False),
        "janus-pro-1b": saved(janus_model(), JANUS, tmp_path_factory.mktemp("janus"), bos=True),
    }


LIES = [
    ("num_hidden_layers", 100_000, r"has 100000 num_hidden_layers, and the weights have at most \d+"),
    ("num_hidden_layers", -1, "has num_hidden_layers -1, expected a whole number"),
    ("hidden_size", 1_048_575, "not a multiple of the number of attention heads|do not fit"),
    ("hidden_size", None, "has hidden_size None, expected a whole number"),
    ("intermediate_size", 64, "do not fit"),
    ("vocab_size", 3_000_000, "do not fit"),
    ("num_key_value_heads", -1, "has num_key_value_heads -1, expected a whole number"),
    ("num_key_value_heads", "x", "has num_key_value_heads 'x', expected a whole number"),
    ("num_key_value_heads", 1.5, "has num_key_value_heads 1.5, expected a whole number"),
    ("num_key_value_heads", True, "has num_key_value_heads True, expected a whole number"),
    ("rope_parameters", {"rope_type": "default", "rope_theta": None}, "has rope_theta None, expected a number"),
    ("rope_parameters", {"rope_type": "default", "rope_theta": {}}, "has rope_theta {}, expected a number"),
    ("rope_parameters", {"rope_type": "default", "rope_theta": 1e23}, r"has rope_theta 1e\+23, expected a number"),
    ("rope_parameters", "x", "has rope_parameters 'x', expected an object"),
    ("rms_norm_eps", "x", "has rms_norm_eps 'x', expected a number"),
    ("_attn_implementation", "somebody/kernel", "has _attn_implementation 'somebody/kernel', expected a name"),
]


@pytest.mark.parametrize("name", ["emu3-gen", "janus-pro-1b"])
@pytest.mark.parametrize(("key", "value", "words"), LIES)
def test_a_config_that_lies_is_refused_before_anything_is_built(folders, tmp_path, name, key, value, words):
    folder = tmp_path / "copy"
    shutil.copytree(folders[name], folder)
    found = json.loads((folder / "config.json").read_text())
    found["text_config"][key] = value
    (folder / "config.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match=words) as error:
        vargen.load(name, checkpoint=folder, device="cpu")
    assert "\n" not in str(error.value)


def test_a_vocabulary_that_lies(folders, tmp_path):
    for value in (10**6, -1, "x", None):
        folder = tmp_path / str(value)
        shutil.copytree(folders["emu3-gen"], folder)
        found = json.loads((folder / "config.json").read_text())
        found["vocabulary_map"]["<|visual token 000003|>"] = value
        (folder / "config.json").write_text(json.dumps(found))
        with pytest.raises(ValueError, match=r"at .*, expected an id below"):
            vargen.load("emu3-gen", checkpoint=folder, device="cpu")


def test_weights_of_transformers_models_are_numbers(folders, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(folders["janus-pro-1b"], folder)
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    state = load_file(shard)
    key = next(key for key in state if key.endswith("weight"))
    save_file({**state, key: torch.full_like(state[key], float("nan"))}, shard, {"format": "pt"})
    with pytest.raises(ValueError, match="have NaN or infinity in "):
        vargen.load("janus-pro-1b", checkpoint=folder, device="cpu")
