"""Eager attention becomes the fused kernel, each accepted form beside its nearest rejected one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from quire.rewrite import fuse_attention, simplify
from quire.rewrite.attention import find_attention

from .programs import SDPA, calls, check_equal, count, program_of

MIN = torch.finfo(torch.float32).min
B, H, S, D = 2, 3, 7, 4


def qkv(*, heads: int = H, kv_heads: int = H, length: int = S) -> tuple[torch.Tensor, ...]:
    return (
        torch.randn(B, heads, length, D),
        torch.randn(B, kv_heads, length, D),
        torch.randn(B, kv_heads, length, D),
    )


def attend(scores: Callable[..., Any], value: Any = lambda w, v: w @ v) -> Callable[..., Any]:
    """softmax(scores(q, k)) @ v; further arguments go to `scores`."""

    def function(q: Any, k: Any, v: Any, *rest: Any) -> Any:
        return value(torch.softmax(scores(q, k, *rest), dim=-1), v)

    return function


def causal_mask(n: int, m: int | None = None, fill: float = MIN) -> Any:
    i, j = torch.arange(n), torch.arange(n if m is None else m)
    return torch.where(j[None, :] <= i[:, None], 0.0, fill)


def plain(q: Any, k: Any) -> Any:
    return q @ k.transpose(-1, -2) / math.sqrt(D)


def flat(q: Any) -> Any:
    return q.reshape(-1, q.shape[-2], q.shape[-1])


def diffusers(q: Any, k: Any, v: Any) -> Any:
    q, k, v = flat(q), flat(k), flat(v)
    empty = torch.empty(q.shape[0], q.shape[1], k.shape[1])
    scores = torch.baddbmm(empty, q, k.transpose(-1, -2), beta=0, alpha=0.3)
    return torch.bmm(scores.softmax(-1), v).reshape(B, H, -1, D)


def flat_with_mask(q: Any, k: Any, v: Any, mask: Any) -> Any:
    scores = torch.bmm(flat(q), flat(k).transpose(1, 2)).view(B, H, S, S) + mask
    weights = torch.softmax(scores, -1).view(B * H, S, S)
    return torch.bmm(weights, flat(v)).view(B, H, S, D)


def einsums(q: Any, k: Any, v: Any) -> Any:
    weights = torch.einsum("...qc,...kc->...qk", q * 0.5, k).softmax(-1)
    return torch.einsum("...hqk,...hkc->...qhc", weights, v)


ACCEPTED: dict[str, tuple[Callable[..., Any], list[Any], dict[str, Any]]] = {
    "divided by a number": (attend(plain), [], {"scale": 0.5, "is_causal": False}),
    "no scale": (attend(lambda q, k: q @ k.mT), [], {"scale": 1.0}),
    "q scaled": (attend(lambda q, k: (q * 0.3) @ k.mT), [], {"scale": 0.3}),
    "both scaled, before a transpose": (
        attend(lambda q, k: (q * 0.3) @ (k / 2).mT * 4),
        [],
        {"scale": 0.6},
    ),
    "k stands transposed": (attend(lambda q, k: q @ k.permute(0, 1, 3, 2)), [], {"scale": 1.0}),
    "additive mask": (
        attend(lambda q, k, m: plain(q, k) + m),
        [torch.randn(B, 1, S, S)],
        {"is_causal": False},
    ),
    "two masks, one on the left": (
        attend(lambda q, k, m, n: n + (plain(q, k) + m)),
        [torch.randn(1, H, S, S), torch.randn(S)],
        {},
    ),
    "mask scaled with the scores": (
        attend(lambda q, k, m: (q @ k.mT + m) * 0.25),
        [torch.randn(B, H, S, S)],
        {"scale": 0.25},
    ),
    "causal": (
        attend(lambda q, k: plain(q, k) + causal_mask(S)),
        [],
        {"is_causal": True, "attn_mask": None},
    ),
    "causal by masked_fill": (
        attend(lambda q, k: plain(q, k).masked_fill(causal_mask(S) < 0, -torch.inf)),
        [],
        {"is_causal": True, "attn_mask": None},
    ),
    "causal by where": (
        attend(lambda q, k: torch.where(causal_mask(S) == 0, plain(q, k), MIN)),
        [],
        {"is_causal": True},
    ),
    "mask of nothing": (
        attend(lambda q, k: plain(q, k) + (1.0 - torch.ones(B, 1, 1, S)) * MIN),
        [],
        {"is_causal": False, "attn_mask": None},
    ),
    "dropout and a float32 softmax": (
        attend(
            lambda q, k: plain(q, k).float(),
            lambda w, v: torch.nn.functional.dropout(w.float(), 0.5, training=False).clone() @ v,
        ),
        [],
        {},
    ),
    "flattened heads, baddbmm": (diffusers, [], {"scale": 0.3}),
    "flattened heads, mask on four dims": (flat_with_mask, [torch.randn(B, 1, S, S)], {}),
    "einsum": (einsums, [], {"scale": 0.5}),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name: str) -> None:
    function, more, expected = ACCEPTED[name]
    args = (*qkv(), *more)
    before = program_of(function, *args)
    after = fuse_attention(before)
    assert (count(after, SDPA), count(after, torch.ops.aten.softmax.int)) == (1, 0)
    (op,) = calls(after, SDPA)
    for key, value in expected.items():
        assert op[key] == (pytest.approx(value) if key == "scale" else value)
    check_equal(before, after, *args)
    check_equal(before, simplify(after), *args)


def scores_also_returned(q: Any, k: Any, v: Any) -> Any:
    scores = plain(q, k)
    return scores.softmax(-1) @ v, scores


def weights_also_read(q: Any, k: Any, v: Any) -> Any:
    weights = plain(q, k).softmax(-1)
    return weights @ v, weights.sum()


def dead_row(q: Any, k: Any, v: Any) -> Any:
    i = torch.arange(S)
    mask = torch.where(i[None, :] < i[:, None], 0.0, -torch.inf)
    return (plain(q, k) + mask).softmax(-1) @ v


REJECTED: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    "softmax over the queries": (lambda q, k, v: plain(q, k).softmax(-2) @ v, []),
    "scores used elsewhere": (scores_also_returned, []),
    "weights used elsewhere": (weights_also_read, []),
    "weights on the right": (lambda q, k, v: v.mT @ plain(q, k).softmax(-1), []),
    "weights times themselves": (
        lambda q, k, v: torch.matmul(w := plain(q, k).softmax(-1), w) @ v,
        [],
    ),
    "weights changed": (attend(plain, lambda w, v: (w * 2) @ v), []),
    "scores squashed": (attend(lambda q, k: plain(q, k).tanh()), []),
    "scale by a negative": (attend(lambda q, k: plain(q, k) * -1.0), []),
    "scale by a tensor": (attend(lambda q, k, t: plain(q, k) * t), [torch.randn(H, 1, 1)]),
    "mask subtracted from": (
        attend(lambda q, k, m: m - plain(q, k)),
        [torch.randn(B, 1, S, S)],
    ),
    "fill with a number that leaves weight": (
        attend(lambda q, k: plain(q, k).masked_fill(causal_mask(S) < 0, -10.0)),
        [],
    ),
    "masked_fill by the user's mask": (
        attend(lambda q, k, m: plain(q, k).masked_fill(m > 0, -torch.inf)),
        [torch.eye(S)],
    ),
    "a row without a live key": (dead_row, []),
    "heads of V of another width": (
        lambda q, k, v: plain(q, k).softmax(-1) @ v[..., :2],
        [],
    ),
    "einsum that sums two names": (
        lambda q, k, v: torch.einsum("bhqc,bhkc->qk", q, k).softmax(-1) @ v,
        [],
    ),
}


@pytest.mark.parametrize("name", REJECTED)
def test_rejected(name: str) -> None:
    function, more = REJECTED[name]
    program = program_of(function, *qkv(), *more)
    assert find_attention(program) == []
    assert fuse_attention(program) is program


def test_masks_that_are_almost_causal_stay_masks() -> None:
    def window(q: Any, k: Any, v: Any) -> Any:
        apart = torch.arange(S)[:, None] - torch.arange(S)[None, :]
        mask = torch.where((apart >= 0) & (apart < 3), 0.0, MIN)
        return (plain(q, k) + mask).softmax(-1) @ v

    def strict(q: Any, k: Any, v: Any) -> Any:
        mask = torch.where(torch.arange(S)[None, :] < torch.arange(S)[:, None], 0.0, MIN)
        return (plain(q, k) + mask).softmax(-1) @ v

    def soft(q: Any, k: Any, v: Any) -> Any:
        return (plain(q, k) + causal_mask(S, fill=-1e4)).softmax(-1) @ v

    def biased(q: Any, k: Any, v: Any, bias: Any) -> Any:
        return (plain(q, k) + causal_mask(S) + bias).softmax(-1) @ v

    for function in (window, strict, soft, biased):
        args = (*qkv(), torch.randn(H, S, S)) if function is biased else qkv()
        before = program_of(function, *args)
        after = fuse_attention(before)
        (op,) = calls(after, SDPA)
        assert not op["is_causal"]
        assert op["attn_mask"] is not None
        check_equal(before, after, *args)


def test_causal_with_fewer_queries_than_keys() -> None:
    q, k, v = torch.randn(B, H, 3, D), *qkv()[1:]
    before = program_of(attend(lambda q, k: plain(q, k) + causal_mask(3, S)), q, k, v)
    after = fuse_attention(before)
    assert calls(after, SDPA)[0]["is_causal"]
    check_equal(before, after, q, k, v)


def test_five_dims_with_biases_that_broadcast_differently() -> None:
    q, k, v = (torch.randn(2, 5, H, S, D) for _ in range(3))
    cases = [
        [torch.randn(2, 5, 1, 1, S)],
        [torch.randn(1, 1, H, S, S)],
        [torch.randn(2, 1, H, S, S)],
        [torch.randn(2, 5, 1, 1, S), torch.randn(2, 1, H, S, S)],
    ]
    for masks in cases:

        def function(q: Any, k: Any, v: Any, *masks: Any) -> Any:
            scores = plain(q, k)
            for mask in masks:
                scores = scores + mask
            return scores.softmax(-1) @ v

        before = program_of(function, q, k, v, *masks)
        after = fuse_attention(before)
        assert calls(after, SDPA)[0]["query"].shape == (10, H, S, D)
        check_equal(before, after, q, k, v, *masks)


def test_one_key_head_for_all() -> None:
    q, k, v = torch.randn(B, H, S, D), torch.randn(B, 1, S, D), torch.randn(S, D)
    before = program_of(attend(plain), q, k, v)
    after = fuse_attention(before)
    assert count(after, SDPA) == 1
    check_equal(before, after, q, k, v)


def test_softmax_in_another_dtype_stays() -> None:
    def upcast(q: Any, k: Any, v: Any) -> Any:
        return torch.softmax(plain(q, k), -1, dtype=torch.float32).to(q.dtype) @ v

    args = tuple(t.bfloat16() for t in qkv())
    assert find_attention(program_of(upcast, *args)) == []
    assert len(find_attention(program_of(attend(plain), *args))) == 1


def test_every_length_of_one_export() -> None:
    length = torch.export.Dim("length", min=3, max=64)

    def model(x: Any, weight: Any) -> Any:
        b, n, _ = x.shape
        q, k, v = (x @ weight).view(b, n, 3, H, D).permute(2, 0, 3, 1, 4)
        scores = plain(q, k) + causal_mask(n)
        return (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, H * D)

    weight = torch.randn(H * D, 3 * H * D)
    x = torch.randn(B, S, H * D)
    before = program_of(model, x, weight, dynamic=[{1: length}, None])
    notes: list[str] = []
    after = fuse_attention(simplify(before), notes)
    assert calls(after, SDPA)[0]["is_causal"]
    assert notes == ["attention of the model as scaled_dot_product_attention, causal"]
    for n in (S, 3, 31):
        check_equal(before, after, torch.randn(B, n, H * D), weight)
