"""Serve under load: python scripts/benchmark_serving.py --shares 0.7 --seconds 60 --json FILE. See --help.

A server is started for each way of batching, one after the other, and asked by the same clients: the requests, their
moments (Poisson arrivals, open loop: nobody waits for an answer before the next one asks), how many images each wants
and who hangs up all follow from a seed. First clients that ask again at once say what the machine can do; the rates are
shares of what it can do in the first of these ways.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from vargen.core.atomic import write_json
from vargen.core.machine import processor

COUNTS, WEIGHTS = (1, 2, 4), (0.7, 0.2, 0.1)  # images of a request, and how often
PATIENCE = 0.6  # of a median request, after which who hangs up does so
PROMPTS = ("a red lighthouse at night", "snow", "a harbour with three boats under a full moon", "a beach with a palm")
CLIENTS = 24  # that ask again at once, where it is seen what the machine can do


@dataclass(frozen=True)
class Ask:
    """A request: when, for what, and whether its client hangs up."""

    at: float  # seconds from the start
    seed: int  # which also says what is asked for
    images: int
    goes: bool

    def body(self, model: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
        """As the server takes it, which told what it knows of its `model`."""
        names = model["classes"] or PROMPTS
        words = {"class" if model["classes"] else "prompt": names[self.seed % len(names)]}
        sizes = model["sizes"] if options.mixed_sizes else ["auto"]
        asked = {"n": self.images, "seed": self.seed, "method": options.method, "size": sizes[self.seed % len(sizes)]}
        return words | asked | {"stream": True, "partial_images": options.partial_images}


@dataclass
class Seen:
    """What became of a server's requests."""

    latencies: list[float] = field(default_factory=list)  # seconds
    firsts: list[float] = field(default_factory=list)  # seconds to the first picture
    images: int = 0
    failed: int = 0


def workload(rate: float, seconds: float, seed: int, goes: float) -> list[Ask]:
    """Requests at `rate` images a second, for so many seconds."""
    rng, out, at = random.Random(seed), [], 0.0
    mean = sum(count * weight for count, weight in zip(COUNTS, WEIGHTS, strict=True))
    while (at := at + rng.expovariate(rate / mean)) < seconds:
        out.append(Ask(at, rng.randrange(1 << 30), rng.choices(COUNTS, WEIGHTS)[0], rng.random() < goes))
    return out


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def serving(options: argparse.Namespace, batching: str) -> Iterator[str]:
    """A server's address, while it runs; `before` is the checkout that was given."""
    port, environment = free_port(), dict(os.environ)
    command = [sys.executable, "-m", "vargen", "serve", "--model", options.model, "--port", str(port)]
    command += ["--batch-size", str(options.batch_size), "--max-queue", "100000", "--deadline", "600"]
    if batching == "before":
        environment["PYTHONPATH"] = str(options.before)
    else:
        command += ["--ray"] if batching == "ray" else ["--batching", batching]
    folder = options.before if batching == "before" else None  # where Python looks first
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, cwd=folder, **quiet)
    try:
        url, start = f"http://127.0.0.1:{port}", time.monotonic()
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() - start > 120:
                raise SystemExit(f"the server ({batching}) did not start")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(60)


async def ask(client: httpx.AsyncClient, options: argparse.Namespace, one: Ask, patience: float, seen: Seen) -> None:
    """Send a request, and note what comes; or hang up after a while."""
    start, first = time.monotonic(), None
    try:
        async with (
            asyncio.timeout(patience if one.goes else 600),
            client.stream("POST", "/v1/images/generations", json=one.body(options.about, options)) as answer,
        ):
            async for line in answer.aiter_lines():
                if line.startswith("data:") and first is None:
                    first = time.monotonic() - start
            if answer.status_code != 200:
                seen.failed += 1
                return
    except TimeoutError:
        return
    seen.latencies.append(time.monotonic() - start)
    seen.firsts.append(first or 0.0)
    seen.images += one.images


def client_of(url: str) -> httpx.AsyncClient:
    """One that waits as long as it takes."""
    return httpx.AsyncClient(base_url=url, timeout=None, limits=httpx.Limits(max_connections=None))


async def open_loop(url: str, options: argparse.Namespace, asks: list[Ask], patience: float) -> Seen:
    """Requests at their moments."""
    seen, start = Seen(), time.monotonic()
    async with client_of(url) as client, asyncio.TaskGroup() as group:
        for one in asks:
            await asyncio.sleep(max(0.0, start + one.at - time.monotonic()))
            group.create_task(ask(client, options, one, patience, seen))
    return seen


