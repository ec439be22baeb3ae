"""The options of a target, and what every kind of target does with them."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch.utils import _pytree as pytree

from quire.errors import QuireError

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@attrs.frozen
class Options:
    """How to build a target. `None` leaves the target's own value.

    `seq` counts tokens of text, pixels of an image's side, samples or frames of audio, and
    latents of a diffusion model's side.
    """

    seq: int | None = None
    batch: int | None = None
    attn: str | None = None
    dtype: str | None = None
    device: str | None = None


def check(options: Options) -> None:
    for name in ("seq", "batch"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise QuireError(f"--{name} {value}", allowed="1 or more", fix=f"raise --{name}")
    if options.dtype is not None and options.dtype not in DTYPES:
        raise QuireError(
            f"--dtype {options.dtype}", allowed=", ".join(DTYPES), fix="pick one of those"
        )
    if options.device is not None:
        device_of(options.device)


def device_of(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise QuireError(
            f"--device {name} is no device of torch", allowed="cpu, cuda, cuda:N, meta"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise QuireError(
            f"--device {name}, but torch sees no CUDA device",
            allowed="cpu, meta",
            fix="use --device cpu, or install PyTorch's CUDA build and a driver",
        )
    return device


def refuse(options: Options, names: tuple[str, ...], where: str, why: str) -> None:
    given = [f"--{name}" for name in names if getattr(options, name) is not None]
    if given:
        raise QuireError(
            f"{', '.join(given)} does not apply here: {why}",
            where=where,
            fix=f"leave out {', '.join(given)}",
        )


def move(value: Any, options: Options) -> Any:
    """`value` with its tensors on the device and, if they are floats, in the dtype asked for."""
    device = options.device and device_of(options.device)
    dtype = options.dtype and DTYPES[options.dtype]

    def place(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point():
            return tensor.to(device=device or tensor.device, dtype=dtype or tensor.dtype)
        return tensor.to(device=device or tensor.device)

    return pytree.tree_map_only(torch.Tensor, place, value)


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
