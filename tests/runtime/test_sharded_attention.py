"""Every way to do attention on 2 and 4 ranks against one process: out, dq, dk, dv."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from quire.plan.layout import Layout
from quire.runtime import sharded_attention as sharded
from quire.runtime.collectives import gather_rows, my_rows
from quire.runtime.wire import Wire
from tests.ranks import mesh

BANDS = {"full": (None, None), "causal": (None, 0), "window": (5, 0), "near": (3, 3)}


@given(
    st.integers(1, 300), st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2), (6, 3), (8, 8), (8, 2)])
)
def test_every_row_lies_on_one_rank(size: int, shape: tuple[int, int]) -> None:
    layout = Layout(size, *shape)
    rows = [
        start + i
        for rank in range(layout.ranks)
        for at, start, n in layout.runs(rank)
        for i in range(n)
        if at >= 0 and at + n <= layout.local
    ]
    assert sorted(rows) == list(range(size))


def test_zigzag_gives_each_rank_a_block_from_both_ends() -> None:
    assert Layout(16, 4, 4).runs(1) == ((0, 2, 2), (2, 12, 2))


def _mask(band: tuple[int | None, int | None], q: int, k: int) -> Tensor:
    i, j = torch.arange(q)[:, None], torch.arange(k)[None, :]
    seen = torch.ones(q, k, dtype=torch.bool)
    if band[1] is not None:
        seen &= j <= i + band[1]
    if band[0] is not None:
        seen &= j >= i - band[0]
    return seen


def _whole(sizes: tuple[int, int], heads: int, kv: int, dtype: torch.dtype) -> list[Tensor]:
    g = torch.Generator().manual_seed(3)
    shapes = [(2, heads, sizes[0], 8), (2, kv, sizes[1], 8), (2, kv, sizes[1], 8)]
    shapes += [(2, heads, sizes[0], 8)]
    return [torch.randn(s, generator=g, dtype=torch.float32).to(dtype) for s in shapes]


def _documents(size: int) -> Tensor:
    return torch.stack([(torch.arange(size) * 3) // size, (torch.arange(size) > size // 3).long()])


def _run(
    way: str,
    ranks: int,
    ring: int,
    sizes: tuple[int, int],
    heads: int,
    kv: int,
    band: str,
    packed: bool,
    dtype: torch.dtype,
    ring_of: int = 0,
) -> dict[str, Any]:
    here = mesh(ranks)
    group = here.get_group().group_name
    q, k, v, grad = _whole(sizes, heads, kv, dtype)
    q_layout, k_layout = Layout(sizes[0], ranks, ring), Layout(sizes[1], ranks, ring)

    def part(x: Tensor, layout: Layout) -> Tensor:
        return my_rows(x, 2, 1, layout.size, ranks, ring, group, 0.0)

    local = [part(q, q_layout), part(k, k_layout), part(v, k_layout)]
    local = [x.requires_grad_() for x in local]
    documents = _documents(sizes[0])
    given: dict[str, Any] = {"band": BANDS[band], "q_size": sizes[0], "k_size": sizes[1]}
    given |= {"ranks": ranks, "ring": ring}
    if packed:
        given["leaves"] = [documents[:, None, :, None], documents[:, None, None, :]]
        given["rule"] = "eq.Tensor(x0, x1)"
    if way == "hybrid":
        sub = here._unflatten(0, (ring_of, ranks // ring_of), ("ring", "ulysses"))
        given |= {"ring_of": ring_of, "ulysses_group": sub["ulysses"].get_group().group_name}
        given |= {"ring_group": sub["ring"].get_group().group_name}
    else:
        given["group"] = group
    with Wire() as wire:
        out = getattr(sharded, way)(*local, **given)
        forward = wire.total
        out.backward(part(grad, q_layout))
    whole = [gather_rows(out, 2, 1, sizes[0], ranks, ring, group)]
    for x, layout in zip(local, (q_layout, k_layout, k_layout), strict=True):
        whole.append(gather_rows(x.grad, 2, 1, layout.size, ranks, ring, group))
    return {"found": [x.detach() for x in whole], "forward": forward, "total": wire.total}


def _expected(
    sizes: tuple[int, int], heads: int, kv: int, band: str, packed: bool, dtype: torch.dtype
) -> list[Tensor]:
    q, k, v, grad = (x.float() for x in _whole(sizes, heads, kv, dtype))
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    mask = _mask(BANDS[band], *sizes)
    if packed:
        documents = _documents(sizes[0])
        mask = mask & (documents[:, None, :, None] == documents[:, None, None, :])
    out = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    out.backward(grad)
    return [out.detach(), *(x.grad for x in (q, k, v) if x.grad is not None)]


CASES = [
    # way, ranks, ring, heads, kv, band, packed
    *[("ulysses", 2, 1, 4, 2, band, False) for band in BANDS],
    *[("ring", 4, 4, 4, 2, band, False) for band in BANDS],
    *[("gathered", 4, 4, 4, 2, band, False) for band in BANDS],
    ("ulysses", 4, 1, 6, 2, "causal", False),  # heads not divisible
    ("ulysses", 4, 1, 8, 2, "causal", False),  # K/V heads fewer than ranks
    ("ulysses", 4, 1, 3, 3, "full", True),
    ("ulysses", 4, 4, 4, 1, "causal", True),  # zigzag order under Ulysses
    ("ring", 2, 1, 4, 4, "causal", True),  # plain order: uneven work, same result
    ("ring", 2, 2, 4, 2, "window", True),
    ("gathered", 2, 1, 4, 2, "causal", True),
    ("hybrid", 4, 2, 4, 2, "causal", False),
    ("hybrid", 4, 2, 3, 1, "window", True),
    ("hybrid", 4, 1, 4, 2, "full", False),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c)))
@pytest.mark.parametrize("size", [32, 37])
def test_equal_to_one_process(ranks: Any, case: tuple[Any, ...], size: int) -> None:
    way, count, ring, heads, kv, band, packed = case
    given = {"sizes": (size, size), "heads": heads, "kv": kv, "band": band, "packed": packed}
    given["dtype"] = torch.float32
    expected = _expected(**given)
    for answer in ranks.run(_run, way=way, ranks=count, ring=ring, ring_of=2, **given):
        for got, want in zip(answer["found"], expected, strict=True):
            assert_close(got, want, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("way", ["ulysses", "ring", "gathered", "hybrid"])
def test_cross_attention_of_two_lengths(ranks: Any, way: str) -> None:
    given = {"sizes": (13, 29), "heads": 4, "kv": 2, "band": "full", "packed": False}
    given["dtype"] = torch.float32
    expected = _expected(**given)
    for answer in ranks.run(
        _run, way=way, ranks=4, ring=2 if way == "hybrid" else 1, ring_of=2, **given
    ):
        for got, want in zip(answer["found"], expected, strict=True):
            assert_close(got, want, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("way", ["ulysses", "ring", "gathered", "hybrid"])
def test_bf16_within_the_rounding_of_its_inputs_and_outputs(ranks: Any, way: str) -> None:
    given = {"sizes": (64, 64), "heads": 4, "kv": 2, "band": "causal", "packed": False}
    given["dtype"] = torch.bfloat16
    expected = _expected(**given)
    eps = torch.finfo(torch.bfloat16).eps
    for answer in ranks.run(
        _run, way=way, ranks=4, ring=2 if way == "hybrid" else 4, ring_of=2, **given
    ):
        for got, want in zip(answer["found"], expected, strict=True):
            assert got.dtype == torch.bfloat16
            # Weights, block outputs and results are each rounded once: 4 roundings at most.
            assert (got.float() - want).abs().max() <= 4 * eps * want.abs().max()


@pytest.mark.parametrize(("heads", "kv"), [(8, 8), (8, 4)])
def test_bytes_sent_are_those_of_the_formulas(ranks: Any, heads: int, kv: int) -> None:
    size, depth, item, batch, p = 64, 8, 4, 2, 4
    s, h, w = size // p, heads * depth, kv * depth
    unit = item * batch * s
    formulas = {
        "ulysses": (unit * (2 * h + 2 * w) * (p - 1) // p, 1),
        "ring": (unit * 2 * w * (p - 1), 4),
        "gathered": (unit * 2 * w * (p - 1), 1),
        "hybrid": (unit * ((2 * h + 2 * w) // 2 + 2 * w), 1),
    }
    given = {"sizes": (size, size), "heads": heads, "kv": kv, "band": "causal", "packed": False}
    given["dtype"] = torch.float32
    for way, (forward, ring) in formulas.items():
        ring = 2 if way == "hybrid" else ring
        for answer in ranks.run(_run, way=way, ranks=p, ring=ring, ring_of=2, **given):
            assert answer["forward"] == forward, way
            # Backward: keys and values once more round the ring, their fp32 gradients all the way.
            back = {
                "ulysses": forward,
                "gathered": forward,
                "ring": forward + unit * 2 * w * p,
                "hybrid": forward + unit * 2 * w * 2,
            }[way]
            assert answer["total"] == forward + back, way
