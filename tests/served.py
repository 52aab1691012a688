"""A server as it runs, and the application with small models, for the tests of both."""

import asyncio
import base64
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import small

from vargen.server.guard import IMAGES
from vargen.server.options import Options
from vargen.server.threads import application

ROOT = Path(__file__).parent.parent
KEY = "a key for tests"
HEADERS = {"authorization": f"Bearer {KEY}"}
LONG = 300  # seconds: more than anything takes on busy cores
MODELS = ("pocket-var", "pocket-llamagen", "pocket-lumina")


class Running:
    """A server of its own process, and what it has written."""

    def __init__(self, models: tuple[str, ...] = MODELS) -> None:
        began = time.monotonic()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.lines = f"http://127.0.0.1:{self.port}", []
        words = [sys.executable, ROOT / "scripts" / "serve.py", "--port", self.port, "--device", "cpu"]
        words += ["--max-queue", 80, "--deadline", LONG, "--max-body", 4000]
        words += [word for model in models for word in ("--model", model)]
        env = {**os.environ, "VARGEN_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(list(map(str, words)), env=env, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        threading.Thread(target=self._read, daemon=True).start()
        assert soon(self.answers), self.lines
        self.pids = sorted(self.children())
        print(f"started in {time.monotonic() - began:.1f} s")

    def answers(self) -> bool:
        """Whether it is up."""
        assert self.process.poll() is None, self.lines
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/healthz").status_code == 200
        return False

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)

    def front(self) -> int:
        """The process that answers requests: forked last."""
        return max(pid for pid in self.children() if pid != self.worker())

    def children(self) -> list[int]:
        """The processes that the server has started."""
        listed = subprocess.run(["ps", "-ww", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout
        pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
        return [pid for pid, parent in pairs if parent == self.process.pid]

    def worker(self) -> int:
        """The process that draws: the one that was started afresh."""
        listed = subprocess.run(["ps", "-ww", "-eo", "pid=,args="], capture_output=True, text=True).stdout
        fresh = [int(line.split()[0]) for line in listed.splitlines() if "spawn_main" in line]
        return next(pid for pid in fresh if pid in self.children())

    def post(self, body, **options):
        """Ask for images."""
        return httpx.post(f"{self.url}{IMAGES}", json=body, headers=HEADERS, timeout=LONG, **options)

    def metrics(self):
        """Its numbers, by name."""
        text = httpx.get(f"{self.url}/metrics", headers=HEADERS).text
        return {name: float(value) for name, value in re.findall(r"^([^#\s]\S*) (\S+)$", text, re.MULTILINE)}

    def rows(self) -> float:
        """Images that it has begun to draw, ever."""
        return self.metrics().get("vargen_batch_rows_sum", 0.0)


def end(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def soon(true, seconds=LONG):
    """Whether something comes true: as soon as it does, or in far more time than a busy machine takes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.1)
    return False


def descriptors(pid):
    """How many files and sockets a process holds open, where the system tells."""
    folder = Path(f"/proc/{pid}/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def limits(**others):
    few: dict[str, Any] = {"batch_size": 6, "max_images": 4, "max_prompt": 50, "max_body": 2000, "deadline": 30}
    return Options(model=("small", "small-scales"), **few | others)


def pipes():
    return {"small": small.pipeline(), "small-scales": small.scale_pipeline()}


def play(use, options=None):
    """What `use(client)` gives, of a server that lives as long as it takes."""

    async def run():
        app = application(options or limits(), pipes)
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=LONG) as client:
                return await use(client)

    return asyncio.run(run())


def ask(*bodies):
    async def use(client):
        return await asyncio.gather(*(client.post(IMAGES, json=body) for body in bodies))

    return play(use)


def pictures(answer):
    return [base64.b64decode(data["b64_json"]) for data in answer.json()["data"]]
