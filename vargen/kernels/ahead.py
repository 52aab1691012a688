"""Compile every kernel ahead of time, without a GPU, and count what it takes: registers and spills, by Triton's ptxas.

`python scripts/compile_kernels.py` writes what it finds to benchmarks/kernels-compiled.json. Shapes are LlamaGen-XL's.
"""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from vargen.core.dispatch import triton
from vargen.kernels import attention, gsd, lantern, norm, rope, sample, silu_mul, verify

TARGETS = (80, 90)
VOCABULARY, HEAD = 16384, 64
F32, BF16, I64, BOOL, INT, FLOAT = "*fp32", "*bf16", "*i64", "*i1", "i32", "fp32"
TRUNCATED = {"ALLOWED": True, "OWN": False, "TEMPERED": True, "TOP_K": True, "TOP_P": True, "BLOCK": VOCABULARY}

_SAMPLE = (F32, BOOL, F32, I64, I64, F32, I64, INT, INT, FLOAT, INT, FLOAT, INT)
_STRETCH = (BF16, BF16, BF16, I64, BOOL, BOOL, F32, F32, *(INT,) * 11, FLOAT)
_HEADS = {"HEADS": 20, "GROUP": 1, "DIM": HEAD, "CHANNELS": HEAD}
_WINDOW = {"QUERIES": 32, "STRETCH": attention.STRETCH, "BLOCK": attention.BLOCK}
_WIDE = {**_HEADS, **_WINDOW, "DIM": 128, "CHANNELS": 128, "QUERIES": attention.MOST // 128}
_ROPE = (*(BF16,) * 3, *(F32,) * 2, *(BF16,) * 4, I64, *(BF16,) * 3, *(INT,) * 11, FLOAT)
_TURNED = {"HEADS": 20, "KEYS": 20, "DIM": HEAD, "HALF": HEAD // 2, "Q_EACH": 20, "K_EACH": 20}
CASES: dict[str, tuple[Any, tuple[str, ...], dict[str, Any], int]] = {  # kernel, types, constants, warps
    "sample, law": (sample._rows, _SAMPLE, {**TRUNCATED, "DRAW": False}, 16),
    "sample, draw": (sample._rows, _SAMPLE, {**TRUNCATED, "DRAW": True}, 16),
    "sample, draw, own laws": (sample._rows, _SAMPLE, {**TRUNCATED, "OWN": True, "DRAW": True}, 16),
    "verify": (verify._rows, (I64, F32, F32, I64, I64, BOOL, I64, INT, INT),
               {"ACCEPT": 2, "REDRAW": 3, "BLOCK": verify.CHUNK}, 8),
    "attention, causal": (attention._stretch, _STRETCH, {**_HEADS, **_WINDOW, "SEES": False, "PADDING": False}, 4),
    "attention, masked": (attention._stretch, _STRETCH, {**_HEADS, **_WINDOW, "SEES": True, "PADDING": True}, 4),
    "attention, most": (attention._stretch, _STRETCH, {**_WIDE, "SEES": True, "PADDING": True}, 4),
    "attention, float32": (attention._stretch, (F32, F32, F32, *_STRETCH[3:]),
                           {**_WIDE, "QUERIES": attention.MOST // 4 // 128, "SEES": True, "PADDING": True}, 4),
    "attention, join": (attention._join, (F32, F32, BF16, INT, INT, INT), {**_HEADS, "STRETCHES": 8}, 4),
    "norm": (norm._rows, (*(BF16,) * 5, INT, FLOAT), {"ADD": False, "BLOCK": 2048}, 4),
    "norm, of a sum": (norm._rows, (*(BF16,) * 5, INT, FLOAT), {"ADD": True, "BLOCK": 2048}, 4),
    "silu times": (silu_mul._channels, (BF16, BF16, BF16, INT, INT, INT), {"BLOCK": silu_mul.BLOCK}, 4),
    "rope": (rope._heads, _ROPE, {**_TURNED, "NORM": False}, 1),
    "rope, norms": (rope._heads, _ROPE, {**_TURNED, "NORM": True}, 1),
    "shifted": (lantern._shifted, (I64, F32, I64, F32, INT, INT, FLOAT),
                {"OWN": True, "BLOCK": lantern.CHUNK, "NEAR": 1024}, 4),
    "cluster": (gsd._cluster, (I64, F32, F32, F32, F32, F32, INT, INT, INT, FLOAT, FLOAT),
                {"DIM": 8, "CHANNELS": 16, "BLOCK": VOCABULARY}, 16),
}  # fmt: skip


def compiled(name: str, target: int) -> dict[str, int]:
    """Registers a thread, bytes spilled and bytes of shared memory of a kernel in `CASES` for sm_`target`."""
    assert triton is not None
    if triton.knobs.runtime.interpret:
        raise ValueError("kernels are not compiled where TRITON_INTERPRET is set: unset it")
    kernel, types, constants, warps = CASES[name]
    names = kernel.arg_names
    signature = dict(zip(names, (*types, *("constexpr",) * len(constants)), strict=True))
    source = triton.compiler.ASTSource(kernel, signature, constants)
    made = triton.compile(
        source, target=triton.backends.compiler.GPUTarget("cuda", target, 32), options={"num_warps": warps}
    )
    assert made.asm["cubin"]
    return {"sm": target, **_assembled(made.asm["ptx"]), "shared_bytes": made.metadata.shared}


def _assembled(ptx: str) -> dict[str, int]:
    """What ptxas says of a kernel."""
    architecture = re.findall(r"\.target (sm_\w+)", ptx)[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx, encoding="utf-8")
        words = [triton.knobs.nvidia.ptxas.path, "-v", f"--gpu-name={architecture}", path, "-o", path.with_suffix(".o")]
        said = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=True).stderr
    spilled = sum(int(count) for count in re.findall(r"(\d+) bytes spill", said))
    return {"registers": int(re.findall(r"Used (\d+) registers", said)[0]), "spilled_bytes": spilled}
