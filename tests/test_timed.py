"""Seconds per step are measured once on a machine: others find them, and nothing that is damaged is believed."""

import json
import os
import time

import pytest
from small import pipeline

from vargen.engine import loops, timed


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VARGEN_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def measured(monkeypatch):
    """How often steps were timed; they cost what a straight line says."""
    calls = []
    monkeypatch.setattr(loops, "step_costs", lambda *_, **__: calls.append(1) or {1: 1.0, 4: 1.1, 8: 1.5})
    return calls


def draw(**how):
    return pipeline()([1, 2], method="sjd-coupled", seed=0, output_type="latent", **how)


def test_another_process_does_not_measure_again(folder, measured):
    first, second = draw(), draw()  # each with a pipeline of its own
    assert len(measured) == 1
    assert first.trace.windows == second.trace.windows
    (path,) = folder.glob("steps-*.json")
    assert json.loads(path.read_text())["seconds"] == {"1": 1.0, "4": 1.1, "8": 1.5}


@pytest.mark.parametrize("change", [{"batch_size": 1}, {"guidance_scale": 1.0}, {"top_k": 3}, {"guess": "left"}])
def test_what_costs_something_else_is_measured(folder, measured, change):
    draw()
    draw(**change)
    assert len(measured) == 2
    assert len(list(folder.glob("steps-*.json"))) == 2


LIES = [{"4": 1.0}, {"1": -1.0}, {"1": "x"}, {"1": float("nan")}, {"1": 1.0, "-4": 1.0}]


@pytest.mark.parametrize("text", ["", "[]", "{}", "\x00", *(json.dumps({"seconds": lie}) for lie in LIES)])
def test_what_is_damaged_is_measured_anew(folder, measured, text):
    draw()
    (path,) = folder.glob("steps-*.json")
    path.write_text(text)
    draw()
    assert len(measured) == 2
    assert json.loads(path.read_text())["seconds"]["1"] == 1.0


def test_it_lasts_a_month(folder, measured):
    draw()
    (path,) = folder.glob("steps-*.json")
    for age in (timed.LASTS + 9, -9999):  # old, or of a clock that was put back
        then = time.time() - age
        os.utime(path, (then, then))
        draw()
    assert len(measured) == 3


def test_where_nothing_can_be_kept_it_is_measured(folder, measured, monkeypatch):
    monkeypatch.setenv("VARGEN_CACHE", str(folder / "a file"))
    (folder / "a file").write_text("")
    draw()
    draw()
    assert len(measured) == 2
