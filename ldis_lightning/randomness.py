"""Randomness that belongs to an episode, not to a process.

Every random number of a training step (augmentation, noise, timestep, condition dropout) is a pure function of the
episode's seed, the name of its use and its position. So the numbers do not depend on the rank, the worker, the batch
an episode falls into or the device, and nothing has to be saved to resume. The generator is splitmix64 (Steele, Lea
and Flood, 2014) used as a counter-based hash, written in tensor operations: no host-device synchronisation.
"""

import math
import zlib

import torch
from torch import Tensor

_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit number
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical (not arithmetic) right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64: a bijection of 64-bit numbers that looks random."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _bits(seed: Tensor, stream: str, count: int) -> Tensor:
    """(B,) int64 seeds -> (B, count) int64 of random bits."""
    key = _mix(seed.to(torch.int64) ^ (zlib.crc32(stream.encode()) << 24))
    counter = torch.arange(1, count + 1, device=seed.device, dtype=torch.int64)
    return _mix(_mix(key)[:, None] + counter[None] * _GAMMA)


def uniform(seed: Tensor, stream: str, shape: tuple[int, ...] = ()) -> Tensor:
    """Uniform numbers in [0, 1).

    Args:
        seed: (B,) int64, one seed an episode.
        stream: name of the use, so that two uses of the same seed are independent, e.g. `"noise"`.
        shape: shape of the draw for one episode.

    Returns:
        (B, *shape) float32 on the seed's device.
    """
    mantissa = _shift_right(_bits(seed, stream, math.prod(shape)), 40)  # 24 bits: every value is exact in float32
    return (mantissa.to(torch.float32) / (1 << 24)).view(len(seed), *shape)


def normal(seed: Tensor, stream: str, shape: tuple[int, ...] = ()) -> Tensor:
    """Standard normal numbers (Box-Muller transform of `uniform`); arguments and shapes as there."""
    count = math.prod(shape)
    pairs = uniform(seed, stream, (2, count))
    radius = torch.sqrt(-2 * torch.log1p(-pairs[:, 0]))  # 1 - u lies in (0, 1], so the logarithm is finite
    return (radius * torch.cos(2 * math.pi * pairs[:, 1])).view(len(seed), *shape)


def integers(seed: Tensor, stream: str, high: int, shape: tuple[int, ...] = ()) -> Tensor:
    """Uniform int64 numbers in {0, ..., high - 1}, `high` <= 2**24; other arguments and shapes as in `uniform`."""
    return (uniform(seed, stream, shape) * high).to(torch.int64).clamp_max(high - 1)
