"""Weights from a formula, so that none need to be stored. tests/support/synth.rs is the same formula in Rust.

The number at flat index i (PyTorch's row-major order) of the tensor `name` of `component` is

    seed  = FNV-1a 64 of the UTF-8 bytes of "<component>/<name>"
    z     = the splitmix64 output for the state seed + (i + 1) * 0x9E3779B97F4A7C15
    u     = float32(z >> 40) * 2^-24                        in [0, 1)
    value = (2 u - 1) * float32(scale) + float32(offset)    each operation rounded to float32, none fused

FNV-1a: http://www.isthe.com/chongo/tech/comp/fnv. splitmix64: https://prng.di.unimi.it/splitmix64.c.
"""

import numpy as np

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def fnv1a(text: str) -> int:
    """The 64-bit FNV-1a hash of `text` in UTF-8."""
    state = 0xCBF29CE484222325
    for byte in text.encode():
        state = (state ^ byte) * 0x100000001B3 % 2**64
    return state


def splitmix64(seed: int, count: int) -> np.ndarray:
    """The first `count` outputs of splitmix64 seeded with `seed`, as uint64."""
    z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * GOLDEN_GAMMA
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def values(component: str, name: str, shape: list[int], scale: float, offset: float) -> np.ndarray:
    """The float32 values of one tensor, uniform in `offset - scale ..= offset + scale`."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        z = splitmix64(fnv1a(f"{component}/{name}"), int(np.prod(shape)))
    u = (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
    value = (np.float32(2) * u - np.float32(1)) * np.float32(scale) + np.float32(offset)
    assert value.dtype == np.float32
    return value.reshape(shape)


def checksum(value: np.ndarray) -> int:
    """The sum over i of (bits of value i) * (2 i + 1), modulo 2^64: sees every bit and the order."""
    bits = np.ascontiguousarray(value, dtype="<f4").reshape(-1).view("<u4").astype(np.uint64)
    with np.errstate(over="ignore"):
        return int((bits * (np.arange(bits.size, dtype=np.uint64) * np.uint64(2) + np.uint64(1))).sum(dtype=np.uint64))
