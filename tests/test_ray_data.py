"""The program of docs/batch_jobs.md for Ray Data, as it stands there, with two actors on this machine."""

import csv
import hashlib
import re
import subprocess
import sys

import numpy as np
import pytest
from clusters import Cluster, needs_ray, needs_two
from PIL import Image
from served import ROOT

import vargen

pytestmark = [needs_ray, needs_two]
BOTH = """
import runpy, sys
import ray.data
ray.data.DataContext.get_current().wait_for_min_actors_s = 600  # else one may have drawn all before the other is there
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def cluster():
    made = Cluster()
    yield made
    made.close()


def test_the_program_of_the_page(cluster, tmp_path):
    page = (ROOT / "docs" / "batch_jobs.md").read_text()
    (program,) = re.findall(r"```python\n(# draw_with_ray\.py\n.*?)```", page, re.DOTALL)
    (tmp_path / "draw_with_ray.py").write_text(program)
    words, out = ["draw_with_ray.py", "images", "pocket-llamagen-small", "48"], tmp_path / "images"
    words = [sys.executable, "-c", BOTH, *words]
    done = subprocess.run(words, cwd=tmp_path, env=cluster.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    with (out / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["seed"]), int(row["class"]), row["file"]) for row in rows] == [
        (i, i % 10, f"{i:06d}.png") for i in range(48)
    ]
    assert len({row["drawn_by"] for row in rows}) == 2
    assert all(row["sha256"] == hashlib.sha256((out / row["file"]).read_bytes()).hexdigest() for row in rows)
    pipe = vargen.load("pocket-llamagen-small", device="cpu")
    for i in (0, 47):
        alone = pipe([i % 10], seed=i, method="sjd-exact:window=16", batch_size=1).images[0]
        assert np.array_equal(np.asarray(Image.open(out / f"{i:06d}.png")), np.asarray(alone))
