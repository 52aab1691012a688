"""The benchmark of published shapes: what it imposes, what it counts, what it refuses."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import small
import torch

from vargen.commands import bench, main, synthetic
from vargen.core import registry
from vargen.core.warp import Warp
from vargen.engine import loops
from vargen.engine.guidance import Guidance
from vargen.samplers.contract import Task

ROOT = Path(__file__).parent.parent


def test_rows_of_every_width_batch_and_mode(tmp_path, capsys):
    path = tmp_path / "out.json"
    flags = ["--synthetic", "pocket", "--widths", "1,4", "--batches", "1,2", "--modes", "off,auto", "--steps", "3"]
    bench.command([*flags, "--dtype", "float32", "--device", "cpu", "--json", str(path)])
    result = json.loads(path.read_text())
    shapes = [(row["batch"], row["mode"], row["width"]) for row in result["rows"]]
    assert shapes == [(b, mode, w) for b in (1, 2) for mode in ("off", "auto") for w in (1, 4)]
    for row in result["rows"]:
        assert row["model_ms"] > 0
        assert row["sampler_ms"] > 0
        assert row["tokens_per_forward"] == (1 if row["width"] == 1 else 3)
        layers = {"attention", "norm", "add_norm", "silu_mul", "rope"}
        assert set(row["kernels"]) == layers | {"sample"} | ({"verify"} if row["width"] > 1 else set())
        assert row["limit_ms"] == pytest.approx(row["bytes"] / result["bytes_per_second"] * 1e3, rel=1e-2)
    shown = capsys.readouterr().out
    assert shown.count("\n| ") == 2 + 8 - 1
    roofline = runpy.run_path(str(ROOT / "benchmarks" / "roofline.py"))["main"]
    roofline([str(path)])
    assert capsys.readouterr().out.strip() == shown.strip()
    roofline([str(path), "--bandwidth", "1000"])
    assert "1000.0 GB/s" in capsys.readouterr().out


@pytest.mark.parametrize(("tokens", "steps"), [(3.0, 6), (2.5, 8), (1.0, 4)])
def test_the_acceptance_is_imposed(tokens, steps):
    model, guidance = small.llamagen(), Guidance(2.0)
    task = Task(model.spec, torch.arange(2), Warp())
    sampler: Any = synthetic.ImposedJacobi(4, task, synthetic.Imposed(tokens, steps))
    condition = model.class_condition(torch.tensor([0, 1]), guided=True)
    at = []
    for _ in loops.raster(model, condition, sampler, guidance, loops.Clock(model.device), loops.Counts()):
        at.append(sampler.settled[0])
        if len(at) > steps:
            break
    assert at[0] == (36 - round(tokens * steps)) // 2  # in the middle
    assert at[-1] - at[0] == int(tokens * steps)
    assert len({tuple(sampler.settled)}) == 1


@pytest.mark.parametrize("name", ["pocket-var", "pocket-mar"])
def test_other_models_draw_whole_images(tmp_path, name, monkeypatch):
    monkeypatch.setitem(
        synthetic.WHOLE, "continuous", ("mar:iterations=3:steps=2", "disa:iterations=3:upper=2:lower=1")
    )
    path = tmp_path / "out.json"
    bench.command(["--synthetic", name, "--dtype", "float32", "--device", "cpu", "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    kind = registry.preset(name).kind
    assert [row["mode"] for row in rows] == [
        f"{each}, {mode}" for each in synthetic.WHOLE[kind] for mode in ("off", "auto")
    ]
    assert all(row["model_ms"] > 0 and row["sampler_ms"] > 0 for row in rows)
    assert rows[0]["tokens_per_forward"] == (68 if kind == "next-scale" else pytest.approx(256 / 3, abs=1e-3))


def test_bytes_are_those_of_what_is_read():
    model = small.llamagen()
    c = model.config
    tables = model.tok_embeddings.weight.numel() + 6 * c.width
    weights = sum(p.numel() for p in model.parameters()) - tables
    assert synthetic.read(model, 2, 10) == 4 * (weights + 2 * 10 * 2 * c.layers * c.width)


def test_bad_flags(tmp_path, capsys):
    flags = ["--synthetic", "pocket", "--json", str(tmp_path / "x.json")]
    for more, complaint in (
        (["--widths", "1,0"], "got widths '1,0', expected whole numbers from 1 to"),
        (["--batches", "x"], "got batches 'x', expected whole numbers"),
        (["--modes", "fast"], "got mode 'fast', expected off, auto or compile"),
        (
            ["--synthetic", "pocket-var", "--modes", "compile"],
            "got mode 'compile' for pocket-var, expected off or auto",
        ),
        (["--tokens-per-forward", "0.5"], "got tokens per forward below 1, or"),
        (["--synthetic", "dalle"], "invalid choice: 'dalle'"),
    ):
        with pytest.raises(SystemExit):
            main.guarded(bench.command, [*flags, *more])
        assert complaint in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"was not written by scripts/benchmark.py --synthetic"):
        runpy.run_path(str(ROOT / "benchmarks" / "roofline.py"))["main"](
            [str(ROOT / "benchmarks" / "pocket-mar-cpu.json")]
        )
