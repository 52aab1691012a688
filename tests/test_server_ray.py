"""The deployment of docs/serving.md, as it stands there, run by Ray Serve on this machine."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray.serve", reason="Ray is not installed: pip install 'ray[serve]'")
pytest.importorskip("litserve", reason="the server is an extra: pip install 'vargen[serve]'")

ROOT = Path(__file__).parent.parent
DRIVER = """
import sys
import httpx
import ray
from ray import serve

port = int(sys.argv[1])
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": port})
import ray_images

serve.run(ray_images.app)
url = f"http://127.0.0.1:{port}"
body = {"class": "beach", "seed": 5, "response_format": "file"}
answers = [httpx.post(f"{url}/v1/images/generations", json=body, timeout=60) for _ in range(4)]
assert [answer.status_code for answer in answers] == [200] * 4, answers[0].text
assert len({answer.content for answer in answers}) == 1  # whichever replica drew
with httpx.stream("POST", f"{url}/v1/images/generations", json={"class": 1, "stream": True}, timeout=60) as events:
    names = [line for line in events.iter_lines() if line.startswith("event: ")]
assert names[-1] == "event: image_generation.completed", names
assert httpx.post(f"{url}/v1/images/generations", json={"class": 99}).status_code == 400
assert httpx.get(f"{url}/healthz").json() == {"status": "ok", "workers": 1}
serve.shutdown()
ray.shutdown()
"""


def test_the_deployment_of_the_page(tmp_path):
    page = (ROOT / "docs" / "serving.md").read_text()
    (tmp_path / "ray_images.py").write_text(re.findall(r"```python\n(# ray_images\.py\n.*?)```", page, re.DOTALL)[0])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join([str(tmp_path), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    words = [sys.executable, "-c", DRIVER, str(port)]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
