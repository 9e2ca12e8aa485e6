"""How many products a second a device can do by its maker's data sheet: what MFU is measured against."""

from __future__ import annotations

import torch

PEAKS: dict[str, tuple[float | None, float | None]] = {
    # words of torch.cuda.get_device_name: TFLOP/s of bf16 and of fp32; the first that is there counts
    "B200": (2250, None),
    "GH200": (989, 67),
    "H200 NVL": (835, 60),
    "H200": (989, 67),
    "H100 NVL": (835, 60),
    "H100 PCIe": (756, 51),
    "H100": (989, 67),
    "A100": (312, 19.5),
    "A40": (150, 37.4),
    "A30": (165, 10.3),
    "L40S": (362, 91.6),
    "L4": (121, 30.3),
    # these have no bf16
    "V100 PCIE": (None, 14),
    "V100": (None, 15.7),
}
"""Dense; twice as many are told of for matrices that are half zeros. None where there is none, or it is not known."""


def peak(name: str, precision: str) -> float | None:
    """FLOP/s of a device of this name in products of `bf16` or `fp32`; None where it is unknown, never a guess."""
    words = f" {name.replace('-', ' ').replace('/', ' ')} "
    if " MIG " in words:  # a part of one
        return None
    for known, (half, full) in PEAKS.items():
        if f" {known} " in words:
            found = half if precision == "bf16" else full
            return None if found is None else found * 1e12
    return None


def peak_of(device: torch.device, precision: str) -> float | None:
    """Of a device; None of a CPU, and where fp32 products may be rounded (TF32), whose peak is another."""
    if device.type != "cuda":
        return None
    if precision == "fp32" and torch.get_float32_matmul_precision() != "highest":
        return None
    return peak(torch.cuda.get_device_name(device), precision)


def used(flops: float, seconds: float, peak: float | None) -> float | None:
    """MFU: what was done of what one device can do in that time; None where that is unknown."""
    return None if peak is None else flops / seconds / peak
