"""Floating point operations of a computation, and how many a device can do."""

from __future__ import annotations

from collections.abc import Callable

PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Part of a device's name -> dense bfloat16 operations a second, summed in float32, from the makers' data sheets."""


def peak(device_name: str) -> float | None:
    """Dense bfloat16 operations a second of a device, None where it is not in the table.

    Args:
        device_name: as `torch.cuda.get_device_name` gives it. The longest entry that it holds is taken.
    """
    words = f" {device_name} "
    known = [name for name in PEAKS if f" {name} " in words or f" {name}-" in words]
    return PEAKS[max(known, key=len)] if known else None


def count(computation: Callable[[], object]) -> int:
    """Operations of matrix products, convolutions and attention in a computation; a multiplication and an addition are
    two. What a compiled graph does is not seen, so count before compiling."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        computation()
    return counter.get_total_flops()
