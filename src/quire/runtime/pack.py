"""Weights in the layout a kernel reads: as they are, with dims reordered, or quantised.

int8: groups of 32 along the row, scale = max |w| / 127 as bf16, which is the upper half of a float.
int4: the same with −8 … 7, scale = the largest-magnitude weight / −8 (as llama.cpp's Q4_0), four
groups to a block (`int4_block` in kernel/rt/types.hpp); the scale is the float whose lower half are
the two bytes before it, values or the scale before: the next such float above it in magnitude, by
less than 2^-7 of it. The kernel computes with the dequantised weights exactly.
"""

from __future__ import annotations

import torch
from torch import nn

from quire.kernel.ir import BLOCKS, Buffer

GROUP = 32


def packed(weight: torch.Tensor, buffer: Buffer) -> torch.Tensor:
    """`weight` itself, or a copy in the layout of `buffer`."""
    if buffer.order:
        weight = weight.permute(buffer.order).contiguous()
    if buffer.scheme == "int8":
        return _int8(weight.float().reshape(-1, GROUP))
    if buffer.scheme == "int4":
        flat = weight.float().flatten()
        return _int4(nn.functional.pad(flat, (0, -len(flat) % BLOCKS["int4"][0])))
    return weight


def packed_size(weight: torch.Tensor, buffer: Buffer) -> int:
    """Bytes of a copy of `weight` in the layout of `buffer`, 0 where it is read as it is."""
    if buffer.scheme:
        size, nbytes = BLOCKS[buffer.scheme]
        return -(-weight.numel() // size) * nbytes
    return weight.numel() * weight.element_size() if buffer.order else 0


def _scaled(groups: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)[:, None] * groups


def _int8(groups: torch.Tensor) -> torch.Tensor:
    scale = (groups.abs().amax(1) / 127).to(torch.bfloat16)
    values = _scaled(groups, scale.float()).round().clamp(-127, 127).to(torch.int8)
    return torch.cat([values.view(torch.uint8), scale[:, None].view(torch.uint8)], 1).contiguous()


def _int4(flat: torch.Tensor) -> torch.Tensor:
    groups = flat.reshape(-1, GROUP)
    scale = groups.gather(1, groups.abs().argmax(1, keepdim=True))[:, 0] / -8
    values = (_scaled(groups, scale).round().clamp(-8, 7) + 8).to(torch.uint8)
    low, high = values.reshape(-1, 4, 2, 16).unbind(2)
    held = (low | high << 4).transpose(1, 2).flatten(1)
    least = torch.finfo(torch.float32).tiny  # where all weights are 0: slow below, and unused
    bits = torch.where(scale.abs() < least, torch.full_like(scale, least), scale).view(torch.int32)
    scales = [held[:, 62:].contiguous().view(torch.int16)]
    for own in bits.reshape(-1, 4).unbind(1):
        lower = scales[-1][:, 0].int() & 0xFFFF
        scales.append((own - lower + 0xFFFF >> 16).to(torch.int16)[:, None])
    return torch.cat([held, *(s.view(torch.uint8) for s in scales[1:])], 1).contiguous()


def _from_int4(raw: torch.Tensor) -> torch.Tensor:
    scale = torch.stack(
        [raw[:, 62 + 2 * g : 66 + 2 * g].contiguous().view(torch.float32) for g in range(4)], 1
    )
    held = raw[:, :64].reshape(-1, 16, 4).transpose(1, 2)
    return (torch.cat([held & 15, held >> 4], 2).float() - 8) * scale


def dequantised(weight: torch.Tensor, buffer: Buffer) -> torch.Tensor:
    """The float32 weights that a quantised buffer stands for, in the shape of `weight`."""
    shape = [weight.shape[d] for d in buffer.order] if buffer.order else list(weight.shape)
    raw = packed(weight, buffer)
    if buffer.scheme == "int8":
        scale = raw[:, 32:].contiguous().view(torch.bfloat16).float()
        flat = raw[:, :32].contiguous().view(torch.int8).float() * scale
    else:
        flat = _from_int4(raw).flatten()[: weight.numel()]
    out = flat.reshape(shape)
    if buffer.order:
        back = [buffer.order.index(k) for k in range(len(buffer.order))]
        out = out.permute(back).contiguous()
    return out
