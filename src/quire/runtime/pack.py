"""Weights in the layout a kernel reads: as they are, with dims reordered, or quantised.

int8: groups of 32 along the row, scale = max |w| / 127.
int4: the same with −8 … 7, scale = the largest-magnitude weight / −8 (as llama.cpp's Q4_0).
Scales are bf16, behind the values of their group, and values are rounded after them: the upper
half of a float needs no conversion in the kernel, and the scale of bf16 weights in int4 is exact.
The kernel computes with the dequantised weights exactly.
"""

from __future__ import annotations

import torch

from quire.kernel.ir import Buffer

GROUP = 32


def packed(weight: torch.Tensor, buffer: Buffer) -> torch.Tensor:
    """`weight` itself, or a copy in the layout of `buffer`."""
    if buffer.order:
        weight = weight.permute(buffer.order).contiguous()
    if buffer.scheme == "int8":
        return _int8(weight.float().reshape(-1, GROUP))
    if buffer.scheme == "int4":
        return _int4(weight.float().reshape(-1, GROUP))
    return weight


def _scaled(groups: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    stored = scale.to(torch.bfloat16)
    by = stored.float()
    return stored, torch.where(by == 0, torch.zeros_like(by), 1 / by)[:, None] * groups


def _int8(groups: torch.Tensor) -> torch.Tensor:
    scale, scaled = _scaled(groups, groups.abs().amax(1) / 127)
    values = scaled.round().clamp(-127, 127).to(torch.int8)
    return torch.cat([values.view(torch.uint8), scale[:, None].view(torch.uint8)], 1).contiguous()


def _int4(groups: torch.Tensor) -> torch.Tensor:
    most = groups.gather(1, groups.abs().argmax(1, keepdim=True))[:, 0]
    scale, scaled = _scaled(groups, most / -8)
    values = (scaled.round().clamp(-8, 7) + 8).to(torch.uint8)
    return torch.cat(
        [values[:, :16] | values[:, 16:] << 4, scale[:, None].view(torch.uint8)], 1
    ).contiguous()


def dequantised(weight: torch.Tensor, buffer: Buffer) -> torch.Tensor:
    """The float32 weights that a quantised buffer stands for, in the shape of `weight`."""
    shape = [weight.shape[d] for d in buffer.order] if buffer.order else list(weight.shape)
    raw = packed(weight, buffer)
    values, scale = raw[:, :-2], raw[:, -2:].contiguous().view(torch.bfloat16).float()
    if buffer.scheme == "int8":
        flat = values.contiguous().view(torch.int8).float() * scale
    else:
        low, high = values & 15, values >> 4
        flat = (torch.cat([low, high], 1).float() - 8) * scale
    out = flat.reshape(shape)
    if buffer.order:
        back = [buffer.order.index(k) for k in range(len(buffer.order))]
        out = out.permute(back).contiguous()
    return out
