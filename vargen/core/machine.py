"""The machine that something ran on: its memory, its name, the versions of what ran."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from vargen.core.trace import Trace
from vargen.core.version import __version__


def plainly(device: torch.device) -> torch.autocast:
    """A context without autocast: decoding keeps the dtypes that the model was loaded in."""
    return torch.autocast(device.type, enabled=False)


def ordinary(value: Any) -> Any:
    """A tensor of inference mode as any other is: it may be changed, and stand in what is differentiated."""
    if not isinstance(value, torch.Tensor) or not value.is_inference():
        return value
    with torch.inference_mode(False):
        return value.clone()


def reset_peak_memory(device: torch.device) -> None:
    """Start counting anew, where the device counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that CUDA allocated since the last reset; on a CPU, the most that the process ever held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # Linux: `ru_maxrss` would count what the parent process held
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource  # Unix only

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def total_memory(device: torch.device) -> int | None:
    """Bytes that a device has in all; None where it does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Unix only
        return None


def free_memory(device: torch.device) -> int | None:
    """Bytes of a device that can be had now; None where it does not say."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    info = Path("/proc/meminfo")  # Linux
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def versions(device: torch.device) -> dict[str, str]:
    """What ran, and on what."""
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "vargen": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": f"{device.type}: {machine}, {torch.get_num_threads()} threads",
    }


def machine(trace: Trace) -> dict[str, Any]:
    """What the figures were measured on."""
    return {"cpu": processor(), "cores": os.cpu_count(), "system": platform.system(), **trace.versions}


def cache_folder() -> Path:
    """Where tables and measurements are kept: VARGEN_CACHE, or `vargen` in the user's cache folder."""
    given = os.environ.get("VARGEN_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(base) / "vargen"


def processor() -> str:
    """What the CPU is called, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()
