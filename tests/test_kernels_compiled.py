"""Kernels compile ahead of time to machine code of two GPUs, without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vargen.core.dispatch import triton
from vargen.kernels.ahead import CASES, TARGETS, compiled

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(triton is None, reason="Triton is not installed for this platform")


def test_kernels_compile(tmp_path):
    """In a process of its own: here they are interpreted."""
    clean = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "scripts/compile_kernels.py", "--json", str(tmp_path / "compiled.json")]
    done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "compiled.json").read_text())
    assert list(found) == list(CASES)
    for name, cases in found.items():
        assert [case["sm"] for case in cases] == list(TARGETS)
        assert all(0 < case["registers"] <= 255 for case in cases)
        assert all(case["spilled_bytes"] <= (400 if name.startswith("sample, draw") else 0) for case in cases), name
        assert all(case["shared_bytes"] <= 96 << 10 for case in cases)  # as consumers' cards have
    assert set(json.loads((ROOT / "benchmarks" / "kernels-compiled.json").read_text())) == set(found)


def test_nothing_is_compiled_under_the_interpreter(monkeypatch):
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    with pytest.raises(ValueError, match="unset it"):
        compiled("verify", 90)
