"""Sampling runs of several processes, and of one that is killed: the files are those of one that nobody disturbed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_eval_runs import files

from vargen.commands import evaluate

ROOT = Path(__file__).parent.parent
COMMAND = ["sample", "--model", "pocket-llamagen-small", "--method", "sjd-exact:window=16"]
COMMAND += ["--num-images", "9", "--batch-size", "2", "--device", "cpu", "--out"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(launch, out):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *launch, *COMMAND, str(out)], cwd=ROOT, env=ENVIRONMENT, **pipes)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The files of one process that nobody disturbed."""
    out = tmp_path_factory.mktemp("runs") / "one"
    evaluate.command([*COMMAND, str(out)])
    return files(out)


def test_processes_draw_the_same_files(tmp_path, reference):
    """Five groups of images for two processes: one of them waits for the other."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "scripts/evaluate.py"]
    process = start(launch, tmp_path / "run")
    text, _ = process.communicate()
    assert process.returncode == 0, text
    assert files(tmp_path / "run") == reference
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["complete"]


HANGS = """
import sys, time
from vargen.commands import evaluate
from vargen.core import png
write, made = png.write_atomically, []
def hanging(path, fill):
    made.append(1)
    def fills(temporary):
        fill(temporary)
        if len(made) == 4:
            print("hangs", flush=True)
            time.sleep(3600)
    write(path, fills)
png.write_atomically = hanging
evaluate.command(sys.argv[1:])
"""


def test_kill_9_in_the_middle(tmp_path, reference):
    """While the fourth image is being written: its file is there, under a hidden name."""
    out = tmp_path / "run"
    process = start(["-c", HANGS], out)
    assert process.stdout is not None
    before = []
    for line in process.stdout:  # until it hangs, however long that takes, or ends
        before.append(line)
        if "hangs" in line:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    names = sorted(path.name for path in out.glob("images/*"))
    hidden, there = [name for name in names if name[0] == "."], [name for name in names if name[0] != "."]
    assert (len(hidden), there) == (1, ["000000.png", "000001.png", "000002.png"]), before
    assert all((out / "images" / name).read_bytes() == reference[name] for name in there)
    assert not json.loads((out / "manifest.json").read_text())["complete"]
    evaluate.command([*COMMAND, str(out)])
    (out / "images" / hidden[0]).unlink()  # it stays for an hour: another process might be writing it
    assert files(out) == reference
