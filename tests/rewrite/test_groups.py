"""Attention on repeated keys and values."""

from __future__ import annotations

from typing import Any

import torch

from quire.rewrite import fuse_attention, share_keys

from .programs import SDPA, calls, check_equal, program_of
from .test_attention import B, D, S, plain, qkv


def repeat(x: Any, times: int, at: int = 2) -> Any:
    b, h, s, d = x.shape
    return x.unsqueeze(at).expand(*(b, h, times, s, d)).reshape(b, h * times, s, d)


def test_repeated_keys_and_values_are_grouped() -> None:
    def grouped(q: Any, k: Any, v: Any) -> Any:
        return plain(q, repeat(k, 3)).softmax(-1) @ repeat(v, 3)

    args = qkv(heads=6, kv_heads=2)
    before = program_of(grouped, *args)
    after = share_keys(fuse_attention(before))
    (op,) = calls(after, SDPA)
    assert op["enable_gqa"]
    assert op["key"].shape == op["value"].shape == (B, 2, S, D)
    check_equal(before, after, *args)


def test_keys_in_another_order_are_not_grouped() -> None:
    def tiled(q: Any, k: Any, v: Any) -> Any:
        many = [x.repeat(1, 3, 1, 1) for x in (k, v)]
        return plain(q, many[0]).softmax(-1) @ many[1]

    def keys_only(q: Any, k: Any, v: Any) -> Any:
        return plain(q, repeat(k, 3)).softmax(-1) @ v.repeat(1, 3, 1, 1)

    args = qkv(heads=6, kv_heads=2)
    for function in (tiled, keys_only):
        before = program_of(function, *args)
        after = share_keys(fuse_attention(before))
        (op,) = calls(after, SDPA)
        assert not op["enable_gqa"]
        check_equal(before, after, *args)


def test_fused_attention_is_grouped_and_keys_alone_are_not() -> None:
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def both(q: Any, k: Any, v: Any) -> Any:
        return sdpa(q, repeat(k, 3), repeat(v, 3), is_causal=True)

    def interleaved(q: Any, k: Any, v: Any) -> Any:
        return sdpa(q, k.repeat_interleave(3, 1), v.repeat_interleave(3, dim=1))

    def keys_only(q: Any, k: Any, v: Any) -> Any:
        return sdpa(q, repeat(k, 3), v.repeat(1, 3, 1, 1))

    args = qkv(heads=6, kv_heads=2)
    for function, grouped in ((both, True), (interleaved, True), (keys_only, False)):
        before = program_of(function, *args)
        notes: list[str] = []
        after = share_keys(before, notes)
        (op,) = calls(after, SDPA)
        assert op["enable_gqa"] is grouped and len(notes) == grouped
        check_equal(before, after, *args)
