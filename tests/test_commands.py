"""`vargen COMMAND`: what each says of itself, plans of memory, completion."""

import errno
import importlib
import io
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from vargen.commands import completion, main
from vargen.commands.plan import command as plan_command
from vargen.commands.sample import parser as sample_parser
from vargen.pipelines.plan import plan

SCREEN = 58  # lines
COMPLETED = {  # what is typed -> what a shell makes of its last word
    "vargen sam": ["sample"],
    "vargen sample --model pocket-l": ["pocket-llamagen", "pocket-llamagen-small", "pocket-lumina"],
    "vargen sample --method sjd-e": ["sjd-exact"],
    "vargen sample --class isl": ["island\\ under\\ stars"],
    "vargen models var-d3": ["var-d30", "var-d36"],
}


@pytest.mark.parametrize("name", main.COMMANDS)
def test_help_fits_on_a_screen(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    module = importlib.import_module(main.COMMANDS[name][0])
    with pytest.raises(SystemExit):
        module.command(["--help"])
    said = capsys.readouterr().out
    assert said.startswith(f"usage: vargen {name}")
    assert len(said.splitlines()) <= SCREEN
    assert "\x1b" not in said  # no colours, whatever NO_COLOR says
    assert module.parser().prog == f"vargen {name}"


@pytest.mark.parametrize("act", ["sample", "run", "measure", "report"])
def test_help_of_evaluate(act, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        importlib.import_module("vargen.commands.evaluate").command([act, "--help"])
    said = capsys.readouterr().out
    assert said.startswith(f"usage: vargen evaluate {act}")
    assert len(said.splitlines()) <= SCREEN


def test_usage_names_every_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vargen"])
    main.main()
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in main.COMMANDS)
    monkeypatch.setattr(sys, "argv", ["vargen", "draw"])
    with pytest.raises(SystemExit):
        main.main()
    assert "unknown command 'draw'; there are sample, bench" in capsys.readouterr().err


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_completion(shell, tmp_path, capsys):
    main.guarded(completion.command, [shell])
    script = capsys.readouterr().out
    assert "num-images" in script
    assert "train-pocket" in script
    assert "pocket-lumina" in script
    assert "sjd-coupled" in script
    for typed, completed in COMPLETED.items() if shell == "bash" else ():
        words = typed.split(" ")
        path, last = tmp_path / "vargen.sh", words[-1]
        asked = f"COMP_WORDS=({' '.join(words)})\nCOMP_CWORD={len(words) - 1}\n_shtab_vargen vargen '{last}' vargen\n"
        path.write_text(f'{script}\n{asked}printf "%s\\n" "${{COMPREPLY[@]}}"\n')
        done = subprocess.run(["bash", path], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == completed, done.stderr


def test_settings_of_the_method_are_flags(capsys):
    with pytest.raises(SystemExit):
        sample_parser("zipar:window=4").parse_args(["--help"])
    said = capsys.readouterr().out
    assert "settings of zipar" in said
    assert "--window" in said
    assert "--coupling" not in said


def test_plan(capsys):
    main.guarded(plan_command, ["--model", "llamagen-c2i-xl-384", "--method", "ar", "--batch-size", "4"])
    want = str(plan("llamagen-c2i-xl-384", method="ar", batch=4))
    assert capsys.readouterr().out.strip() == want
    assert "weights 1.4" in want  # 775 M parameters in bfloat16
    for wrong, words in (
        (["--model", "janus-1.3b"], "cannot be planned: its shapes are in its files"),
        (["--batch-size", "0"], "batch size 0"),
        (["--batch-size", "1" * 20], "expected at most 100000000"),
    ):
        with pytest.raises(SystemExit):
            main.guarded(plan_command, wrong)
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "fail",
    [
        lambda: torch.empty(1 << 50),
        lambda: torch.empty(1 << 62),
        lambda: torch.zeros(1).expand(1 << 50).clone(),
        lambda: np.empty(1 << 50),
        lambda: bytearray(1 << 50),
        lambda: failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")),
        lambda: failing(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
        lambda: failing(OSError(errno.ENOMEM, "Cannot allocate memory")),
    ],
)
def test_too_little_memory_is_one_sentence(fail, capsys):
    with pytest.raises(SystemExit) as stopped:
        main.guarded(lambda argv: fail(), [])
    assert stopped.value.code == 2
    words = capsys.readouterr().err
    assert words.startswith("vargen: out of memory: lower --batch-size, or the number or the size of images")
    assert words.count("\n") == 1


def failing(error):
    raise error


def test_other_errors_of_the_run_keep_their_traceback():
    with pytest.raises(RuntimeError, match="shapes"):
        main.guarded(lambda argv: failing(RuntimeError("shapes do not match")), [])


def test_scripts_are_doors():
    """Each is an import and a call."""
    for name in ("sample", "benchmark", "evaluate", "serve", "demo", "train_pocket"):
        lines = (Path(__file__).parent.parent / "scripts" / f"{name}.py").read_text().splitlines()
        assert len(lines) <= 8
        assert re.fullmatch(r"door\(\"[a-z-]+\"\)", lines[-1].strip())


def test_who_has_no_standard_output_is_served_too(monkeypatch):
    """As where a shell closed it (>&-): what a command prints goes nowhere."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setitem(main.COMMANDS, "said", ("said", "words"))
    said = types.SimpleNamespace(command=lambda argv: (print("never seen"), sys.stderr.write("nor this")))
    monkeypatch.setitem(sys.modules, "said", said)
    main.door("said", [])
    sys.stdout.close()
    sys.stderr.close()


def test_no_text_hangs_on_the_locale():
    """Files that are read and written as text say in which encoding; Windows has another than UTF-8."""
    for path in (Path(main.__file__).parents[1]).rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert not re.search(r"\b(read_text|write_text)\(", line) or "encoding=" in line, (path, line)


def test_letters_that_a_terminal_has_not_are_no_error(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setitem(main.COMMANDS, "said", ("said", "words"))
    monkeypatch.setitem(sys.modules, "said", types.SimpleNamespace(command=lambda argv: print("1 ± 2")))
    main.door("said", [])
    assert out.buffer.getvalue() == b"1 \\xb1 2\n"  # pyright: ignore[reportAttributeAccessIssue]
