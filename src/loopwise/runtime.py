"""The machine: device, number format, seeds, speed. No other module asks "is there a GPU?"."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from loopwise.errors import ConfigError

__all__ = [
    "DTYPES",
    "Ceilings",
    "Device",
    "Dtype",
    "SolvingDtype",
    "compile_trouble",
    "dtype_name",
    "generator",
    "keep_freed_memory",
    "matmul_flops",
    "measure_ceilings",
    "resolve_device",
    "resolve_dtype",
    "solving_dtype",
]

Device: TypeAlias = Literal["auto", "cpu", "cuda", "mps"]
Dtype: TypeAlias = Literal["auto", "float32", "bfloat16"]
SolvingDtype: TypeAlias = Literal["trained", "float32", "bfloat16"]

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

CHAIN = 200
"""Calls in a row that are timed together."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


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
    # The AMX tile unit is several times faster than float32. AVX512-BF16 alone was slower on one processor and 2.5
    # times as fast on another, so it is left to the user, whom `loopwise doctor` tells which it is.
    if device.type == "cpu" and torch.cpu._is_amx_tile_supported():
        return torch.bfloat16
    return torch.float32


def solving_dtype(dtype: str, trained: torch.dtype) -> torch.dtype:
    """The number format of activations in solving, of a model that was trained in another or the same.

    Raises ConfigError.
    """
    if dtype not in get_args(SolvingDtype):
        raise ConfigError(f"unknown dtype {dtype!r}; known: {', '.join(get_args(SolvingDtype))}")
    return trained if dtype == "trained" else DTYPES[dtype]


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a number format, without torch's prefix."""
    return str(dtype).removeprefix("torch.")


def generator(device: torch.device | str, *key: int) -> torch.Generator:
    """A random generator whose stream is fixed by a key of whole numbers, such as (seed, rank)."""
    seed = 0x9E3779B9
    for part in key:
        seed = (seed * 6364136223846793005 + part + 1442695040888963407) % 2**63
    return torch.Generator(device).manual_seed(seed)


def compile_trouble(device: torch.device) -> str | None:
    """Why torch.compile cannot build kernels here, in one line; None where it can. Builds one, in seconds."""
    try:
        torch.compile(torch.nn.functional.silu)(torch.zeros(64, device=device))
    except Exception as error:  # compilers fail in many ways, and none of them is a reason not to train
        return " ".join(f"{type(error).__name__}: {error}".split())[:120]
    return None


def keep_freed_memory() -> bool:
    """Ask the C library to keep what is freed for the next tensor, for the rest of this process; whether it will.

    Otherwise each large tensor is fresh from the system, which hands it out page by page, zeroed: a matrix product
    whose result is 76 MB was measured to take twice as long for it. The process keeps the most it ever needed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc: macOS, Windows, musl
        return False
    no_mappings = mallopt(_M_MMAP_MAX, 0)
    no_trimming = mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    return bool(no_mappings and no_trimming and mallopt(_M_TOP_PAD, 2**26))


class Ceilings(NamedTuple):
    """What this machine can do at best, measured."""

    flops: float  # FLOP/s of large matrix products
    traffic: float  # bytes read and written a second by a kernel that works element by element
    call: float  # seconds that a call of the smallest kernel takes, with its share of the backward pass


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure in about a second, with as many threads as torch has now."""
    x = torch.randn(2**21, device=device).to(dtype)
    seconds = _best(lambda: torch.nn.functional.silu(x) * x, x)
    one = torch.ones(1, device=device, requires_grad=True)

    def chain() -> None:
        y = one
        for _ in range(CHAIN):
            y = y * 1.0
        torch.autograd.grad(y, one)

    return Ceilings(
        flops=matmul_flops(device, dtype),
        traffic=5 * x.numel() * x.element_size() / seconds,
        call=_best(chain, x) / (2 * CHAIN),
    )


def matmul_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """Measure the ceiling: FLOP/s of the best of many products of two 1024 x 1024 matrices (4096 on an accelerator)."""
    size = 1024 if device.type == "cpu" else 4096
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    out = a @ b
    return 2 * size**3 / _best(lambda: torch.mm(a, b, out=out), out, seconds)


def _best(work: Callable[[], object], tensor: Tensor, seconds: float = 0.2) -> float:
    """Seconds of the fastest of many runs on the device of `tensor`."""
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        _synchronize(tensor)
        start = time.perf_counter()
        work()
        _synchronize(tensor)
        best = min(best, time.perf_counter() - start)
    return best


def _synchronize(tensor: Tensor) -> None:
    if tensor.device.type != "cpu":
        tensor.flatten()[0].item()
