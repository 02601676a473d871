"""The machine: device, number format, seeds, speed. No other module asks "is there a GPU?"."""

from __future__ import annotations

import time
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from loopwise.errors import ConfigError

__all__ = [
    "DTYPES",
    "Device",
    "Dtype",
    "dtype_name",
    "generator",
    "has_compiler",
    "matmul_flops",
    "resolve_device",
    "resolve_dtype",
]

Device: TypeAlias = Literal["auto", "cpu", "cuda", "mps"]
Dtype: TypeAlias = Literal["auto", "float32", "bfloat16"]

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve_device(device: str = "auto") -> torch.device:
    """The device of this process. `auto` is cuda where there is one, else cpu; mps must be asked for, being untested.

    Raises ConfigError if the device is not there.
    """
    if device not in get_args(Device):
        raise ConfigError(f"unknown device {device!r}; known: {', '.join(get_args(Device))}")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device("cuda" if available["cuda"] else "cpu")
    if not available[device]:
        raise ConfigError(f"device {device!r} is not available here; use --device auto or cpu")
    return torch.device(device)


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The number format of activations. `auto` is bfloat16 where the processor multiplies matrices in it, else float32.

    Weights, norms and the loss are float32 or wider in any case.
    """
    if dtype != "auto":
        return DTYPES[dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    # AVX512-BF16 alone is slower than float32 for these shapes (measured); the AMX tile unit is several times faster.
    if device.type == "cpu" and torch.cpu._is_amx_tile_supported():
        return torch.bfloat16
    return torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a number format, without torch's prefix."""
    return str(dtype).removeprefix("torch.")


def generator(device: torch.device | str, *key: int) -> torch.Generator:
    """A random generator whose stream is fixed by a key of whole numbers, such as (seed, rank)."""
    seed = 0x9E3779B9
    for part in key:
        seed = (seed * 6364136223846793005 + part + 1442695040888963407) % 2**63
    return torch.Generator(device).manual_seed(seed)


def has_compiler() -> bool:
    """Whether torch.compile can build kernels for the processor here."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception:  # inductor raises its own kinds of error, none of them public
        return False
    return True


def matmul_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """Measure the ceiling: FLOP/s of the best of many products of two 1024 x 1024 matrices (4096 on an accelerator)."""
    size = 1024 if device.type == "cpu" else 4096
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    out = a @ b
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        _synchronize(out)
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        _synchronize(out)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _synchronize(tensor: Tensor) -> None:
    if tensor.device.type != "cpu":
        tensor.flatten()[0].item()
