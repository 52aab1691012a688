"""MAR, its head, its autoencoder and DiSA's schedule against recorded outputs of the official implementations."""

from pathlib import Path
from typing import Any

import pytest
import synth
import torch

from vargen.core import checkpoints
from vargen.core.types import Denoising, Group
from vargen.engine import loops
from vargen.models import mar
from vargen.models.diffusion import kept
from vargen.models.mar import MAR, MARConfig
from vargen.samplers.contract import LatentTask
from vargen.samplers.disa import DiSASettings, StepAnnealing, annealed
from vargen.samplers.mar import MARSettings, MaskedAutoregressive
from vargen.tokenizers import kl
from vargen.tokenizers.kl import KLConfig, KLTokenizer

CONFIG = MARConfig(layers=2, heads=4, width=64, head_depth=2, head_width=64, side=4, classes=10, buffer=8)


def relative(out, ref):
    return ((out - ref).norm() / ref.norm()).item()


def load(name: str, folder: Path):
    """A model loaded as official files are, and what was recorded of it."""
    case, recorded = synth.case(name)
    state = synth.state_dict(case["parameters"])
    torch.save({"model": {}, "model_ema": state, "args": None, "epoch": 3}, folder / "checkpoint-last.pth")
    with torch.device("meta"):
        model = MAR(CONFIG)
    checkpoints.load_into(model, folder / "checkpoint-last.pth", mar.LAYOUT)
    return model.eval().requires_grad_(False), recorded, case


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return load("mar", tmp_path_factory.mktemp("mar"))


class Recorded:
    """Noise that was drawn elsewhere, of some rows."""

    def __init__(self, start, steps):
        self._start, self._steps, self.slots = start, steps, start[..., 0]

    def start(self):
        return self._start

    def steps(self, count):
        return self._steps[:count]


@pytest.mark.parametrize("rows", [slice(0, 2), slice(0, 1), slice(1, 2)])
def test_backbone(golden, rows):
    """Every token's z, and that of a few of them alone."""
    model, recorded, _ = golden
    known = torch.stack([(1 - row).nonzero().flatten() for row in recorded["mask"]])[rows]
    condition = model.class_condition(recorded["labels"][rows], guided=False)
    for slots in (torch.arange(16), torch.tensor([5, 0, 11])):
        group = Group(slots.expand(len(known), -1), known, recorded["tokens"][rows])
        assert relative(model.decode(condition, group, None), recorded["z"][rows][:, slots]) < 1e-4


def test_what_stands_for_nothing_is_not_seen(golden):
    """Sequences filled up to one length give what they give alone."""
    model, recorded, _ = golden
    known = torch.stack([(1 - row).nonzero().flatten() for row in recorded["mask"]])
    hidden = torch.arange(12).expand(2, -1) >= known.shape[1]
    junk = torch.cat([known, torch.tensor([[3, 0, 15, 9, 9]] * 2)], dim=1)[:, :12]
    group = Group(torch.arange(16).expand(2, -1), junk, recorded["tokens"], hidden[:, : junk.shape[1]])
    condition = model.class_condition(recorded["labels"], guided=False)
    assert relative(model.decode(condition, group, None), recorded["z"]) < 1e-4


def test_head(golden):
    model, recorded, _ = golden
    out = model.head(recorded["head_x"], recorded["head_t"], recorded["head_c"])
    assert relative(out, recorded["head_out"]) < 1e-4


def test_sampling_loop_of_the_head(golden):
    model, recorded, _ = golden
    each = Recorded(recorded["sample_plain_noise0"][:, None], recorded["sample_plain_step_noise"][:, :, None])
    out = model.head.sample(recorded["sample_plain_z"][:, None], Denoising(10), each)
    assert relative(out[:, 0], recorded["sample_plain_out"]) < 1e-4
    each = Recorded(recorded["sample_cfg_noise0"][:, None], recorded["sample_cfg_step_noise"][:, :4, None])
    out = model.head.sample(recorded["sample_cfg_z"][:, None], Denoising(10, guidance=2.9), each)
    assert relative(out[:, 0], recorded["sample_cfg_out"][:4]) < 1e-4


