"""A cluster of Ray for tests: where it writes, how its processes are known, and their end."""

import importlib.util
import os
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pytest
from served import ROOT, end

HERE = all(importlib.util.find_spec(name) for name in ("ray", "pyarrow"))
needs_ray = pytest.mark.skipif(not HERE, reason="Ray is not installed: make .venv/ray")
needs_two = pytest.mark.skipif(
    sys.platform != "linux" or (os.cpu_count() or 1) < 2,
    reason="two replicas want a CPU each, and /proc to tell whose they are",
)


class Cluster:
    """What Ray writes goes to a folder; a token that all its processes inherit tells which they are."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray"))  # not pytest's: the paths of sockets must be short
        self._mark = secrets.token_hex(32)

    @property
    def environment(self) -> dict[str, str]:
        """Of whatever starts or joins it."""
        paths = [ROOT, *(Path(path).absolute() for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path)]
        own = {"RAY_TMPDIR": str(self.folder), "RAY_AUTH_TOKEN": self._mark, "RAY_USAGE_STATS_ENABLED": "0"}
        return {**os.environ, **own, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}

    def processes(self) -> dict[int, str]:
        """What they call themselves, by their id."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark.encode() in (path / "environ").read_bytes():
                    found[int(path.name)] = (
                        (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    )
            except OSError:  # it has ended, or is somebody else's
                continue
        return found

    def close(self) -> None:
        """End them all, whatever has happened."""
        while found := self.processes():  # one may have started another meanwhile
            for pid in found:
                end(pid)
            time.sleep(0.1)
        shutil.rmtree(self.folder, ignore_errors=True)