async def closed_loop(url: str, options: argparse.Namespace, clients: int, seconds: float) -> Seen:
    """So many clients that each ask again at once."""
    seen, end = Seen(), time.monotonic() + seconds

    async def one(client: httpx.AsyncClient, number: int) -> None:
        seed = number << 20
        while time.monotonic() < end:
            await ask(client, options, Ask(0.0, seed := seed + 10, 1, False), 600, seen)

    async with client_of(url) as client:
        await asyncio.gather(*(one(client, number) for number in range(clients)))
    return seen


def counted(url: str) -> dict[str, float]:
    """The server's own numbers."""
    lines = [line.rsplit(" ", 1) for line in httpx.get(f"{url}/metrics").text.splitlines() if line[0] != "#"]
    return {name: float(value) for name, value in lines}


def quantile(values: list[float], share: float) -> float | None:
    """Of seconds, to the millisecond."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) if ordered else None


def measure(options: argparse.Namespace, batching: str, rates: dict[float, float]) -> dict[str, Any]:
    """All figures of a way of batching; `rates` by share are filled in by the first one."""
    with serving(options, batching) as url:
        options.about = httpx.get(f"{url}/v1/models").json()["data"][0]
        asyncio.run(closed_loop(url, options, 2, 5.0))  # warm
        lone = asyncio.run(closed_loop(url, options, 1, options.seconds / 3))
        start, before = time.monotonic(), counted(url)
        full = asyncio.run(closed_loop(url, options, CLIENTS, options.seconds))
        able = full.images / (time.monotonic() - start)
        after = counted(url)
        forwards = after["vargen_forwards_total"] - before["vargen_forwards_total"]
        found: dict[str, Any] = {"batching": batching, "lone_p50_s": quantile(lone.latencies, 0.5)}
        found["saturated"] = {"images_per_s": round(able, 3), "forwards_per_image": round(forwards / full.images, 2)}
        found["loads"] = []
        for share in options.shares:
            rate = rates.setdefault(share, share * able)
            asks = workload(rate, options.seconds, options.seed, options.hang_ups)
            begun, median = time.monotonic(), statistics.median(lone.latencies)
            seen = asyncio.run(open_loop(url, options, asks, PATIENCE * median))
            took = time.monotonic() - begun
            found["loads"].append(
                {
                    "share": share,
                    "images_asked_per_s": round(rate, 3),
                    "requests": len(asks),
                    "hung_up": sum(one.goes for one in asks),
                    "failed": seen.failed,
                    "images_per_s": round(seen.images / took, 3),
                    **{f"p{q}_s": quantile(seen.latencies, q / 100) for q in (50, 90, 99)},
                    **{f"first_p{q}_s": quantile(seen.firsts, q / 100) for q in (50, 99)},
                }
            )
        return found


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Latencies by load."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharex=True)
    for axis, key in zip(axes, ("p50_s", "p99_s"), strict=True):
        for row in rows:
            axis.plot(
                [load["share"] for load in row["loads"]],
                [load[key] for load in row["loads"]],
                "o-",
                label=row["batching"],
            )
        axis.set(
            xlabel="images asked for, of what static batching can do", ylabel=f"{key[:-2]} latency, s", ylim=(0, None)
        )
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket-llamagen", help="as `vargen serve` takes it")
    parser.add_argument("--method", default="sjd-exact:window=16", help="of every request")
    parser.add_argument(
        "--batching", default="static,continuous", help="ways, with commas between them: static, continuous, ray"
    )
    parser.add_argument("--before", type=Path, help="another checkout, whose server is measured first, as `before`")
    parser.add_argument("--shares", default="0.3,0.7", help="loads, of what the first way can do")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement")
    parser.add_argument("--batch-size", type=int, default=16, help="seats")
    parser.add_argument("--hang-ups", type=float, default=0.0, help="share of clients that go before they are answered")
    parser.add_argument("--mixed-sizes", action="store_true", help="of images: all that the model draws, in turn")
    parser.add_argument("--partial-images", type=int, default=1, help="pictures of each image on its way")
    parser.add_argument("--seed", type=int, default=0, help="of the requests")
    parser.add_argument("--json", type=Path, required=True, help="file of the figures; a plot goes beside it")
    options = parser.parse_args(argv)
    options.shares = [float(part) for part in options.shares.split(",") if part]
    ways, rates, rows = options.batching.split(","), dict[float, float](), []
    for way in (["before"] if options.before else []) + ways:
        rows.append(measure(options, way, rates))
        print(json.dumps(rows[-1], indent=2), flush=True)
    about = {"model": options.model, "method": options.method, "processor": processor(), "cores": os.cpu_count()}
    about |= {
        "seats": options.batch_size,
        "seconds": options.seconds,
        "seed": options.seed,
        "hang_ups": options.hang_ups,
        "mixed_sizes": options.mixed_sizes,
    }
    write_json(options.json, about | {"rows": rows})
    plot(rows, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