class Replayed:
    """A task with the orders and the noise of a recorded run, which drew for the unconditional half as well."""

    def __init__(self, task, recorded, shapes):
        self.spec, self.seeds, self.batch = task.spec, task.seeds, task.batch
        self.guidance, self.temperature = task.guidance, task.temperature
        self.order = lambda: recorded["gen_orders"]
        drawn = recorded["gen_noise_flat"].split([rows * width for rows, width in shapes])
        self.left = iter([part.view(shape) for part, shape in zip(drawn, shapes, strict=True)])

    def noise(self, slots):
        return Each(self.left, slots)


class Each:
    """The noise of one group, in the order of the calls that drew it."""

    def __init__(self, left, slots):
        self.left, self.slots = left, slots

    def start(self):
        return next(self.left).view(*self.slots.shape, -1)

    def steps(self, count):
        drawn = [next(self.left) for _ in range(count + 1)]  # and one that the last step throws away
        return torch.stack([part[: self.slots.numel()].view(*self.slots.shape, -1) for part in drawn[:-1]])


@pytest.mark.parametrize("name", ["mar", "mar_disa"])
def test_whole_generation(name, tmp_path):
    model, recorded, case = load(name, tmp_path)
    plain = LatentTask(model.spec, torch.tensor([0, 1]), guidance=2.9)
    task: Any = Replayed(plain, recorded, case["gen_noise_shapes"])
    if name == "mar":
        sampler = MaskedAutoregressive(MARSettings(iterations=6, steps=10), task)
    else:
        sampler = StepAnnealing(DiSASettings(iterations=6, upper=12, lower=4), task)
    condition, counts = model.class_condition(recorded["labels"], guided=True), loops.Counts()
    for _ in loops.continuous(model, condition, sampler, loops.Clock(model.device), counts):
        pass
    assert relative(model.image(sampler.values), recorded["gen_latents"]) < 1e-4
    assert next(task.left, None) is None  # all noise was asked for
    assert counts.forwards == 6


def test_autoencoder(tmp_path):
    case, recorded = synth.case("mar_vae")
    config = KLConfig(channels=tuple(32 * m for m in case["config"]["ch_mult"]))
    with torch.device("meta"):
        model = KLTokenizer(config)
    torch.save({"model": synth.state_dict(case["parameters"] | {"loss.logvar": []})}, tmp_path / "kl16.ckpt")
    checkpoints.load_into(model, tmp_path / "kl16.ckpt", kl.layout(config))
    model.eval().requires_grad_(False)
    mean, log_variance = model.moments(recorded["image"])
    assert relative(mean, recorded["mean"]) < 1e-4
    assert relative(log_variance, recorded["logvar"]) < 1e-4
    assert relative(model.encode(recorded["image"]), recorded["mean"] * 0.2325) < 1e-4
    assert relative(model.decode_latents(recorded["z"] * 0.2325), recorded["decoded"]) < 1e-4


def test_schedules():
    case, _ = synth.case("mar_disa")
    for count, steps in case["timesteps_kept"].items():
        assert list(kept(int(count), 950)) == steps
    assert list(kept(10)) == synth.case("mar")[0]["timesteps"]
    for shape, steps in case["steps_per_iteration_64_50_to_5"].items():
        assert [annealed(i, 64, 50, 5, shape) for i in range(64)] == steps
    # FlowAR's and xAR's, from their code
    assert [annealed(i, 5, 25, 15, "linear") for i in range(5)] == [25, 22, 20, 17, 15]
    assert [annealed(i, 5, 50, 15, "linear") for i in range(5)] == [50, 41, 32, 23, 15]
    assert [annealed(i, 4, 50, 15, "linear") for i in range(4)] == [50, 38, 26, 15]
    assert [len(kept(n, 950)) for n in (5, 25, 50, 100)] == [5, 24, 48, 96]  # fall together
    for count in (0, 1001):
        with pytest.raises(ValueError, match=f"got {count} diffusion steps"):
            kept(count)
