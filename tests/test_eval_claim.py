"""Whose a run's folder is: of two runs that start at once one gets it, whoever was killed before; and what it keeps."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest
from small import PRESETS, pipeline
from test_pictures import made

from vargen.core import atomic
from vargen.core.image_processor import open_picture
from vargen.eval import plan, runs

ROOT = Path(__file__).parent.parent


def make(count=6, **rest):
    return plan.make(PRESETS["small"], "ar", count, recipe=None, law={}, **{"batch_size": 4, **rest})


def draw(wanted, out):
    return runs.sample(wanted, lambda device: pipeline(), out, device="cpu")


def test_of_two_runs_at_once_one_gets_the_folder(tmp_path, monkeypatch):
    """Both would write their manifest at the same moment, if both had passed the check."""
    pipe, write, meeting, refused = pipeline(), runs._write_manifest, threading.Barrier(2), []

    def slow(out, manifest):
        with contextlib.suppress(threading.BrokenBarrierError):  # the other one waits for the lock
            meeting.wait(timeout=2)
        write(out, manifest)

    def begin(seed):
        try:
            runs._begin(make(seed=seed), pipe, tmp_path / "run")
        except ValueError as error:
            refused.append((seed, str(error)))

    monkeypatch.setattr(runs, "_write_manifest", slow)
    threads = [threading.Thread(target=begin, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ((seed, words),) = refused
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["plan"]["seed"] == 3 - seed
    assert f"holds another run: seed {3 - seed} instead of {seed}; give another --out, or delete" in words


def test_the_same_run_twice_shares_its_folder(tmp_path):
    for _ in range(2):
        assert len(runs._begin(make(), pipeline(), tmp_path / "run")) == 2


def test_a_lock_goes_with_its_process(tmp_path):
    """kill -9 of one that held it: the next one gets it."""
    path = tmp_path / "run" / ".manifest.lock"
    code = f"""
import sys
from pathlib import Path
from vargen.core.atomic import locked
with locked(Path({str(path)!r})):
    print("mine", flush=True)
    sys.stdin.read()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes) as holder:  # it ends with its standard input
        assert holder.stdout is not None
        assert holder.stdout.readline() == "mine\n"
        entered = threading.Event()

        def enter():
            with atomic.locked(path):
                entered.set()

        waiting = threading.Thread(target=enter)
        waiting.start()
        assert not entered.wait(timeout=0.2)
        holder.send_signal(signal.SIGKILL)
    waiting.join(timeout=60)
    assert entered.is_set()
    assert draw(make(), tmp_path / "run")["complete"]  # a folder with nothing but that lock in it


def test_what_rank_0_refuses_the_others_leave_quietly(tmp_path):
    draw(make(), tmp_path / "run")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    argv = ["scripts/evaluate.py", "sample", "--model", "pocket-llamagen-small", "--method", "ar", "--num-images", "3"]
    argv += ["--device", "cpu", "--out", str(tmp_path / "run")]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            [sys.executable, *argv],
            cwd=ROOT,
            env={**shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    said = [rank.communicate() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 0], said
    assert "holds another run" in said[0][1]
    assert not any("vargen:" in text or "Traceback" in text for text in said[1]), said[1]


@pytest.mark.parametrize(
    "content",
    [
        made(None, 12, 12),
        made(b"this is no zlib stream", 12, 12),
        made(zlib.compress(bytes(37 * 11)), 12, 12),
        made(zlib.compress(bytes(49 * 12)), 12, 12, colour=6),
    ],
    ids=["no pixels", "no zlib stream", "a row short", "RGBA"],
)
def test_what_cannot_be_decoded_is_drawn_again(tmp_path, content):
    """In a run that was stopped: there are no checksums yet that would tell."""
    wanted, out = make(), tmp_path / "run"
    draw(wanted, out)
    image, manifest = out / "images" / "000002.png", out / "manifest.json"
    before = image.read_bytes()
    (out / "images" / "SHA256SUMS").unlink()
    manifest.write_text(manifest.read_text().replace('"complete": true', '"complete": false'))
    image.write_bytes(content)
    draw(wanted, out)
    assert image.read_bytes() == before
    assert open_picture(image).size == (12, 12)


def test_another_run_is_told_in_few_words(tmp_path):
    """A run may have thousands of prompts; a sentence has not."""
    one, two = (plan.Plan("m", "ar", "default", 9, prompts=tuple(f"{word} {i}" for i in range(5000))) for word in "ab")
    (tmp_path / "manifest.json").write_text(json.dumps({"plan": one.json(), "weights": "w"}))
    with pytest.raises(ValueError, match="holds another run: prompts") as refusal:
        runs._claim({"plan": two.json(), "weights": "w"}, None, tmp_path)
    assert len(str(refusal.value)) < 600
