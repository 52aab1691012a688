"""The noise of `core/noise.py` inside kernels: the same bits of (seed, slot, purpose, index)."""

from vargen.core.dispatch import jit, tl


@jit
def mixed(z):
    """SplitMix64's finaliser on uint64."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@jit
def bits(seed, slot, purpose, index):
    """64 random bits, uint64, of int64 seed and slot; `index` counts from 0."""
    gamma = tl.full([], 0x9E3779B97F4A7C15, tl.uint64)
    key = mixed(mixed(seed.to(tl.uint64)) + gamma * purpose)
    key = mixed(key + (slot.to(tl.uint64) + 1) * gamma)
    return mixed(key + (index.to(tl.uint64) + 1) * gamma)


@jit
def uniform(seed, slot, purpose, index):
    """As `noise.uniform`, float32."""
    return (bits(seed, slot, purpose, index) >> 40).to(tl.int64).to(tl.float32) * 5.9604644775390625e-08  # 2^-24


@jit
def gumbel(seed, slot, purpose, index):
    """As `noise.gumbel`, float32, its logarithms in float64."""
    step = (bits(seed, slot, purpose, index) >> 32).to(tl.int64).to(tl.float64)
    u = (step + 0.5) * 2.3283064365386963e-10  # 2^-32
    return (-tl.log(-tl.log(u))).to(tl.float32)
