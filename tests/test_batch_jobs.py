"""The Slurm script of docs/batch_jobs.md, with two launchers on this machine in place of two nodes."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vargen

ROOT = Path(__file__).parent.parent
SLURM = """#!/bin/bash
# A node has a folder of its own in which the command runs, and all share the script's variables.
"$@" & first=$!
"$@" & second=$!
wait $first && wait $second
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_the_slurm_script(tmp_path):
    (script,) = re.findall(r"```text\n(#!/bin/bash.*?)```", (ROOT / "docs" / "batch_jobs.md").read_text(), re.DOTALL)
    tools, out = tmp_path / "bin", tmp_path / "run"
    tools.mkdir()
    for name, text in {
        "srun": SLURM,
        "scontrol": "#!/bin/bash\nprintf 'localhost\\nlocalhost\\n'\n",
        "torchrun": f'#!/bin/bash\nexec {sys.executable} -m torch.distributed.run --local-addr localhost "$@"\n',
    }.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    reference = tmp_path / "reference"
    reference.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(reference / f"{i}.png")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = "evaluate run --model pocket-llamagen-small --method sjd-exact:window=16 --num-images 5 --batch-size 2"
    words += f" --features pocket --reference {reference} --device cpu --cache {tmp_path / 'cache'} --out {out}\n"
    script, swapped = re.subn(r"evaluate run .*", lambda _: words, script, flags=re.DOTALL)
    script, moved = re.subn(":29500", f":{port}", script)
    assert (swapped, moved) == (1, 1)
    job = {
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "1",
        "SLURM_JOB_ID": "7",
    }
    paths = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=tmp_path, env={**os.environ, **job, **paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["complete"]
    assert json.loads((out / "result.json").read_text())["plan"]["count"] == 5
    pipe = vargen.load("pocket-llamagen-small", device="cpu")
    alone = pipe([4], seed=4, method="sjd-exact:window=16", batch_size=1).images[0]
    assert np.array_equal(np.asarray(Image.open(out / "images" / "000004.png")), np.asarray(alone))
